"""The real driver in virtual time: any number of sleeping workers in one process, without Ray.

Everything of a run is the product's (driver, allocator, dispatcher, fleet, moves, lengths, journal, checkpoints, and
below them the workers' groups and handover); `VirtualRay` carries the messages, and engines and learner only take time.
"""

import contextlib
import gc
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray as real_ray

import cluster.bubbles
import cluster.checkpoint
import cluster.driver
import cluster.moves
import cluster.rollouts
import cluster.serving
import cluster.stages
import cluster.summary
import cluster.watch
import cluster.workers
from actors.allocator import AllocatorActor
from actors.figures import LearnerFigures
from actors.handover import Handover
from actors.publish import Published
from actors.rollout import RolloutWorker
from benchmarks.sleeping import Mute, Pace, SleepingEngine, luck
from benchmarks.virtual_ray import Clock, Costs, Process, Ref, VirtualRay
from cluster.allocation import allocator_arguments
from cluster.checkpoint import RunDirectory
from cluster.display import Display
from cluster.driver import Driver
from cluster.metrics import Metrics
from cluster.placement import Actors
from cluster.sinks import Sinks
from cluster.spec import Spec

CLOCKED = (
    cluster.bubbles, cluster.checkpoint, cluster.driver, cluster.moves, cluster.rollouts, cluster.serving,
    cluster.stages, cluster.summary, cluster.watch, cluster.workers,
)  # fmt: skip
"""Modules that read the clock or sleep while a run goes on."""


class VirtualEngine(SleepingEngine):
    stride = 1
    """Steps that the next call of `step` stands for; the time that they take has passed."""

    def step(self) -> list[Any]:
        return self.end(self.stride)

    def load_bucket(self, ref: Any) -> int:
        return 0


class VirtualWorker(RolloutWorker):
    """The real worker without its threads: what they would do is done when it is time for it."""

    def _own_engine(self, config: Any, task: Any) -> None:
        self._engine: Any = VirtualEngine(config)
        self._handover = Handover(self._engine, self._open, self._pools, self._run_seed)
        self._tokenizer, self._grade = Mute(), luck
        self._ready.set_result(({}, []))

    def _call(self, fn: Callable[..., Any], *args: Any) -> Any:
        return fn(*args)

    def grade_all(self) -> None:
        while not self._ungraded.empty():
            self._finished.put(self._close(self._ungraded.get()))


class WorkerProcess(Process):
    """Steps its engine while there is work. Many steps are one event, unless a message comes: that is heard when the
    step is over, as in the real worker."""

    def __init__(self, ray: VirtualRay, pace: Pace, pools: dict[str, Any], seed: int, start_s: float = 0.0) -> None:
        super().__init__(ray, VirtualWorker(pace, None, pools, seed))  # type: ignore[arg-type]
        self.actor.ready()
        self._up_at = ray.clock.now + start_s
        self.hangs = False
        self._inbox: list[tuple[str, tuple, Ref]] = []
        self._collector: Ref | None = None
        self._stride: tuple[float, float, float, int] | None = None
        """When it began, seconds of its first step and of each further one, steps."""

    def arrives(self, method: str, args: tuple, ref: Ref) -> None:
        if not self.alive or self.hangs:
            return
        if method == "ready":
            self.ray.clock.at(max(self._up_at, self.ray.clock.now), self.does, method, args, ref)
        elif method == "collect":
            self._collector = ref
            self._answer_collector()
            self.ray.clock.after(args[0], self._give_up_collecting, ref)
        else:
            self._inbox.append((method, args, ref))
            if self._stride is None:
                self._go_on()
            else:
                self._shorten()

    def hang(self) -> None:
        """As when the process is stopped: it neither answers nor ends."""
        self.hangs = True

    def _go_on(self) -> None:
        while self._inbox:
            self.does(*self._inbox.pop(0))
        self.actor.grade_all()
        self._answer_collector()
        self._stride = None
        if self.alive and self.actor._engine.busy:
            self._stride = stride = (self.ray.clock.now, *self.actor._engine.begin())
            self._ends(stride, stride[3])

    def _shorten(self) -> None:
        assert self._stride is not None
        began, first_s, each_s, steps = self._stride
        late_s = max(self.ray.clock.now - began - first_s, 0.0)
        until = 1 + math.ceil(late_s / each_s - 1e-9)
        if until < steps:
            self._stride = stride = (began, first_s, each_s, until)
            self._ends(stride, until)

    def _ends(self, stride: tuple[float, float, float, int], steps: int) -> None:
        began, first_s, each_s, _ = stride
        when = max(began + first_s + (steps - 1) * each_s, self.ray.clock.now)
        self.ray.clock.at(when, self._stepped, stride)

    def _stepped(self, stride: tuple[float, float, float, int]) -> None:
        if not self.alive or self.hangs or self._stride is not stride:
            return
        _, first_s, each_s, steps = stride
        engine, handover = self.actor._engine, self.actor._handover
        engine.stride = steps
        handover.timed(first_s)
        running = len(engine._running)
        self.actor._step()
        if steps > 1:
            engine.last_step = (running, 0)
            handover.timed(each_s)
        self._go_on()

    def _answer_collector(self) -> None:
        if self._collector is not None and not self.actor._finished.empty():
            ref, self._collector = self._collector, None
            self.answers(ref, self.actor.collect(0.0))

    def _give_up_collecting(self, ref: Ref) -> None:
        if self._collector is ref and not self.hangs:
            self._collector = None
            self.answers(ref, self.actor.collect(0.0))


class Learner:
    """Learns nothing; every update makes another weight version."""

    def __init__(self, ray: VirtualRay) -> None:
        self._ray = ray

    def update(self, groups: Ref, learning_rate: float) -> dict[str, float]:
        return {"updates": 1, "dropped": 0, "loss": 0.0, "learning_rate": learning_rate}

    def take_figures(self) -> LearnerFigures:
        return LearnerFigures()

    def save(self, directory: str) -> None:
        (Path(directory) / "learner").write_text("")

    def export(self, directory: str) -> None:
        Path(directory).mkdir(parents=True, exist_ok=True)

    def load(self, directory: str) -> None: ...

    def reset_optimizer(self) -> None: ...


class LearnerProcess(Process):
    def does(self, method: str, args: tuple, ref: Ref) -> None:
        if method != "publish":
            super().does(method, args, ref)
            return
        workers, version, timeout_s = args
        sent = [worker.send("load", ([None], 0, version, timeout_s)) for worker in workers]
        self._settle(sent, ref, self.ray.clock.now + timeout_s)

    def _settle(self, sent: list[Ref], ref: Ref, deadline: float) -> None:
        if all(call.ready for call in sent) or self.ray.clock.now >= deadline:
            failed = {n: str(call.error) for n, call in enumerate(sent) if not call.ready or call.error is not None}
            self.answers(ref, Published(1.0, failed))
        else:
            self.ray.clock.after(0.01, self._settle, sent, ref, deadline)


class Crew:
    """Gives a process to every worker that is asked for, `start_s` later."""

    replaces = True

    def __init__(self, start: Callable[[float], WorkerProcess], start_s: float) -> None:
        self._start, self._start_s = start, start_s
        self.started = 0

    def start_worker(self, name: str) -> WorkerProcess:
        self.started += 1
        return self._start(self._start_s)

    def end(self, handle: WorkerProcess) -> None:
        handle.dies()

    def node_of(self, worker: str) -> str:
        return "node"

    def leaving_nodes(self) -> dict[str, float]:
        return {}

    def ask_place(self, worker: str) -> None: ...

    def give_back_place(self, worker: str) -> None: ...


class Simulation:
    """One run in virtual time; `driver.run_stages()` carries it out inside `with`."""

    def __init__(
        self, spec: Spec, pace: Pace, prompts: int, run_dir: Path, costs: Costs, learn_s: float = 1.0,
        start_s: float = 10.0,
    ) -> None:  # fmt: skip
        """`learn_s`: seconds of an update; `start_s`: of a worker's start in place of a lost one."""
        self.clock = Clock()
        self.ray = VirtualRay(self.clock, costs)
        pools = pace.pools(prompts)
        by_name = {"train": pools.train, "heldout": pools.heldout}

        def start(start_s: float = 0.0) -> WorkerProcess:
            return WorkerProcess(self.ray, pace, by_name, spec.run.seed, start_s)

        self.workers = {f"rollout-{i}": start() for i in range(spec.rollout.workers.min)}
        self.crew = Crew(start, start_s)
        learner = LearnerProcess(self.ray, Learner(self.ray), {"update": learn_s})
        allocator = Process(self.ray, AllocatorActor(**allocator_arguments(spec, pools.train)))
        cores: dict[str, list[int]] = {name: [] for name in self.workers}
        actors = Actors(self.workers, cores, [learner], allocator, {}, {}, None, self.crew)
        self.run = RunDirectory(run_dir)
        self.run.create()
        self.metrics = Metrics()
        sinks = Sinks([], self.run, spec.run.name)
        with self._virtual():
            self.driver = Driver(
                spec, self.run, pools, 1000, actors, self.metrics, sinks, Display("virtual"), lambda: False,
                self.clock.now,
            )  # fmt: skip

    def carry_out(self) -> dict[str, Any]:
        """The run's summary."""
        collected = gc.isenabled() and self.ray.costs.own_code
        if collected:
            gc.disable()  # the garbage is the simulator's, and the driver would pay for it
        try:
            with contextlib.closing(self.metrics), self._virtual():
                return self.driver.run_stages()
        finally:
            if collected:
                gc.enable()

    @contextlib.contextmanager
    def _virtual(self) -> Iterator[None]:
        sys.modules["ray"] = self.ray  # type: ignore[assignment]
        for module in CLOCKED:
            module.time = self.clock  # type: ignore[attr-defined]
        try:
            yield
        finally:
            sys.modules["ray"] = real_ray
            for module in CLOCKED:
                module.time = time  # type: ignore[attr-defined]
