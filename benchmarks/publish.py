"""How long a 500 MB policy takes to one engine on CPU.

`python benchmarks/publish.py [RUNS]` writes results/publish.json.

Learner and engine are the service's own actors. Target: at most 4 times one memory copy of the same bytes plus 50 ms;
peak extra memory at most two buckets. What is sampled is the private memory of both processes; the object store holds
at most two buckets by construction and is not sampled.
"""

import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.overhead import cpu_name, spread

os.environ.setdefault("RAY_AUTH_MODE", "token")
import psutil
import ray
import torch

from actors.engine_config import EngineConfig
from actors.learner import LearnerRank
from actors.learner_config import LearnerConfig
from actors.rollout import RolloutWorker
from trainer.models import prepare_model
from trainer.spec import LearnerSpec, ModelSpec, ReasoningGymSource, TaskSpec, TinySpec

BUCKET_MIB = 32
ENVIRONMENT = {"env_vars": {"TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"}}


def copy_s(size_bytes: int) -> float:
    """Seconds of one memory copy, single thread, pages touched before."""
    torch.set_num_threads(1)
    source = torch.randn(size_bytes // 4)
    target = torch.empty_like(source).copy_(source)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


class Peak:
    """High-water mark of the two processes' private memory over what they held before, sampled every 5 ms."""

    def __init__(self, pids: list[int]) -> None:
        self._processes = [psutil.Process(pid) for pid in pids]
        self._stop = threading.Event()
        self.extra_bytes = 0

    def _private(self) -> int:
        return sum(info.rss - info.shared for info in (process.memory_info() for process in self._processes))

    def __enter__(self) -> "Peak":
        self._before = self._private()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.extra_bytes = max(self.extra_bytes, self._private() - self._before)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    model = ModelSpec(
        source="tiny",
        context_tokens=128,
        tiny=TinySpec(layers=10, hidden_size=1024, intermediate_size=3072, kv_heads=4),
    )
    task = TaskSpec(
        sources=[ReasoningGymSource(kind="reasoning_gym", generator="chain_sum", train_prompts=1)],
        template="{question}",
    )
    with tempfile.TemporaryDirectory() as scratch:
        directory = str(prepare_model(model, Path(scratch), 0, "float32"))
        ray.init(address="local", include_dashboard=False, log_to_driver=False, object_store_memory=2**30)
        engine = EngineConfig(directory, "float32", 128, 16, 2**28, 0.5, 1, 1, 0)
        learner = LearnerConfig(directory, "float32", LearnerSpec(), 1.0, 1, "cpu", 0, BUCKET_MIB * 2**20)
        pools: dict = {"train": [], "heldout": []}
        options = {"num_cpus": 1, "runtime_env": ENVIRONMENT}
        worker = ray.remote(RolloutWorker).options(max_concurrency=4, **options).remote(engine, task, pools, 0)
        rank = ray.remote(LearnerRank).options(**options).remote(learner, 0, task, pools)
        ray.get(rank.start.remote(*ray.get(rank.address.remote())))
        ray.get(worker.ready.remote())
        pids = [int(pid) for pid in ray.get([worker.__ray_call__.remote(pid_of), rank.__ray_call__.remote(pid_of)])]
        times, extras, size = [], [], 0
        for version in range(1, runs + 2):
            with Peak(pids) as peak:
                began = time.perf_counter()
                size = int(ray.get(rank.publish.remote([worker], version, 60)).bytes)
                times.append(time.perf_counter() - began)
            extras.append(peak.extra_bytes / 2**20)
        ray.shutdown()
    copy = copy_s(size)
    result = {
        "command": f"python benchmarks/publish.py {runs}",
        "machine": {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0))},
        "policy_mb": size / 1e6,
        "copy_s": copy,
        "target_s": 4 * copy + 0.05,
        "publish_first_s": times[0],
        "publish_s": spread(times[1:]),
        "object_store_limit_mib": 2 * BUCKET_MIB,
        "extra_private_mib": spread(extras[1:]),
    }
    print(json.dumps(result, indent=1))
    Path(__file__).with_name("results").mkdir(exist_ok=True)
    Path(__file__).with_name("results").joinpath("publish.json").write_text(json.dumps(result, indent=1) + "\n")


def pid_of(_: object) -> int:
    return os.getpid()


if __name__ == "__main__":
    main()
