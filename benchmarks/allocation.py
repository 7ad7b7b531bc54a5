"""What an allocation policy is worth in real training: `python benchmarks/allocation.py`, JSON and plot in results/.

Per task mix (`allocation/*.yaml`, complete specs) one base model is pre-trained and cached, and the actors are started
once; every run of a (policy, seed) then begins at the base weights with an optimizer, an allocator and a driver of its
own. A seed decides sampling and the allocator's ties and is shared by all policies: comparisons are paired by seed.
Finished runs are kept: a second call goes on where the first was stopped. Runs of a spec that has changed are dropped.
"""

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import yaml
from transformers.utils.logging import disable_progress_bar

from allocator.spec import AllocatorSpec
from benchmarks.allocation_figures import compare, plot, table
from benchmarks.bench import Bench, Results, base_model, digest, from_base, started
from cluster.checkpoint import RunDirectory
from cluster.spec import load_spec

MIXES = ("skewed", "graded", "balanced")
POLICIES = ("uniform", "cero", "sluice", "dapo")
SEEDS = range(2, 10)
"""0 and 1 are left out: they were looked at when the mixes were made."""
SECONDS = ("wall_s", "rollout_s", "learn_s", "publish_s", "other_s", "evaluate_s")
RESULTS = HERE / "results"


def carried_out(bench: Bench, path: Path, base: Path, policy: str, seed: int) -> dict[str, Any]:
    """One run from the base model: its curve, shares of its groups, its times."""
    # From the file each time: the defaults of an allocator section depend on its policy.
    spec = from_base(load_spec(path, [f"allocator.policy={policy}", f"run.seed={seed}"]), base)
    with bench.run(spec, f"{policy}-{seed}") as (run, summary):
        seconds = {key: round(summary["speed"][key], 1) for key in SECONDS}
        return {"policy": policy, "seed": seed, **record(run), "seconds": seconds}


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


def missing(results: Results, mix: str, key: str, policies: list[str], seeds: list[int]) -> list[tuple[str, int]]:
    """Runs to do, all policies of a seed together; finished ones of `mix` under another spec are forgotten."""
    results.runs = [run for run in results.runs if run["mix"] != mix or run["spec"] == key]
    done = {(run["policy"], run["seed"]) for run in results.runs if run["mix"] == mix}
    return [(policy, seed) for seed in seeds for policy in policies if (policy, seed) not in done]


def report(runs: Sequence[dict]) -> dict[str, dict]:
    mixes = dict.fromkeys(run["mix"] for run in runs)
    return {mix: compare([run for run in runs if run["mix"] == mix]) for mix in mixes}


def main() -> None:
    every = get_args(AllocatorSpec.model_fields["policy"].annotation)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mixes", nargs="+", default=MIXES, choices=MIXES)
    parser.add_argument("--policies", nargs="+", default=POLICIES, choices=every)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    args = parser.parse_args()
    logging.captureWarnings(True)
    disable_progress_bar()
    results = Results(RESULTS / "allocation.json", report)
    for mix in args.mixes:
        path = HERE / "allocation" / f"{mix}.yaml"
        data = yaml.safe_load(path.read_text())
        key = digest(data)
        if todo := missing(results, mix, key, args.policies, args.seeds):
            base = base_model(load_spec(path), data) / "policy"
            spec = from_base(load_spec(path), base)
            with tempfile.TemporaryDirectory() as scratch, started(spec, Path(scratch)) as bench:
                for policy, seed in todo:
                    run = carried_out(bench, path, base, policy, seed)
                    results.add({"mix": mix, "spec": key, **run})
                    print(mix, policy, seed, *(f"{point[2]:.3f}" for point in run["curve"]), flush=True)
    plot(results.runs, RESULTS / "allocation.svg")
    print(table(report(results.runs)))


if __name__ == "__main__":
    main()
