"""What an allocation policy is worth in real training: `python benchmarks/allocation.py`, JSON and plot in results/.

Per task mix (`allocation/*.yaml`, complete specs) one base model is pre-trained and cached, and the actors are started
once; every run of a (policy, seed) then begins at the base weights with an optimizer, an allocator and a driver of its
own. A seed decides sampling and the allocator's ties and is shared by all policies: comparisons are paired by seed.
Finished runs are kept: a second call goes on where the first was stopped. Runs of a spec that has changed are dropped.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import yaml
from transformers.utils.logging import disable_progress_bar

from allocator.spec import AllocatorSpec
from benchmarks.allocation_figures import compare, plot, table
from benchmarks.overhead import cpu_name
from cluster.checkpoint import RunDirectory, write_atomically
from cluster.display import Display
from cluster.driver import Driver
from cluster.launch import Prepared, train
from cluster.metrics import Metrics
from cluster.placement import Actors, Cluster, wait
from cluster.spec import Spec, load_spec
from trainer.models import user_cache
from trainer.stages import PretrainStage
from trainer.tasks import Pools

MIXES = ("skewed", "graded", "balanced")
POLICIES = ("uniform", "cero", "sluice", "dapo")
SEEDS = range(2, 10)
"""0 and 1 are left out: they were looked at when the mixes were made."""
SECONDS = ("wall_s", "rollout_s", "learn_s", "publish_s", "other_s", "evaluate_s")
RESULTS = HERE / "results"
TIMEOUT_S = 300


@contextlib.contextmanager
def started(path: Path, base: Path, scratch: Path) -> Iterator["Bench"]:
    """The actors of the mix at `path`, running from its base model."""
    spec = from_base(load_spec(path), base)
    run = RunDirectory(scratch / "cluster")
    run.create()
    prepared = Prepared(spec, run)
    with (
        contextlib.closing(Metrics()) as metrics,
        Cluster(spec, run, prepared.model_dir, prepared.dtype, prepared.head_dir) as cluster,
    ):
        actors = cluster.start({"train": prepared.pools.train, "heldout": prepared.pools.heldout})
        yield Bench(path, base, scratch, prepared.pools, metrics, cluster, actors)


def from_base(spec: Spec, base: Path) -> Spec:
    """The spec without its pretrain stage, whose outcome is `base`."""
    model = spec.model.model_copy(update={"source": str(base)})
    recipe = [stage for stage in spec.recipe if not isinstance(stage, PretrainStage)]
    return spec.model_copy(update={"model": model, "recipe": recipe})


class Bench:
    """Actors that many runs share, one after the other, each beginning where every other began."""

    def __init__(
        self, path: Path, base: Path, scratch: Path, pools: Pools, metrics: Metrics, cluster: Cluster, actors: Actors
    ) -> None:
        self._path, self._base, self._scratch = path, base, scratch
        self._pools, self._metrics, self._cluster, self._actors = pools, metrics, cluster, actors
        self._learner("save", str(scratch / "start"))

    def run(self, policy: str, seed: int) -> dict[str, Any]:
        """One run from the base model: its curve, shares of its groups, its times."""
        began = time.perf_counter()
        # From the file each time: the defaults of an allocator section depend on its policy.
        spec = from_base(load_spec(self._path, [f"allocator.policy={policy}", f"run.seed={seed}"]), self._base)
        run = RunDirectory(self._scratch / f"{policy}-{seed}")
        run.create()
        self._reset(spec)
        display = Display(run.path.name)
        driver = Driver(spec, run, self._pools, self._actors, self._metrics, display, lambda: False, began)
        speed = driver.run_stages()["speed"]
        result = {"policy": policy, "seed": seed, **record(run)}
        result["seconds"] = {key: round(speed[key], 1) for key in SECONDS}
        shutil.rmtree(run.path)
        return result

    def _reset(self, spec: Spec) -> None:
        """As if just started: base weights, no moments, version 0 in service, the run's seeds, a fresh allocator."""
        import ray

        self._learner("load", str(self._scratch / "start"))
        self._learner("reset_optimizer")
        workers = list(self._actors.workers.values())
        self._learner("publish", workers, 0, TIMEOUT_S)
        seeded = [w.__ray_call__.remote(_reseed, spec.run.seed) for w in workers]
        wait(seeded, TIMEOUT_S, "workers to take the run's seed")
        ray.kill(self._actors.allocator)
        self._cluster._spec = spec
        self._actors = replace(self._actors, allocator=self._cluster._start_allocator(self._pools.train))

    def _learner(self, method: str, *args: Any) -> None:
        calls = [getattr(rank, method).remote(*args) for rank in self._actors.ranks]
        wait(calls, TIMEOUT_S, f"learner: {method}")


def _reseed(worker: Any, seed: int) -> None:
    """Inside a rollout worker, which otherwise keeps the seed that it was started with."""
    worker._run_seed = seed


def record(run: RunDirectory) -> dict[str, Any]:
    """What is kept of a run: its curve [rollouts, response tokens, held-out pass@1], a point per evaluation, and shares
    of its groups; `families` are pass@1 before and after."""
    rows = {row["epoch"]: row for row in run.metrics()}
    curve, families, rollouts, tokens = [], [], 0, 0
    for event in run.events():
        if event["event"] == "rolled_out":
            rollouts += event["rollouts"]
            tokens += rows[event["epoch"]]["tokens"]
        elif event["event"] == "evaluated":
            curve.append([rollouts, tokens, round(event["pass@1"], 5)])
            families.append({name: round(scores["pass@1"], 3) for name, scores in event["families"].items()})
    groups = sum(row["groups"] for row in rows.values())
    effective = sum(row["groups"] * row["effective_share"] for row in rows.values())
    return {
        "curve": curve,
        "groups": groups,
        "effective_share": round(effective / max(groups, 1), 4),
        "families": [families[0], families[-1]],
    }


def base_model(spec: Spec, data: dict) -> Path:
    """The mix's pre-trained model, made once per machine and spec; `data` is the spec as it was written."""
    stages = [stage for stage in spec.recipe if isinstance(stage, PretrainStage)]
    key = digest([data["model"], data["task"], [stage.model_dump() for stage in stages]])
    path = user_cache() / "benchmarks" / f"{spec.run.name}-{key}"
    if not path.exists():
        with tempfile.TemporaryDirectory() as scratch:
            run_dir = Path(scratch) / "base"
            train(spec.model_copy(update={"recipe": stages, "allocator": None}), run_dir, Display("base"))
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(run_dir / "models" / "policy", path)
    return path


def digest(data: Any) -> str:
    return hashlib.blake2b(json.dumps(data, sort_keys=True).encode(), digest_size=6).hexdigest()


class Results:
    """results/allocation.json and .svg: written anew after every run, so that a stop loses no finished one."""

    def __init__(self, directory: Path) -> None:
        self._json, self._plot = directory / "allocation.json", directory / "allocation.svg"
        directory.mkdir(exist_ok=True)
        self.runs: list[dict] = json.loads(self._json.read_text())["runs"] if self._json.is_file() else []

    def missing(self, mix: str, key: str, policies: list[str], seeds: list[int]) -> list[tuple[str, int]]:
        """Runs to do, all policies of a seed together; finished ones of `mix` under another spec are forgotten."""
        self.runs = [run for run in self.runs if run["mix"] != mix or run["spec"] == key]
        done = {(run["policy"], run["seed"]) for run in self.runs if run["mix"] == mix}
        return [(policy, seed) for seed in seeds for policy in policies if (policy, seed) not in done]

    def add(self, run: dict) -> None:
        self.runs.append(run)
        self.write()

    def report(self) -> dict[str, dict]:
        mixes = dict.fromkeys(run["mix"] for run in self.runs)
        return {mix: compare([run for run in self.runs if run["mix"] == mix]) for mix in mixes}

    def write(self) -> None:
        head = {
            "command": " ".join(["python", "benchmarks/allocation.py", *sys.argv[1:]]),
            "machine": {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()},
            "report": self.report(),
        }
        # A run is a line: it is read by programs, and a person compares the report above.
        lines = ",\n".join("  " + json.dumps(run) for run in self.runs)
        write_atomically(self._json, json.dumps(head, indent=1)[:-2] + f',\n "runs": [\n{lines}\n ]\n}}\n')

    def draw(self) -> None:
        plot(self.runs, self._plot)


def main() -> None:
    every = get_args(AllocatorSpec.model_fields["policy"].annotation)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mixes", nargs="+", default=MIXES, choices=MIXES)
    parser.add_argument("--policies", nargs="+", default=POLICIES, choices=every)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    args = parser.parse_args()
    logging.captureWarnings(True)
    disable_progress_bar()
    results = Results(RESULTS)
    for mix in args.mixes:
        path = HERE / "allocation" / f"{mix}.yaml"
        data = yaml.safe_load(path.read_text())
        key = digest(data)
        if missing := results.missing(mix, key, args.policies, args.seeds):
            base = base_model(load_spec(path), data)
            with tempfile.TemporaryDirectory() as scratch, started(path, base, Path(scratch)) as bench:
                for policy, seed in missing:
                    run = bench.run(policy, seed)
                    results.add({"mix": mix, "spec": key, **run})
                    print(mix, policy, seed, *(f"{point[2]:.3f}" for point in run["curve"]), flush=True)
    results.draw()
    print(table(results.report()))


if __name__ == "__main__":
    main()
