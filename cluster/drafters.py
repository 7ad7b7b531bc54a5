"""Training sessions of the drafters beside the rollout workers, and what each leaves for the next one. Moves messages;
who trains when is decided elsewhere.

Invariant: what a session leaves belongs to this process, so that it outlives the drafter that made it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from actors.drafter import Session
from cluster.waits import told


@dataclass(frozen=True, slots=True)
class Running:
    lease: int
    phase: int
    bought: bool
    """On the critical path, not in a bubble."""
    call: Any
    """Reference of the session; the next two are of what it leaves."""
    state: Any
    candidate: Any


@dataclass(frozen=True, slots=True)
class _State:
    """A trainer's state as a session left it."""

    lease: int
    phase: int
    ref: Any
    micro_steps: float
    """Of this phase: its weight among the replicas."""


class Drafters:
    def __init__(self, handles: dict[str, Any], timeout_s: float) -> None:
        """`timeout_s` is what the message about a drafter that hangs says."""
        self.alive = dict(handles)
        self._coming: dict[str, tuple[Any, Any]] = {}  # handle, and reference of an answer
        self.phase = 0
        """Rollout phases and purchases so far. Drafters that train in the same one are replicas."""
        self.leases = 0
        """Sessions begun so far."""
        self._timeout_s = timeout_s
        self._running: dict[str, Running] = {}
        self._states: dict[str, _State] = {}  # of the newest phase that trained, by worker

    @property
    def running(self) -> list[str]:
        """Workers whose drafter has not come back from its session."""
        return list(self._running)

    def start(self, worker: str, blobs: Sequence[Any], serving: Any, bought: bool) -> int:
        """Begin a session on these features from the mean of what the replicas left; the number of its lease."""
        self.leases += 1
        states = list(self._states.values())
        held = states[0].lease if len(states) == 1 else None
        weighted = [(state.ref, state.micro_steps) for state in states]
        train = self.alive[worker].train.options(num_returns=3)
        self._running[worker] = Running(
            self.leases, self.phase, bought, *train.remote(self.leases, weighted, held, blobs, serving)
        )
        return self.leases

    def stop(self, workers: Sequence[str]) -> None:
        """Have these sessions end after their micro-step; nobody waits for it."""
        for worker in workers:
            if worker in self._running:
                self.alive[worker].stop.remote(self._running[worker].lease)

    def take(self, timeout_s: float) -> Iterator[tuple[str, Running, Session | str]]:
        """Sessions that have ended within `timeout_s`; instead of one whose drafter died, what it died of."""
        import ray

        calls = {running.call: worker for worker, running in self._running.items()}
        ready = ray.wait(list(calls), num_returns=len(calls), timeout=timeout_s)[0] if calls else []
        for call in ready:
            worker = calls[call]
            running = self._running.pop(worker)
            try:
                session: Session = ray.get(call)
            except ray.exceptions.RayError as error:
                self.alive.pop(worker)
                yield worker, running, str(error).strip().splitlines()[-1]
                continue
            if session.micro_steps:
                same = {name: state for name, state in self._states.items() if state.phase == running.phase}
                before = same[worker].micro_steps if worker in same else 0.0
                state = _State(running.lease, running.phase, running.state, before + session.micro_steps)
                self._states = {**same, worker: state}
            yield worker, running, session

    def give_up(self, worker: str) -> str:
        """Kill a drafter that does not stop; what to tell people."""
        import ray

        self._running.pop(worker, None)
        ray.kill(self.alive.pop(worker))
        return f"did not stop within {self._timeout_s:g} s"

    def start_beside(self, worker: str, handle: Any) -> None:
        """A drafter is being started beside this worker."""
        self._coming[worker] = handle, handle.pid.remote()

    @property
    def beside(self) -> set[str]:
        """Workers beside which one is, or is on its way."""
        return {*self.alive, *self._coming}

    def arrived(self) -> list[tuple[str, str]]:
        """Take in the drafters that have started since: workers beside which they are, and what one has died of
        instead; empty for the living."""
        import ray

        refs = {ref: worker for worker, (_, ref) in self._coming.items()}
        ready = ray.wait(list(refs), num_returns=len(refs), timeout=0)[0] if refs else []
        arrived = []
        for ref in ready:
            worker = refs[ref]
            handle, _ = self._coming.pop(worker)
            try:
                ray.get(ref)
            except ray.exceptions.RayError as error:
                arrived.append((worker, told(error)))
            else:
                self.alive[worker] = handle
                arrived.append((worker, ""))
        return arrived

    def newest_state(self) -> Any:
        """Reference of the state that took most micro-steps; None before the first session."""
        most = max(self._states.values(), key=lambda state: state.micro_steps, default=None)
        return most.ref if most else None

    def continue_from(self, state: Any) -> None:
        """The next sessions begin from this state, if there is one."""
        self._states = {"checkpoint": _State(-1, -1, state, 1.0)} if state else {}
