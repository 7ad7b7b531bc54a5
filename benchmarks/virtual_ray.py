"""Virtual time: a clock of events, and on it what the driver uses of Ray: references, waits, calls to processes.

An event is the end of a step, the arrival of a message or a timeout. The driver is charged for what it does: the
processor time that its own code takes here, while it runs, and for each message what `Costs` says of the real Ray.
"""

import contextlib
import heapq
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray as real_ray

from actors.rollout import Collected

EPOCH_S = 1.8e9
"""What `time.time` gives when the simulation begins."""


@dataclass(frozen=True)
class Costs:
    """Seconds of the driver, per message; `Costs()` are of a driver that takes no time for them."""

    call_s: float = 0.0
    """One `.remote`."""
    wait_s: float = 0.0
    wait_ref_s: float = 0.0
    """One `ray.wait`, and for each reference in it."""
    get_s: float = 0.0
    """One answer taken in."""
    group_s: float = 0.0
    """Each group in an answer."""
    latency_s: float = 0.0005
    """A message's way; the driver does not wait for it unless it waits for an answer."""
    own_code: bool = False
    """Whether the processor time of the driver's own code counts."""


class Clock:
    """Virtual seconds, and what happens when. Stands where the module `time` does."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple]] = []
        self._numbers = itertools.count()
        self.sleep: Callable[[float], None] = self.run_until

    def at(self, when: float, happens: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), happens, args))

    def after(self, seconds: float, happens: Callable[..., None], *args: Any) -> None:
        self.at(self.now + seconds, happens, *args)

    def run_until(self, when: float, enough: Callable[[], bool] = lambda: False) -> None:
        """Let all happen that happens before, or until it is enough."""
        while self._events and self._events[0][0] <= when and not enough():
            at, _, happens, args = heapq.heappop(self._events)
            self.now = max(self.now, at)
            happens(*args)
        if not enough():
            self.now = max(self.now, when)

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic

    def time(self) -> float:
        return EPOCH_S + self.now


class Ref:
    __slots__ = ("error", "ready", "value", "waiter")

    def __init__(self) -> None:
        self.ready, self.value, self.error = False, None, None
        self.waiter: Any = None

    def resolve(self, value: Any, error: BaseException | None = None) -> None:
        if not self.ready:
            self.ready, self.value, self.error = True, value, error
            if self.waiter is not None:
                self.waiter.missing -= 1


class _Waiter:
    def __init__(self, refs: Sequence[Ref], wanted: int) -> None:
        ready = sum(ref.ready for ref in refs)
        self.missing = min(wanted, len(refs)) - ready
        for ref in refs:
            ref.waiter = self

    def enough(self) -> bool:
        return self.missing <= 0


class VirtualRay:
    """What the driver uses of the module `ray`."""

    exceptions = real_ray.exceptions

    def __init__(self, clock: Clock, costs: Costs) -> None:
        self.clock, self.costs = clock, costs
        self.driver_s = 0.0
        """Charged to the driver so far; of it its own code took `code_s`."""
        self.code_s = 0.0
        self.messages = 0
        clock.sleep = self._sleep
        self._left = time.thread_time()

    @contextlib.contextmanager
    def charged(self, seconds: float) -> Iterator[None]:
        """The driver comes here from its own code, and is charged for that and for the message; what is done inside is
        the simulator's work."""
        code_s = time.thread_time() - self._left if self.costs.own_code else 0.0
        self.code_s += code_s
        self.driver_s += code_s + seconds
        self.clock.run_until(self.clock.now + code_s + seconds)
        try:
            yield
        finally:
            self._left = time.thread_time()

    def wait(self, refs: list[Ref], num_returns: int = 1, timeout: float | None = None) -> tuple[list[Ref], list[Ref]]:
        with self.charged(self.costs.wait_s + self.costs.wait_ref_s * len(refs)):
            self._until(refs, num_returns, timeout)
            ready = [ref for ref in refs if ref.ready][:num_returns]
            taken = set(map(id, ready))
            return ready, [ref for ref in refs if id(ref) not in taken]

    def get(self, refs: Any, timeout: float | None = None) -> Any:
        several = refs if isinstance(refs, list) else [refs]
        with self.charged(self.costs.get_s * len(several)):
            if not self._until(several, len(several), timeout):
                raise self.exceptions.GetTimeoutError("virtual")
            groups = sum(len(ref.value.items) for ref in several if isinstance(ref.value, Collected))
            self.driver_s += self.costs.group_s * groups
            self.clock.run_until(self.clock.now + self.costs.group_s * groups)
            for ref in several:
                if ref.error is not None:
                    raise ref.error
            return [ref.value for ref in several] if several is refs else refs.value

    def put(self, value: Any) -> Ref:
        ref = Ref()
        ref.resolve(value)
        return ref

    def _until(self, refs: Sequence[Ref], wanted: int, timeout: float | None) -> bool:
        """Whether as many are ready in time."""
        waiter = _Waiter(refs, wanted)
        self.clock.run_until(self.clock.now + (math.inf if timeout is None else timeout), waiter.enough)
        return waiter.enough()

    def _sleep(self, seconds: float) -> None:
        with self.charged(0.0):
            self.clock.run_until(self.clock.now + seconds)


class Process:
    """An actor's process; messages take their time to it and back. `takes_s`: seconds of its calls, by method."""

    def __init__(self, ray: VirtualRay, actor: Any, takes_s: dict[str, float] | None = None) -> None:
        self.ray, self.actor, self.alive = ray, actor, True
        self._takes_s = takes_s or {}
        self._open: set[Ref] = set()

    def __getattr__(self, method: str) -> "_Method":
        return _Method(self, method)

    def send(self, method: str, args: tuple) -> Ref:
        """A message, from whomever."""
        ref, ray = Ref(), self.ray
        ray.messages += 1
        if not self.alive:
            ray.clock.after(ray.costs.latency_s, ref.resolve, None, ray.exceptions.RayActorError())
            return ref
        self._open.add(ref)
        ray.clock.after(ray.costs.latency_s, self.arrives, method, args, ref)
        return ref

    def arrives(self, method: str, args: tuple, ref: Ref) -> None:
        self.ray.clock.after(self._takes_s.get(method, 0.0), self.does, method, args, ref)

    def does(self, method: str, args: tuple, ref: Ref) -> None:
        if self.alive:
            self.answers(ref, getattr(self.actor, method)(*args))

    def answers(self, ref: Ref, value: Any) -> None:
        if self.alive:
            self._open.discard(ref)
            self.ray.clock.after(self.ray.costs.latency_s, ref.resolve, value)

    def dies(self) -> None:
        self.alive = False
        for ref in self._open:
            ref.resolve(None, self.ray.exceptions.RayActorError())
        self._open.clear()


class _Method:
    def __init__(self, process: Process, name: str) -> None:
        self._process, self._name = process, name

    def remote(self, *args: Any) -> Ref:
        with self._process.ray.charged(self._process.ray.costs.call_s):
            return self._process.send(self._name, args)
