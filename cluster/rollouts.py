"""A rollout phase: groups out to the workers, finished groups back. The dispatcher decides, this moves messages."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from actors.requests import GroupRequest, Sampling
from cluster.bubbles import Bubbles
from cluster.dispatch import Dispatcher
from cluster.errors import ActorLost
from cluster.lengths import Lengths
from cluster.moves import Mover
from cluster.placement import wait
from cluster.spec import Spec
from trainer.types import Group

COLLECT_S = 0.5
"""A worker answers `collect` after at most this long, so that a stop request or a stall is noticed."""

ROOM = 1.25
"""Responses given to a worker, relative to what its engine decodes together: the rest waits inside, so that no slot of
the engine is empty while a message travels."""


class Rollouts:
    def __init__(
        self, spec: Spec, workers: dict[str, Any], lengths: Lengths, bubbles: Bubbles, check_stop: Callable[[], None]
    ) -> None:
        self._spec, self._workers, self._lengths, self._bubbles = spec, workers, lengths, bubbles
        self._check_stop = check_stop
        slots, limit = spec.rollout.max_running_requests, spec.limits.rollout_timeout_s
        self._mover = Mover(workers, lengths, slots, limit)
        self._collects: dict[Any, str] = {}  # one call under way per worker; of a holder it may outlast the phase
        self._room = int(spec.rollout.max_running_requests * ROOM)

    def sample(
        self,
        requests: Sequence[GroupRequest],
        sampling: Sampling,
        journal: Callable[..., None],
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Group]:
        """Sample all groups, those with the longest responses first; they come back in the order of the requests.

        Raises RunFailed when a worker fails, ActorLost when it dies and when no group has come back for
        limits.rollout_timeout_s.
        """
        import ray

        dispatcher = Dispatcher(list(self._workers), self._room, self._spec.run.deterministic)
        dispatcher.add(self._lengths.longest_first(sampling.pool, requests))
        groups: dict[str, Group] = {}
        collects = self._collects
        limit = self._spec.limits.rollout_timeout_s
        last_heard = time.monotonic()
        while dispatcher.open_groups:
            self._send(dispatcher.assign(), sampling, journal)
            busy = dispatcher.waits_for()
            if not self._spec.run.deterministic:
                self._mover.consider(busy, sampling, self._bubbles.step_tokens, journal)
            holders = self._mover.holders()
            self._bubbles.tick(busy.keys() | holders.keys())
            for worker in (busy.keys() | holders.keys()) - set(collects.values()):
                collects[self._workers[worker].collect.remote(COLLECT_S)] = worker
            ready, _ = ray.wait(list(collects), timeout=COLLECT_S)
            for ref in ready:
                worker = collects.pop(ref)
                what = f"{worker}, which holds {', '.join(holders[worker])}" if worker in holders else worker
                finished = wait([ref], COLLECT_S, what)[0]
                if finished:
                    last_heard = time.monotonic()
                finished = self._mover.settle(worker, finished)
                for group in finished:
                    if dispatcher.finish(worker, group.id):
                        groups[group.id] = group
                if finished:
                    journal("completed", worker=worker, groups=[group.id for group in finished])
                    progress(len(groups))
            self._check_stop()
            if time.monotonic() - last_heard > limit:
                open_groups = f"waiting for {busy}, of these responses moved: {holders}"
                raise ActorLost(f"no group came back for limits.rollout_timeout_s = {limit:g} s; {open_groups}")
        self._bubbles.over()
        return [groups[request.id] for request in requests]

    def _send(self, sends: dict[str, list[GroupRequest]], sampling: Sampling, journal: Callable[..., None]) -> None:
        for worker, requests in sends.items():
            journal(
                "dispatched", worker=worker, groups=[r.id for r in requests], rollouts=[r.rollouts for r in requests]
            )
        calls = [self._workers[worker].submit.remote(requests, sampling) for worker, requests in sends.items()]
        wait(calls, self._spec.limits.rollout_timeout_s, f"{', '.join(sends)} to accept groups")
