"""The rollout workers of a run: their handles, and what is done when one is lost. Moves messages; how workers are, is
decided in `cluster.fleet`, and which there are to be in `cluster.scaling`.

Invariants: whatever is called here, a worker that dies, stays silent or raises costs that worker and not the caller;
it is ended before another is started in its place; nothing is asked of a name that has no handle.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from cluster.bundles import extra_bundle, listed
from cluster.errors import ActorLost, RunFailed
from cluster.fleet import Fleet
from cluster.placement import Actors
from cluster.scaling import Roster, Scale
from cluster.spec import Spec
from cluster.waits import cause_of, on_stall, told
from trainer.types import BadInput
from trainer.verifiers import RewardError

POLL_S = 0.1
"""Between two looks at workers that are awaited."""
PLACES_S = 0.5
"""Between two looks at places for workers."""
NODES_S = 2.0
"""Between two looks at nodes that are about to leave."""


class Workers:
    def __init__(self, spec: Spec, actors: Actors, journal: Callable[..., None], tell: Callable[[str], None]) -> None:
        """`actors`: their workers stand, with the weights of version 0; kept up to date here. `tell` tells a person
        what the journal is told too."""
        self.handles = actors.workers
        self._cores, self._crew = actors.cores, actors.crew
        self._limits, self._journal, self._tell = spec.limits, journal, tell
        self.fleet = Fleet(spec.limits.worker_timeout_s, spec.limits.worker_restarts)
        self._looked = self._listened = now = time.monotonic()
        workers, fixed = spec.rollout.workers, spec.run.deterministic
        scale = Scale(workers.min, workers.max, spec.rollout.max_running_requests)
        self._roster = Roster(self.fleet, scale, list(self.handles), fixed, now)
        self._coming: dict[str, tuple[Any, Any]] = {}  # handle, and reference of its `ready`
        self._known: set[str] = set()  # nodes that were told to go
        self._lost: list[str] = []
        self._asked = listed(extra_bundle(spec), spec.cluster.worker_labels)
        self._told: set[str] = set()  # waits of which half is over
        for name in self.handles:
            self.fleet.starts(name, now)
            self.fleet.ready(name, now)
            self.fleet.refitted(name, 0, now)

    @property
    def serving(self) -> list[str]:
        """Those that may be given work."""
        return self.fleet.serving

    @property
    def hope(self) -> bool:
        """Whether any worker is in service, has something to finish, or may yet come."""
        here = self.fleet.names("stale", "healthy", "suspect", "retired")
        return bool(here or self._coming or self._roster.missing)

    # Calls.

    def ask(self, method: str, calls: Mapping[str, Sequence[Any]], patience_s: float | None = None) -> dict[str, Any]:
        """One call to each of these workers, at once. Gives the answers; who raises is lost, and so is who gives none
        before its silence reaches limits.worker_timeout_s. With `patience_s` the latter is only left out after so many
        seconds. Raises RunFailed when the fault is the user's."""
        now, limit = time.monotonic(), self._limits.worker_timeout_s
        handles = {name: self.handles[name] for name in calls if name in self.handles}
        asked = {getattr(handle, method).remote(*calls[name]): name for name, handle in handles.items()}
        until = {ref: now + (patience_s or max(limit - self.fleet.silence_s(name, now), limit / 4))
                 for ref, name in asked.items()}  # fmt: skip
        answers = {}
        for ref in self._answered(until, f"{method} of {', '.join(handles)}"):
            answers[asked[ref]] = self.take(ref, asked[ref])
            del asked[ref]
        for name in asked.values() if patience_s is None else ():
            self.lose(name, f"no answer to {method} within limits.worker_timeout_s = {limit:g} s")
        return {name: answer for name, answer in answers.items() if self.handles.get(name) is handles[name]}

    def _answered(self, until: Mapping[Any, float], what: str) -> Iterator[Any]:
        """References of calls that are over before their time, which is on the clock of time.monotonic."""
        import ray

        began, half = time.monotonic(), self._limits.worker_timeout_s / 2
        waiting, told = dict(until), False
        while waiting:
            asked = time.monotonic()
            pause_s = max(min(min(waiting.values()) - asked, half), 0)
            done, open_ = ray.wait(list(waiting), num_returns=len(waiting), timeout=pause_s)
            yield from done
            now = time.monotonic()
            # A wait that took much longer than it should: this process was stopped meanwhile, and nobody is to blame.
            stood_s = now - asked - pause_s if now - asked - pause_s > half / 2 else 0.0
            waiting = {ref: waiting[ref] + stood_s for ref in open_ if waiting[ref] + stood_s > now}
            if waiting and not told and now - began >= half:
                told = True
                on_stall.get()(what, now - began, 2 * half)

    def take(self, ref: Any, name: str) -> Any:
        """The answer of a call that is over; None when the worker failed, which is lost by that. Raises RunFailed when
        the fault is the user's: another worker would run into it too."""
        import ray

        try:
            return ray.get(ref)
        except ray.exceptions.RayError as error:
            cause = cause_of(error)
            if isinstance(cause, RewardError | BadInput):
                raise RunFailed(f"{name}: {told(cause)}") from error
            self.lose(name, told(cause))
            return None

    # Losses.

    def lose(self, name: str, why: str) -> None:
        """Give a worker up and have another started in its place. Raises RunFailed when no restart is left."""
        handle = self.handles.pop(name, None) or self._coming.pop(name, (None, None))[0]
        if handle is None:
            return
        if self._crew is None or not self._crew.replaces:
            self.fleet.lost(name, time.monotonic())
            raise ActorLost(f"{name} is lost: {why}")
        self._crew.end(handle)
        self._lost.append(name)
        if self.fleet.members[name].state == "retired":
            self._journal("worker_lost", worker=name, why=why)
            self._gone(name)
            return
        may_restart = self.fleet.lost(name, time.monotonic())
        self._journal("worker_lost", worker=name, why=why, restarts_left=max(self.fleet.restarts_left, 0))
        if not may_restart:
            limit = self._limits.worker_restarts
            raise RunFailed(f"{name} is lost: {why}; limits.worker_restarts = {limit} are spent")
        self._roster.want(name, time.monotonic())
        self._tell(f"{name} is lost: {why}; another is started in its place")

    def take_lost(self) -> list[str]:
        """Workers lost since this was last asked."""
        lost, self._lost = self._lost, []
        return lost

    def take_notice(self) -> bool:
        """Whether a node with a learner rank was told to go since this was last asked: time for a checkpoint."""
        now = time.monotonic()
        if self._crew is None or now - self._listened < NODES_S:
            return False
        self._listened = now
        told = self._crew.leaving_nodes().keys() - self._known
        self._known |= told
        return bool(told) and bool(told & self._crew.rank_nodes())

    def tick(self) -> None:
        """Start workers for which there is a place, and take in those that have become ready: they are stale then.
        Raises ActorLost when there is no place for what the run cannot do without."""
        if self._crew is None or not self._crew.replaces:
            return  # what there is, is all that there can be
        now = time.monotonic()
        if now - self._looked >= (PLACES_S if self._roster.wanted else NODES_S):
            self._looked = now
            leaving = self._crew.leaving_nodes()
            self._leave(leaving)
            self._resize()
            self._start(leaving, now)
        self._take_ready(now)
        stuck_s, limit = self._roster.stuck_s(bool(self._coming), now), self._limits.placement_timeout_s
        what = f"a place for {', '.join(self._roster.missing)}, each {self._asked}"
        if stuck_s > limit:
            raise ActorLost(f"waited limits.placement_timeout_s = {limit:g} s for {what}")
        self._tell_of("place", what, stuck_s, limit)

    def _tell_of(self, key: str, what: str, waited_s: float, limit_s: float) -> None:
        """Once when half of a limit is over."""
        if waited_s <= limit_s / 2:
            self._told.discard(key)
        elif key not in self._told:
            self._told.add(key)
            on_stall.get()(what, waited_s, limit_s)

    def refitted(self, names: Sequence[str], version: int) -> None:
        """These were given the weights of this version, and are in service with them."""
        now = time.monotonic()
        for name in names:
            came = self.fleet.members[name].state == "stale"
            self.fleet.refitted(name, version, now)
            if came:
                self._journal("worker_joined", worker=name, weight_version=version)

    def _start(self, leaving: Mapping[str, float], now: float) -> None:
        for name in self._roster.to_start(now):
            if self._crew.node_of(name) not in (None, *leaving):
                self.fleet.starts(name, now)
                self._roster.starts(name)
                handle = self._crew.start_worker(name)
                self._coming[name] = handle, handle.ready.remote()

    def _take_ready(self, now: float) -> None:
        import ray

        refs = {ref: name for name, (_, ref) in self._coming.items()}
        for ref in ray.wait(list(refs), num_returns=len(refs), timeout=0)[0] if refs else []:
            name = refs[ref]
            if (found := self.take(ref, name)) is not None:
                self.handles[name] = self._coming.pop(name)[0]
                self._cores[name] = found[1]
                self.fleet.ready(name, now)
        limit = self._limits.start_timeout_s
        for name in list(self._coming):
            waited_s = now - self.fleet.members[name].heard
            self._tell_of(name, f"{name}, to be ready", waited_s, limit)
            if waited_s > limit:
                self.lose(name, f"not ready within limits.start_timeout_s = {limit:g} s")

    # More workers, and fewer.

    def phase_begins(self, rollouts: int) -> None:
        """A rollout phase of this size: ask for places for the workers that it has use for."""
        self._roster.phase(rollouts)
        self._resize()

    def pause(self) -> None:
        """Nothing is sampled for a while: further workers leave."""
        self._roster.pause()
        self._resize()
        self.release(())

    def _resize(self) -> None:
        further, spare = self._roster.changes()
        for name in further:
            self._crew.ask_place(name)
            self._journal("worker_asked", worker=name)
        for name in spare:
            self._retire(name, "not needed")

    def _leave(self, leaving: Mapping[str, float]) -> None:
        """Workers on nodes that are about to go get no more work; what one has not finished shortly before the end
        goes to others."""
        nodes = {name: self._crew.node_of(name) for name in self.serving} if leaving else {}
        for name in self._roster.leave(nodes, leaving):
            self._retire(name, f"its node {str(nodes[name])[:8]} is leaving the cluster")
        for name in self._roster.overdue(time.time()):
            self.lose(name, "its node is about to go")

    def _retire(self, name: str, why: str) -> None:
        self._journal("worker_retired", worker=name, why=why)
        if name not in self.fleet.members:
            self._drop(name)
        elif not self.fleet.retire(name):
            self._end(name)

    def release(self, busy: Collection[str]) -> None:
        """Retired workers that have nothing left to do go."""
        for name in self.fleet.names("retired"):
            if name not in busy:
                self._end(name)

    def _end(self, name: str) -> None:
        handle = self.handles.pop(name, None) or self._coming.pop(name, (None, None))[0]
        if handle is not None:
            self._crew.end(handle)
        self._lost.append(name)
        self._gone(name)

    def _gone(self, name: str) -> None:
        self.fleet.gone(name)
        self._drop(name)

    def _drop(self, name: str) -> None:
        """One that the run needs comes back as soon as there is a place for it."""
        if not self._roster.gone(name, time.monotonic()):
            self._crew.give_back_place(name)
