"""Many runs on one set of actors, one after the other, each beginning where every other began; and where results stay.

A run of the service spends most of a benchmark's time on starting engines. Here they are started once; what a run may
change (weights, moments, learner spec, seeds, allocator, driver) is set back before each.
"""

import contextlib
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.learner import LearnerRank
from actors.learner_config import LearnerConfig
from benchmarks.overhead import cpu_name
from cluster.checkpoint import RunDirectory, write_atomically
from cluster.display import Display
from cluster.driver import Driver
from cluster.launch import Prepared, train
from cluster.metrics import Metrics
from cluster.placement import Actors, Cluster
from cluster.sinks import Sinks
from cluster.spec import Spec
from cluster.waits import wait
from trainer.models import user_cache
from trainer.stages import PretrainStage

TIMEOUT_S = 300


@contextlib.contextmanager
def started(spec: Spec, scratch: Path) -> Iterator["Bench"]:
    """The actors of a spec, running from its model."""
    run = RunDirectory(scratch / "cluster")
    run.create()
    prepared = Prepared(spec, run)
    with (
        contextlib.closing(Metrics()) as metrics,
        Cluster(spec, run, prepared.model_dir, prepared.dtype, prepared.head_dir) as cluster,
    ):
        actors = cluster.start({"train": prepared.pools.train, "heldout": prepared.pools.heldout})
        yield Bench(scratch, prepared, metrics, cluster, actors)


def from_base(spec: Spec, base: Path) -> Spec:
    """The spec without its pretrain stages, whose outcome is `base`."""
    model = spec.model.model_copy(update={"source": str(base)})
    recipe = [stage for stage in spec.recipe if not isinstance(stage, PretrainStage)]
    return spec.model_copy(update={"model": model, "recipe": recipe})


class Bench:
    """Actors that many runs share."""

    def __init__(self, scratch: Path, prepared: Prepared, metrics: Metrics, cluster: Cluster, actors: Actors) -> None:
        self._scratch, self._pools, self._metrics = scratch, prepared.pools, metrics
        self._vocabulary = prepared.vocabulary
        self._cluster, self._actors = cluster, actors
        self._learner("save", str(scratch / "start"))

    @contextlib.contextmanager
    def run(self, spec: Spec, name: str) -> Iterator[tuple[RunDirectory, dict[str, Any]]]:
        """One run from the base model, of a spec with the same model, task and actors; its directory and summary, both
        gone afterwards."""
        began = time.perf_counter()
        run = RunDirectory(self._scratch / name)
        run.create()
        self._reset(spec)
        sinks = Sinks([], run, name)
        driver = Driver(
            spec,
            run,
            self._pools,
            self._vocabulary,
            self._actors,
            self._metrics,
            sinks,
            Display(name),
            lambda: False,
            began,
        )
        yield run, driver.run_stages()
        shutil.rmtree(run.path)

    def _reset(self, spec: Spec) -> None:
        """As if just started: base weights, no moments, version 0 in service, the run's seeds, a fresh allocator."""
        import ray

        self._learner("load", str(self._scratch / "start"))
        self._learner("reset_optimizer")
        workers = list(self._actors.workers.values())
        self._learner("publish", workers, 0, TIMEOUT_S)
        config = _respecify(self._cluster, spec)
        calls = [w.__ray_call__.remote(_reseed, spec.run.seed) for w in workers]
        calls += [rank.__ray_call__.remote(_reconfigure, config) for rank in self._actors.ranks]
        wait(calls, TIMEOUT_S, "workers and ranks to take the run's seeds and spec")
        if self._actors.allocator is not None:
            ray.kill(self._actors.allocator)
        self._actors = replace(self._actors, allocator=self._cluster._start_allocator(self._pools.train))

    def _learner(self, method: str, *args: Any) -> None:
        calls = [getattr(rank, method).remote(*args) for rank in self._actors.ranks]
        wait(calls, TIMEOUT_S, f"learner: {method}")


def _respecify(cluster: Cluster, spec: Spec) -> LearnerConfig:
    """What the cluster starts from now on is of this spec; gives what its learner ranks are to take."""
    cluster._spec = cluster._configs._spec = spec
    return cluster._configs.learner()


def _reseed(worker: Any, seed: int) -> None:
    """Inside a rollout worker, whose sampling otherwise keeps the seed that it was started with."""
    worker._handover._run_seed = seed


def _reconfigure(rank: LearnerRank, config: LearnerConfig) -> None:
    """Inside a learner rank; minibatches are drawn by the seed in its config, batches of examples by the run's."""
    rank._config = config
    rank._examples.clear()


def base_model(spec: Spec, data: dict, keep: Callable[[Path], bool] = lambda _: False) -> Path:
    """Directory of what the spec's pretrain stages leave, made once per machine; `data` is the spec as written.

    `policy` is the model; exports that `keep` chooses stand beside it.
    """
    stages = [stage for stage in spec.recipe if isinstance(stage, PretrainStage)]
    key = digest([data["model"], data["task"], spec.run.seed, [stage.model_dump() for stage in stages]])
    path = user_cache() / "benchmarks" / f"{spec.run.name}-{key}"
    if not path.exists():
        with tempfile.TemporaryDirectory() as scratch:
            run_dir = Path(scratch) / "base"
            train(spec.model_copy(update={"recipe": stages, "allocator": None}), run_dir, Display("base"))
            for model in (run_dir / "models").iterdir():
                if model.name != "policy" and not keep(model):
                    shutil.rmtree(model)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(run_dir / "models", path)
    return path


def digest(data: Any) -> str:
    return hashlib.blake2b(json.dumps(data, sort_keys=True).encode(), digest_size=6).hexdigest()


class Results:
    """A JSON file of runs, written anew after every one, so that a stop loses no finished one."""

    def __init__(self, path: Path, report: Callable[[Sequence[dict]], Any]) -> None:
        self.path, self._report = path, report
        path.parent.mkdir(exist_ok=True)
        self.runs: list[dict] = json.loads(path.read_text())["runs"] if path.is_file() else []

    def add(self, run: dict) -> None:
        self.runs.append(run)
        self.write()

    def write(self) -> None:
        head = {
            "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
            "machine": {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()},
            "report": self._report(self.runs),
        }
        # A run is a line: it is read by programs, and a person compares the report above.
        lines = ",\n".join("  " + json.dumps(run) for run in self.runs)
        write_atomically(self.path, json.dumps(head, indent=1)[:-2] + f',\n "runs": [\n{lines}\n ]\n}}\n')
