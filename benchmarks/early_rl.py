"""RL, SFT, SFT then RL and parallel averaging from checkpoints of a pre-training run: the claims of RL excursions
(arXiv 2606.04272) in our own numbers, with the controls that its half learning rates ask for.

    python benchmarks/early_rl.py              # 4 seeds of everything; goes on where it was stopped
    python benchmarks/early_rl.py --seeds 0 --parts line

Parts: `line`, all arms from five checkpoints; `controls`, at two of them; `corner`, RL from the end of pre-training on
two data mixtures and with two model sizes. Real service runs (early_rl/task.yaml), paired by seed. A seed decides
sampling and the order of data after pre-training, which happens once per mixture and size. Writes results/early_rl.json
and .svg.
"""

import argparse
import logging
import shutil
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
from benchmarks.early_rl_figures import plot, report, table
from cluster.spec import Spec, parse_spec

SPEC = HERE / "early_rl" / "task.yaml"
RESULTS = HERE / "results"
SEEDS = range(4)
EPOCHS, RATE = 30, 1e-3
MARKS = (300000, 600000, 1000000, 1700000, 2500000)
CONTROLLED = (600000, 1700000)
SIZES = {"small": {}, "large": {"hidden_size": 128, "intermediate_size": 512}}
LINE = ("base", "RL", "SFT", "SFT then RL", "parallel")
CONTROLS = ("sum of losses", "alternating", "RL at half rate", "SFT at half rate", "merged weights")
KEPT = ("RL", "SFT")
"""Arms whose weights others start from."""
NEEDS = {"SFT then RL": ("SFT",), "merged weights": KEPT}
EVALUATED = ("pass@1", "pass@8", "pass@32", "response_tokens_mean", "language_loss")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--parts", nargs="+", default=("line", "controls", "corner"))
    args = parser.parse_args()
    logging.captureWarnings(True)
    disable_progress_bar()
    key = digest([yaml.safe_load(SPEC.read_text()), EPOCHS, RATE, SIZES])
    results = Results(RESULTS / "early_rl.json", report)
    results.runs = [run for run in results.runs if run["spec"] == key]
    done = {place_of(run) for run in results.runs}
    places: dict[tuple[str, str], list[tuple[str, int, int]]] = {}
    for mixture, size, arm, mark, seed in grid(args.parts, args.seeds):
        if (mixture, size, arm, mark, seed) not in done:
            places.setdefault((mixture, size), []).append((arm, mark, seed))
    for (mixture, size), todo in places.items():
        data = data_of(mixture, size)
        models = base_model(parse_spec(data, str(SPEC)), data, keep=lambda path: path.name.startswith("tokens-"))
        spec = from_base(parse_spec(data, str(SPEC)), models / "policy")
        # What others start from may be gone, on another machine or with the cache: then it is made again.
        needed = {(other, mark, seed) for arm, mark, seed in todo for other in NEEDS.get(arm, ())}
        lost = sorted(run for run in needed - set(todo) if not kept(models, *run).is_dir())
        places_of_lost = {(mixture, size, *run) for run in lost}
        results.runs = [run for run in results.runs if place_of(run) not in places_of_lost]
        todo = lost + todo
        with tempfile.TemporaryDirectory() as scratch, started(spec, Path(scratch)) as bench:
            for arm, mark, seed in track(todo, f"{mixture}, {size}"):
                run = carried_out(bench, data, models, arm, mark, seed)
                results.add({"spec": key, "mixture": mixture, "size": size, **run})
    results.write()
    plot(results.runs, RESULTS / "early_rl.svg")
    print(table(report(results.runs)))


def place_of(run: dict) -> tuple[str, str, str, int, int]:
    return run["mixture"], run["size"], run["arm"], run["mark"], run["seed"]


def grid(parts: Any, seeds: Any) -> list[tuple[str, str, str, int, int]]:
    """Mixture, size, arm, checkpoint and seed of every run, a seed at a time."""
    found = []
    for seed in seeds:
        if "line" in parts:
            found += [("general", "small", arm, mark, seed) for mark in MARKS for arm in LINE]
        if "controls" in parts:
            found += [("general", "small", arm, mark, seed) for mark in CONTROLLED for arm in CONTROLS]
    corners = [(mixture, size) for size in SIZES for mixture in ("general", "spelling")]
    if "corner" in parts:
        found += [
            (*corner, arm, MARKS[-1], seed)
            for corner in corners if corner != ("general", "small")
            for seed in seeds for arm in ("base", "RL")
        ]  # fmt: skip
    return found


def data_of(mixture: str, size: str) -> dict[str, Any]:
    """The spec as data, for a mixture and a size; a mixture's pre-training sees as many tokens as another's."""
    data = yaml.safe_load(SPEC.read_text())
    data["model"]["tiny"] |= SIZES[size]
    data["recipe"][0]["mixture"] = mixture
    return data


def carried_out(bench: Bench, data: dict, models: Path, arm: str, mark: int, seed: int) -> dict[str, Any]:
    spec = from_base(with_recipe(data, recipe(arm, models, mark, seed), seed), models / "policy")
    name = f"{arm}-{mark}-{seed}".replace(" ", "-")
    with bench.run(spec, name) as (run, summary):
        if arm in KEPT:
            shutil.copytree(run.models / "policy", kept(models, arm, mark, seed), dirs_exist_ok=True)
        after = summary["evaluation"]["after"]
        rewards = [round(row["reward_mean"], 4) for row in run.metrics()]
        losses = {family: round(scores["language_loss"], 4) for family, scores in after["families"].items()}
        scores = {name: round(after[name], 5) for name in EVALUATED}
        took = round(summary["speed"]["wall_s"], 1)
        return {"arm": arm, "mark": mark, "seed": seed, **scores, "losses": losses, "reward": rewards, "wall_s": took}


def with_recipe(data: dict, stages: list[dict], seed: int) -> Spec:
    budgeted = any(stage["stage"] in ("rl", "parallel") for stage in stages)
    whole = {**data, "run": {**data["run"], "seed": seed}, "recipe": [*stages, {"stage": "evaluate"}]}
    return parse_spec(whole if budgeted else {**whole, "allocator": None}, str(SPEC))


def recipe(arm: str, models: Path, mark: int, seed: int) -> list[dict]:
    """The stages of an arm from a checkpoint; what starts from another arm's end starts from that of its own seed."""
    start = str(models / f"tokens-{mark}")
    rl = {"stage": "rl", "epochs": EPOCHS, "learning_rate": RATE, "start": start}
    sft = {"stage": "sft", "steps": EPOCHS, "batch_examples": 64, "learning_rate": RATE, "start": start}
    half = {"batch_examples": 64, "learning_rate": RATE}
    parallel = {"stage": "parallel", "epochs": EPOCHS, "learning_rate": RATE, "start": start, "sft": half}
    merged = {"stage": "merge", "weights": [0.5, 0.5]}
    return {
        "base": [{**merged, "models": [start, start]}],
        "RL": [rl],
        "SFT": [sft],
        "SFT then RL": [{**rl, "start": str(kept(models, "SFT", mark, seed))}],
        "parallel": [parallel],
        "sum of losses": [{**parallel, "combine": "sum_losses", "sft": {"batch_examples": 64}}],
        "alternating": [{**parallel, "combine": "alternate"}],
        "RL at half rate": [{**rl, "learning_rate": RATE / 2}],
        "SFT at half rate": [{**sft, "learning_rate": RATE / 2}],
        "merged weights": [{**merged, "models": [str(kept(models, other, mark, seed)) for other in KEPT]}],
    }[arm]


def kept(models: Path, arm: str, mark: int, seed: int) -> Path:
    return models / "ends" / f"{arm}-{mark}-{seed}"


if __name__ == "__main__":
    main()
