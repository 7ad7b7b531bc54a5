"""What the drafter and the adaptive rollout engine gain, on a task with a heavy tail (benchmarks/rollout/README.md).

    python benchmarks/rollout.py training   # whole runs, random drafter to the end, with and without speculation
    python benchmarks/rollout.py frozen     # what further target updates cost a drafter that is no longer trained
    python benchmarks/rollout.py phases     # rollout phases alone: plain vLLM, every static K, schedules, n-grams, ours
    python benchmarks/rollout.py smollm2 GSM8K.jsonl  # the same for SmolLM2 on a chat task, its drafter trained first

A run that is finished, of the same spec, is not run again: a stopped benchmark goes on where it was.
Each part writes its entry of benchmarks/results/rollout.json. `training` comes first: the others start from the policy
and the drafter that its first run leaves.
"""

import json
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "rollout")]
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "token")

import collatz
import numpy as np

from benchmarks.rollout_phases import phases, smollm2
from cluster.checkpoint import RunDirectory
from cluster.display import Display
from cluster.launch import train
from cluster.spec import Spec, dump_spec, load_spec
from trainer.models import user_cache

RESULTS = HERE / "results" / "rollout.json"
CACHE = user_cache() / "benchmarks" / "collatz"
LAYERS, PRETRAIN_STEPS = 24, 1200
SEEDS, EPOCHS, ROLLOUTS = 3, 60, 64
ARMS = {"plain": ["drafter.method=none"], "tailrace": []}
FROZEN_EPOCHS = 30


def main(parts: Sequence[str]) -> None:
    work = {
        "training": training,
        "frozen": frozen,
        "phases": lambda: phases(spec_of("phases", 0), run_directory("tailrace", 0).path / "models"),
        "smollm2": lambda: smollm2(Path(parts[1])),
    }
    for part in parts[:1] or ["training", "frozen", "phases"]:
        began = time.time()
        result = work[part]()
        everything = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
        everything[part] = {
            "command": f"python benchmarks/rollout.py {part}",
            "machine": machine(),
            "took_s": round(time.time() - began),
            **result,
        }
        RESULTS.write_text(json.dumps(everything, indent=1) + "\n")


def machine() -> str:
    return f"{os.cpu_count()} cores, {platform.machine()}, no accelerator"


def spec_of(run_name: str, seed: int, *settings: str) -> Spec:
    collatz.prepare(CACHE, layers=LAYERS, steps=PRETRAIN_STEPS)
    return load_spec(
        HERE / "rollout" / "collatz.yaml",
        [
            f"run.name={run_name}", f"run.seed={seed}", f"model.source={CACHE}/deep-{LAYERS}-{PRETRAIN_STEPS}",
            f"task.sources.0.path={CACHE}/problems.jsonl", f"recipe.0.epochs={EPOCHS}",
            f"allocator.budget_rollouts={EPOCHS * ROLLOUTS}", *settings,
        ],
    )  # fmt: skip


# --- training ---------------------------------------------------------------------------------------------------------


def training() -> dict[str, Any]:
    """SEEDS pairs of whole runs."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for seed in range(SEEDS):
        for arm in list(ARMS) if seed % 2 == 0 else list(ARMS)[::-1]:
            runs.setdefault(arm, []).append(measured(arm, seed, *ARMS[arm]))
    pairs = list(zip(runs["plain"], runs["tailrace"], strict=True))
    result = {
        "target": f"Qwen3-shaped, {LAYERS} layers (4 trained, the others pass through), hidden 128",
        "epochs": EPOCHS,
        "rollouts_per_epoch": ROLLOUTS,
        "whole_run_speedup": spread([p["epochs_s"] / t["epochs_s"] for p, t in pairs]),
        "wall_speedup": spread([p["wall_s"] / t["wall_s"] for p, t in pairs]),
        "rollout_speedup": spread([p["rollout_s"] / t["rollout_s"] for p, t in pairs]),
        "late_rollout_speedup": spread([p["late_rollout_s"] / t["late_rollout_s"] for p, t in pairs]),
        "late_whole_speedup": spread([p["late_epochs_s"] / t["late_epochs_s"] for p, t in pairs]),
        "reward": reward_parity(pairs),
        "runs": runs,
    }
    print(json.dumps({k: v for k, v in result.items() if k != "runs"}, indent=1))
    return result


def frozen() -> dict[str, Any]:
    """Where the first run ended two more begin, from its policy and its drafter: one goes on training the drafter."""
    left = run_directory("tailrace", 0).path / "models"
    settings = [
        f"model.source={left}/policy", f"drafter.source={left}/drafter", "drafter.train.cold_start_s=0",
        f"recipe.0.epochs={FROZEN_EPOCHS}", f"allocator.budget_rollouts={FROZEN_EPOCHS * ROLLOUTS}",
    ]  # fmt: skip
    runs = {
        "continued": measured("continued", 0, *settings),
        "frozen": measured("frozen", 0, *settings, "drafter.train.enabled=false"),
    }
    changes = {}
    for arm, run in runs.items():
        lengths = np.array(run["accept_length_by_epoch"], float)
        third = len(lengths) // 3
        changes[arm] = {
            "first_third": lengths[:third].mean(),
            "last_third": lengths[-third:].mean(),
            "change_per_update": float(np.polyfit(np.arange(len(lengths)), lengths, 1)[0]),
            "epochs_s": run["epochs_s"],
        }
        print(arm, changes[arm], flush=True)
    return {"epochs": FROZEN_EPOCHS, "acceptance": changes, "runs": runs}


def run_directory(arm: str, seed: int) -> RunDirectory:
    return RunDirectory(CACHE / "runs" / f"{arm}-{seed}")


def measured(arm: str, seed: int, *settings: str) -> dict[str, Any]:
    """One run, or the figures of the one that is already there."""
    run, spec = run_directory(arm, seed), spec_of(f"{arm}-{seed}", seed, *settings)
    same = (run.path / "spec.yaml").is_file() and (run.path / "spec.yaml").read_text() == dump_spec(spec)
    if not (same and (run.path / "summary.json").is_file()):
        shutil.rmtree(run.path, ignore_errors=True)
        train(spec, run.path, Display(arm))
    summary, rows = json.loads((run.path / "summary.json").read_text()), run.metrics()
    seconds = np.array([sum(v for k, v in row["time"].items() if k != "tokens_per_s") for row in rows])
    rollout = np.array([row["time"]["rollout_s"] for row in rows])
    bubbles = [row["bubbles"] for row in rows]
    late = [s for b in bubbles for s in b["give_back_s"]]
    half = len(rows) // 2
    beside = sum(b["late_s"] + b["publish_s"] for b in bubbles) + sum(row.get("features_s", 0.0) for row in rows)
    figures = {
        "seed": seed,
        "wall_s": summary["speed"]["wall_s"],
        "epochs_s": seconds.sum(),
        "rollout_s": rollout.sum(),
        "learn_s": sum(row["time"]["learn_s"] for row in rows),
        "late_epochs_s": seconds[half:].sum(),
        "late_rollout_s": rollout[half:].sum(),
        "tokens": summary["rollouts"]["tokens"],
        "speculation": summary["speculation"],
        "bubbles": summary["bubbles"],
        "harvested_of_long_stretches": (
            summary["bubbles"]["long_harvested_s"] / summary["bubbles"]["long_idle_s"]
            if summary["bubbles"]["long_idle_s"] else None
        ),
        "give_back_s": quantiles(late) if late else None,
        "cold_start_share": summary["bubbles"]["critical_s"] / seconds.sum(),
        "beside_critical_path_share": beside / seconds.sum(),
        "moved": sum(event["event"] == "moved" for event in run.events()),
        "accept_length_by_epoch": [row["speculation"]["accept_length"] for row in rows],
        "first_draft_by_epoch": [(row["speculation"]["acceptance_by_position"] or [None])[0] for row in rows],
        "drafter_version_by_epoch": [row["speculation"]["drafter_version"] for row in rows],
        "heldout_by_epoch": [b["heldout_accept_length"] for b in bubbles],
        "rewards": [row["reward_mean"] for row in rows],
        "epoch_s": [round(float(s), 3) for s in seconds],
        "rollout_s_by_epoch": [round(float(s), 3) for s in rollout],
    }  # fmt: skip
    print(arm, seed, {k: v for k, v in figures.items() if not isinstance(v, list)}, flush=True)
    return figures


def reward_parity(pairs: Sequence[tuple[dict, dict]]) -> dict[str, Any]:
    """Paired differences of the mean reward, by tenths of the run, with their standard errors over seeds."""
    difference = np.array([np.subtract(t["rewards"], p["rewards"]) for p, t in pairs])
    tenths = difference.reshape(len(pairs), 10, -1).mean(2)
    return {
        "plain_last_tenth": [float(np.mean(p["rewards"][-len(p["rewards"]) // 10 :])) for p, _ in pairs],
        "tailrace_last_tenth": [float(np.mean(t["rewards"][-len(t["rewards"]) // 10 :])) for _, t in pairs],
        "difference_by_tenth": tenths.mean(0).round(4).tolist(),
        "standard_error_by_tenth": (tenths.std(0, ddof=1) / len(pairs) ** 0.5).round(4).tolist(),
        "difference": float(difference.mean()),
        "standard_error": float(difference.mean(1).std(ddof=1) / len(pairs) ** 0.5),
    }


def quantiles(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "p90": float(np.quantile(values, 0.9)), "max": max(values)}


def spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "all": [round(v, 4) for v in values],
    }


if __name__ == "__main__":
    main(sys.argv[1:])
