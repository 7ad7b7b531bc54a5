"""Five objectives on one model and task, on-policy and with four minibatches per batch of rollouts: do the printed
orderings of RGRA's paper (arXiv 2603.18756) hold at a scale anyone can afford?

    python benchmarks/objectives.py            # 8 seeds of everything; goes on where it was stopped
    python benchmarks/objectives.py --seeds 0 1 --arms RGRA GRPO

Real service runs, all from one pre-trained model (objectives/task.yaml), paired by seed: a seed decides sampling and
the order of prompts. Writes results/objectives.json and .svg.
"""

import argparse
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import yaml
from rich.progress import track
from transformers.utils.logging import disable_progress_bar

from benchmarks.bench import Bench, Results, base_model, digest, from_base, started
from benchmarks.objectives_figures import plot, report, table
from cluster.checkpoint import RunDirectory
from cluster.spec import load_spec
from trainer.objective import ObjectiveSpec

ARMS = {"RGRA": "rgra_paper", "GRPO": "grpo", "GRPO-pos": "grpo_pos", "RAFT": "raft", "REINFORCE": "reinforce"}
"""Named as in the paper; the presets hold its losses, divergence included."""
MINIBATCHES = {"on-policy": 1, "4 minibatches": 4}
SEEDS = range(8)
SPEC = HERE / "objectives" / "task.yaml"
RESULTS = HERE / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    args = parser.parse_args()
    logging.captureWarnings(True)
    disable_progress_bar()
    data = yaml.safe_load(SPEC.read_text())
    key = digest([data, {arm: ObjectiveSpec(name=preset).model_dump() for arm, preset in ARMS.items()}, MINIBATCHES])
    results = Results(RESULTS / "objectives.json", report)
    results.runs = [run for run in results.runs if run["spec"] == key]
    done = {(run["arm"], run["mode"], run["seed"]) for run in results.runs}
    wanted = [(arm, mode, seed) for seed in args.seeds for mode in MINIBATCHES for arm in args.arms]
    if todo := [run for run in wanted if run not in done]:
        base = base_model(load_spec(SPEC), data) / "policy"
        with (
            tempfile.TemporaryDirectory() as scratch,
            started(from_base(load_spec(SPEC), base), Path(scratch)) as bench,
        ):
            for arm, mode, seed in track(todo, "runs"):
                results.add({"spec": key, **carried_out(bench, base, arm, mode, seed)})
    results.write()
    plot(results.runs, RESULTS / "objectives.svg")
    print(table(report(results.runs)))


def carried_out(bench: Bench, base: Path, arm: str, mode: str, seed: int) -> dict[str, Any]:
    settings = [
        f"learner.objective.name={ARMS[arm]}", f"learner.minibatches={MINIBATCHES[mode]}", f"run.seed={seed}",
    ]  # fmt: skip
    spec = from_base(load_spec(SPEC, settings), base)
    with bench.run(spec, f"{arm}-{mode}-{seed}".replace(" ", "-")) as (run, summary):
        took = round(summary["speed"]["wall_s"], 1)
        return {"arm": arm, "mode": mode, "seed": seed, **record(run, summary), "wall_s": took}


def record(run: RunDirectory, summary: dict[str, Any]) -> dict[str, Any]:
    """Held-out scores before and after, and per epoch reward, response tokens and entropy."""
    rows = run.metrics()
    keys = ("pass@1", "pass@k", "response_tokens_mean", "entropy")
    evaluation = summary["evaluation"]
    return {
        "before": {k: round(evaluation["before"][k], 5) for k in keys},
        "after": {k: round(evaluation["after"][k], 5) for k in keys},
        "reward": [round(row["reward_mean"], 4) for row in rows],
        "response_tokens": [round(row["response_tokens_mean"], 3) for row in rows],
        "entropy": [round(row["entropy"], 4) if "entropy" in row else None for row in rows],
        "updates": [row["updates"] for row in rows],
    }


if __name__ == "__main__":
    main()
