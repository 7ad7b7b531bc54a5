"""The real driver on the real Ray, over sleeping workers: as many of them in one process as it takes, each called for
itself.
"""

import contextlib
import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from actors.figures import LearnerFigures
from actors.publish import Published
from actors.rollout import Collected
from benchmarks.sleeping import Pace, SleepingWorker
from benchmarks.virtual_ray import Costs
from cluster.allocation import allocator_arguments
from cluster.checkpoint import RunDirectory
from cluster.display import Display
from cluster.driver import Driver
from cluster.metrics import Metrics
from cluster.placement import Actors
from cluster.sinks import Sinks
from cluster.spec import Spec
from cluster.waits import wait
from trainer.types import Group

WORKERS_PER_PROCESS = 16
TIMEOUT_S = 120


class Host:
    """Runs inside Ray: workers that share a process."""

    def __init__(self, pace: Pace, pools: dict[str, Any], run_seed: int, workers: int) -> None:
        self._workers = [SleepingWorker(pace, None, pools, run_seed) for _ in range(workers)]  # type: ignore[arg-type]
        for worker in self._workers:
            worker.ready()

    def call(self, index: int, method: str, *args: Any) -> Any:
        return getattr(self._workers[index], method)(*args)

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def answer(self, groups: int, tokens: int) -> Collected:
        """As a worker's, of groups of 8."""
        return Collected([group_of(tokens) for _ in range(groups)])


def group_of(tokens: int) -> Group:
    ids, logprobs = np.arange(8 * tokens, dtype=np.int32), np.zeros(8 * tokens, np.float32)
    flags = np.zeros(8, bool)
    return Group("0/p0", 0, 0, 0, ids, logprobs, np.full(8, tokens, np.int32), np.zeros(8), flags)


class Handle:
    """What the driver holds of one worker; it travels to the learner as a handle of Ray does."""

    def __init__(self, host: Any, index: int) -> None:
        self._host, self._index = host, index

    def __getattr__(self, method: str) -> "_Method":
        if method.startswith("_"):
            raise AttributeError(method)
        return _Method(self._host, self._index, method)


class _Method:
    def __init__(self, host: Any, index: int, method: str) -> None:
        self._host, self._index, self._method = host, index, method

    def remote(self, *args: Any) -> Any:
        return self._host.call.remote(self._index, self._method, *args)


class SleepingLearner:
    """Runs inside Ray: takes its time for an update, and publishes weights of a given size as the learner does."""

    def __init__(self, learn_s: float, weights_mib: float, bucket_mib: int) -> None:
        import torch

        self._learn_s, self._bucket_bytes = learn_s, bucket_mib * 2**20
        rows = max(1, int(weights_mib * 2**20 / 4 / 2**18))
        self._named = [(f"layer.{i}", torch.rand(2**18)) for i in range(rows)]

    def update(self, groups: list[Group], learning_rate: float) -> dict[str, float]:
        time.sleep(self._learn_s)
        for _, tensor in self._named:
            tensor += 1e-3
        return {"updates": 1, "dropped": 0, "loss": 0.0, "learning_rate": learning_rate}

    def publish(self, workers: list[Any], version: int, timeout_s: float) -> Published:
        import torch

        from actors.publish import publish_through_store

        failed = publish_through_store(
            self._named, torch.float32, self._bucket_bytes, lambda parameters: contextlib.nullcontext(), 0, workers,
            version, timeout_s,
        )  # fmt: skip
        return Published(float(sum(t.numel() * 4 for _, t in self._named)), failed)

    def take_figures(self) -> LearnerFigures:
        return LearnerFigures()

    def save(self, directory: str) -> None:
        (Path(directory) / "learner").write_text("")

    def export(self, directory: str) -> None:
        Path(directory).mkdir(parents=True, exist_ok=True)

    def reset_optimizer(self) -> None: ...


@contextlib.contextmanager
def local_ray(object_store_mib: int = 512) -> Iterator[None]:
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    root = str(Path(__file__).parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    import ray

    ray.init(
        address="local", num_cpus=16, include_dashboard=False, object_store_memory=object_store_mib * 2**20,
        log_to_driver=False,
    )  # fmt: skip
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def sleeping_run(
    spec: Spec, pace: Pace, prompts: int, learn_s: float = 0.5, weights_mib: float = 1.0
) -> Iterator[Driver]:
    """A driver over sleeping workers and learner, and the real allocator, on the Ray that this process has joined."""
    import ray

    from actors.allocator import AllocatorActor

    pools, least = pace.pools(prompts), spec.rollout.workers.min
    stored = ray.put({"train": pools.train, "heldout": pools.heldout})
    counts = [min(WORKERS_PER_PROCESS, least - first) for first in range(0, least, WORKERS_PER_PROCESS)]
    hosts = [
        ray.remote(Host).options(max_concurrency=4 * n + 4, num_cpus=0).remote(pace, stored, spec.run.seed, n)
        for n in counts
    ]
    handles = [Handle(host, i) for host, n in zip(hosts, counts, strict=True) for i in range(n)]
    workers: dict[str, Any] = {f"rollout-{i}": handle for i, handle in enumerate(handles)}
    rank = ray.remote(SleepingLearner).options(num_cpus=0).remote(learn_s, weights_mib, spec.rollout.publish_bucket_mib)
    allocator = ray.remote(AllocatorActor).options(num_cpus=0).remote(**allocator_arguments(spec, pools.train))
    wait([worker.ready.remote() for worker in workers.values()], TIMEOUT_S, "sleeping workers")
    cores: dict[str, list[int]] = {name: [] for name in workers}
    actors = Actors(workers, cores, [rank], allocator, {}, {}, None)
    with tempfile.TemporaryDirectory() as scratch, contextlib.closing(Metrics()) as metrics:
        run = RunDirectory(Path(scratch))
        run.create()
        yield Driver(
            spec, run, pools, 1000, actors, metrics, Sinks([], run, spec.run.name), Display("pacing"), lambda: False,
            time.perf_counter(),
        )  # fmt: skip
    for actor in (*hosts, rank, allocator):
        ray.kill(actor)


def measured_costs(tokens: int) -> tuple[Costs, dict[str, Any]]:
    """What a message costs the driver on this machine, in processor time of its main thread; the second also of all
    threads of its process, to which Ray's own belong. `tokens`: of a response."""
    import ray

    host = ray.remote(Host).options(max_concurrency=2, num_cpus=0).remote(Pace(), {"train": []}, 0, 0)
    ray.get(host.answer.remote(0, 1))

    def cost(times: int, does: Callable[[], Any]) -> tuple[float, float]:
        main, whole = time.thread_time(), time.process_time()
        for _ in range(times):
            does()
        return (time.thread_time() - main) / times, (time.process_time() - whole) / times

    def typical(times: int, does: Callable[[], Any]) -> tuple[float, float]:
        found = [cost(times, does) for _ in range(5)]
        return statistics.median(m for m, _ in found), statistics.median(w for _, w in found)

    sent: list[Any] = []
    call = typical(200, lambda: sent.append(host.call.remote(0, "__class__")))
    ray.wait(sent, num_returns=len(sent), timeout=TIMEOUT_S)
    pauses = [host.pause.remote(3.0) for _ in range(1024)]
    few, many = (typical(20, functools.partial(ray.wait, pauses[:n], timeout=0)) for n in (1, 1024))
    for ref in pauses:
        ray.cancel(ref)

    def gets(groups: int) -> tuple[float, float]:
        refs = [host.answer.remote(groups, tokens) for _ in range(100)]
        ray.wait(refs, num_returns=len(refs), timeout=TIMEOUT_S)
        found = iter(refs)
        return cost(len(refs), lambda: ray.get(next(found)))

    ready = ray.remote(Host).options(max_concurrency=2, num_cpus=0).remote(Pace(), {"train": []}, 0, 0)
    ray.kill(host)
    host = ready
    empty, full = (
        tuple(map(statistics.median, zip(*[gets(groups) for _ in range(5)], strict=True))) for groups in (0, 8)
    )
    ray.kill(host)
    costs = [
        Costs(
            call_s=call[i], wait_s=few[i], wait_ref_s=max(many[i] - few[i], 0.0) / 1023, get_s=empty[i],
            group_s=max(full[i] - empty[i], 0.0) / 8, own_code=True,
        )
        for i in (0, 1)
    ]  # fmt: skip
    names = ("call_s", "wait_s", "wait_ref_s", "get_s", "group_s")
    table = {name: {"main_thread": getattr(costs[0], name), "process": getattr(costs[1], name)} for name in names}
    return costs[0], table
