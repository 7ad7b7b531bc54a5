"""A rollout phase: groups out to the workers, finished groups back. The dispatcher decides, this moves messages.

A worker that is lost meanwhile costs its unfinished groups, which are sampled again under the same ids and seeds; the
one started in its place joins as soon as it has the weights that the phase is sampled with.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from actors.requests import GroupRequest, Sampling
from cluster.answers import fault, not_an_answer
from cluster.bubbles import Bubbles
from cluster.dispatch import Dispatcher
from cluster.errors import ActorLost
from cluster.lengths import Lengths
from cluster.moves import Mover
from cluster.scaling import by_number
from cluster.spec import Spec
from cluster.waits import on_stall
from cluster.workers import POLL_S, Workers
from trainer.types import Group

COLLECT_S = 0.5
"""Longest wait for any answer, so that a stop request or a stall is noticed."""

EMPTY_ANSWERS_PER_S = 200.0
"""Of all workers together: many of them wait longer for something to tell, or the driver would do little but listen."""

ROOM = 1.25
"""Responses given to a worker, relative to what its engine decodes together: the rest waits inside, so that no slot of
the engine is empty while a message travels."""


class Rollouts:
    def __init__(
        self, spec: Spec, workers: Workers, vocabulary: int, lengths: Lengths, bubbles: Bubbles,
        journal: Callable[..., None], refit: Callable[[], None], check_stop: Callable[[], None],
    ) -> None:  # fmt: skip
        """`vocabulary`: tokens that the model knows. `refit` gives the weights of the phase to workers that run and do
        not have them, if they can be had."""
        self._spec, self._workers, self._vocabulary = spec, workers, vocabulary
        self._lengths, self._bubbles, self._journal = lengths, bubbles, journal
        self._refit, self._check_stop = refit, check_stop
        self._mover = Mover(workers, lengths, spec.rollout.max_running_requests)
        self._collects: dict[Any, str] = {}  # one call under way per worker; of a holder it may outlast the phase
        self._room = int(spec.rollout.max_running_requests * ROOM)

    def sample(
        self,
        requests: Sequence[GroupRequest],
        sampling: Sampling,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Group]:
        """Sample all groups, those with the longest responses first; they come back in the order of the requests.

        Raises RunFailed when no worker may be started again or a group takes its workers down, ActorLost when there is
        no worker left or no group has come back for limits.rollout_timeout_s.
        """
        limits, deterministic = self._spec.limits, self._spec.run.deterministic
        self._workers.phase_begins(sum(request.rollouts for request in requests))
        dispatcher = Dispatcher([], self._room, deterministic, limits.group_attempts)
        dispatcher.add(self._lengths.longest_first(sampling.pool, requests))
        groups: dict[str, Group] = {}
        members: set[str] = set()
        silence = _Silence(limits.rollout_timeout_s)
        while dispatcher.open_groups:
            before, members = members, self._admit(dispatcher, members)
            if not deterministic or len(members) == self._spec.rollout.workers.min:
                self._send(dispatcher.assign(), sampling)
            busy = dispatcher.busy
            if members != before or not busy:  # workers that are awaited have limits of their own
                silence.broken()
            if not deterministic:
                self._mover.consider(busy, sampling, self._bubbles.step_tokens, self._journal)
            awaited = busy | self._mover.holders().keys()
            self._bubbles.tick(awaited)
            for worker, items in self._collect(awaited):
                finished = self._checked(worker, self._mover.settle(worker, items), dispatcher, sampling)
                for group in finished:
                    if dispatcher.finish(worker, group.id):
                        groups[group.id] = group
                if finished:
                    self._journal("completed", worker=worker, groups=[group.id for group in finished])
                    progress(len(groups))
                    silence.broken()
            self._give_up(dispatcher)
            self._workers.release(awaited)
            self._check_stop()
            silence.look(lambda: self._told(dispatcher))
        self._workers.release(())
        self._bubbles.over()
        return [groups[request.id] for request in requests]

    def _admit(self, dispatcher: Dispatcher, members: set[str]) -> set[str]:
        """Let in workers that have come, and let go those that get no more groups; who is in now."""
        self._workers.tick()
        self._refit()
        self._give_up(dispatcher)
        serving = set(self._workers.serving)
        for worker in sorted(serving - members, key=by_number):
            dispatcher.join(worker)
        for worker in members - serving:
            dispatcher.leave(worker)
        if not self._workers.hope:
            raise ActorLost(f"no rollout worker is left, and {dispatcher.open_groups} groups wait for one")
        return serving

    def _told(self, dispatcher: Dispatcher) -> str:
        busy, holders = dispatcher.waits_for(), self._mover.holders()
        return f"groups: {busy or 'none is out'}, responses moved: {holders or 'none'}"

    def _collect(self, awaited: set[str]) -> list[tuple[str, list[Any]]]:
        """What these have finished, of those who answer within COLLECT_S. Who is silent for too long is lost."""
        import ray

        collects, limit = self._collects, self._spec.limits.worker_timeout_s
        # The fleet takes a quarter of the limit without a look for a pause of this process.
        wait_s = min(COLLECT_S, limit / 8)
        answer_s = max(wait_s, min(len(awaited) / EMPTY_ANSWERS_PER_S, limit / 8))
        for worker in awaited - set(collects.values()):
            if worker in self._workers.handles:
                collects[self._workers.handles[worker].collect.remote(answer_s)] = worker
        if not collects:
            time.sleep(POLL_S)
        ready, rest = ray.wait(list(collects), timeout=wait_s) if collects else ([], [])
        if ready and rest:  # all that is there: what follows is done once for all of them
            ready += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        answers = []
        for ref in ready:
            worker = collects.pop(ref)
            found = self._workers.take(ref, worker)
            if found is not None and (wrong := not_an_answer(found)):
                self._workers.lose(worker, wrong)
            elif found is not None:
                self._workers.fleet.heard(worker, time.monotonic() - found.step_s)
                answers.append((worker, found.items))
        suspects, silent = self._workers.fleet.look(awaited, time.monotonic())
        for worker in suspects:
            on_stall.get()(f"{worker}, to answer or to end a step of its engine", limit / 2, limit)
        for worker in silent:
            self._workers.lose(worker, f"no answer and no end of a step for limits.worker_timeout_s = {limit:g} s")
        return answers

    def _checked(self, worker: str, groups: Sequence[Group], dispatcher: Dispatcher, sampling: Sampling) -> list[Group]:
        """The groups that were asked of this worker; it is lost when one of them cannot be true."""
        good = []
        for group in groups:
            request = dispatcher.request(worker, group.id)
            if request is None:  # taken back meanwhile
                continue
            if wrong := fault(group, request, sampling, self._vocabulary):
                self._workers.lose(worker, f"its answer for group {group.id} cannot be true: {wrong}")
                return []
            good.append(group)
        return good

    def _give_up(self, dispatcher: Dispatcher) -> None:
        """What the workers lost since the last look had is given to others. Losing one may cost another."""
        while lost := self._workers.take_lost():
            for worker in lost:
                self._collects = {ref: name for ref, name in self._collects.items() if name != worker}
                groups = [request.id for request in dispatcher.lose(worker)]
                back = self._mover.lose(worker)
                dispatcher.take_back(back)
                if groups or back:
                    self._journal("reissued", worker=worker, groups=groups + sorted(back))

    def _send(self, sends: dict[str, list[GroupRequest]], sampling: Sampling) -> None:
        for worker, requests in sends.items():
            ids, sizes = [r.id for r in requests], [r.rollouts for r in requests]
            self._journal("dispatched", worker=worker, groups=ids, rollouts=sizes)
        self._workers.ask("submit", {worker: (requests, sampling) for worker, requests in sends.items()})


class _Silence:
    """How long no group has come back."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self.broken()

    def broken(self) -> None:
        self._since, self._told = time.monotonic(), False

    def look(self, what: Callable[[], str]) -> None:
        """Raises ActorLost at the limit; tells at half of it. `what` is waited for, in words."""
        silent_s = time.monotonic() - self._since
        if silent_s > self._limit_s:
            raise ActorLost(
                f"no group came back for limits.rollout_timeout_s = {self._limit_s:g} s; waiting for {what()}"
            )
        if silent_s > self._limit_s / 2 and not self._told:
            self._told = True
            on_stall.get()(what(), silent_s, self._limit_s)
