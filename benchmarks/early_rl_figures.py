"""Figures of the early-RL benchmark: scores by checkpoint and arm, and verdicts on the printed claims.

Pure but for `plot`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.allocation_figures import interval

ARMS = {"base": "#868e96", "RL": "#0b7285", "SFT": "#e8590c", "SFT then RL": "#ae3ec9", "parallel": "#2b8a3e"}
METRICS = ("pass@1", "pass@8", "pass@32", "general_loss")
GENERAL = ("add_three", "add_two_digits")
"""Families that are pre-trained on and never reinforced."""
KEPT_LOSS = 0.02
"""Nats per token by which a general loss may rise and still count as kept."""

Values = dict[tuple[int, int], float]
"""(checkpoint, seed) to a metric."""


def report(runs: Sequence[dict]) -> dict[str, Any]:
    """Scores by arm and checkpoint, claims with verdicts, and the corner of mixture and size."""
    line = [run for run in runs if (run["mixture"], run["size"]) == ("general", "small")]
    marks = sorted({run["mark"] for run in line})
    arms = list(dict.fromkeys(run["arm"] for run in line))
    scores = {
        arm: {str(mark): _scores([r for r in line if (r["arm"], r["mark"]) == (arm, mark)]) for mark in marks}
        for arm in arms
    }
    return {"scores": scores, "claims": claims(line), "corner": _corner(runs)}


def general_loss(run: dict) -> float:
    """Mean next-token loss of the families that were never reinforced, nats."""
    return float(np.mean([run["losses"][family] for family in GENERAL]))


def value(run: dict, metric: str) -> float:
    return general_loss(run) if metric == "general_loss" else run[metric]


def _scores(runs: list[dict]) -> dict[str, Any]:
    if not runs:
        return {}
    found: dict[str, Any] = {"seeds": len(runs)}
    for metric in METRICS:
        values = [value(run, metric) for run in runs]
        found[metric] = round(float(np.mean(values)), 4)
        found[f"{metric} spread"] = round(float(np.std(values, ddof=1)), 4) if len(values) > 1 else None
    return found


def by_place(line: list[dict], arm: str, metric: str) -> Values:
    return {(run["mark"], run["seed"]): value(run, metric) for run in line if run["arm"] == arm}


def difference(ours: Values, theirs: Values) -> dict[str, Any] | None:
    """Ours minus theirs, paired: mean over checkpoints per seed, then [mean, low, high] over seeds (95 %, Student's t);
    and the mean at every checkpoint. None without two seeds that have the same checkpoints."""
    both = ours.keys() & theirs.keys()
    marks = sorted({mark for mark, _ in both})
    seeds = [seed for seed in sorted({seed for _, seed in both}) if all((mark, seed) in both for mark in marks)]
    if len(seeds) < 2:
        return None
    gaps = np.array([[ours[mark, seed] - theirs[mark, seed] for mark in marks] for seed in seeds])
    return {
        "mean": [round(float(x), 4) for x in interval(gaps.mean(1).tolist())],  # type: ignore[arg-type]
        "by_checkpoint": {str(mark): round(float(gap), 4) for mark, gap in zip(marks, gaps.mean(0), strict=True)},
    }


def claims(line: list[dict]) -> dict[str, dict[str, Any]]:
    """The claims of OBJECTIVES.md B.4 and E, each reproduced, not reproduced or undecided."""
    found: dict[str, dict[str, Any]] = {}

    def judge(claim: str, ours: str, theirs: str, metric: str, wanted: Callable[[float, float], int]) -> None:
        gap = difference(by_place(line, ours, metric), by_place(line, theirs, metric))
        if gap is not None:
            _, low, high = gap["mean"]
            verdict = {1: "reproduced", -1: "not reproduced", 0: "undecided"}[wanted(low, high)]
            found[claim] = {"verdict": verdict, **gap}

    def above(low: float, high: float) -> int:
        return 1 if low > 0 else -1 if high < 0 else 0

    def below(low: float, high: float) -> int:
        return -above(low, high)

    def kept(low: float, high: float) -> int:
        return 1 if high < KEPT_LOSS else -1 if low > KEPT_LOSS else 0

    judge("RL lifts pass@1", "RL", "base", "pass@1", above)
    judge("RL lifts pass@32 (expansion)", "RL", "base", "pass@32", above)
    judge("SFT then RL lifts pass@1 over SFT", "SFT then RL", "SFT", "pass@1", above)
    judge("SFT then RL lowers pass@32 under SFT (sharpening)", "SFT then RL", "SFT", "pass@32", below)
    judge("RL keeps the general loss", "RL", "base", "general_loss", kept)
    judge("SFT raises the general loss", "SFT", "base", "general_loss", above)
    judge("parallel keeps the general loss", "parallel", "base", "general_loss", kept)
    judge("parallel beats RL at pass@32", "parallel", "RL", "pass@32", above)
    judge("parallel beats SFT then RL at pass@32", "parallel", "SFT then RL", "pass@32", above)
    judge("parallel is below RL at pass@1", "parallel", "RL", "pass@1", below)
    judge("parallel is above SFT at pass@1", "parallel", "SFT", "pass@1", above)
    for control in ("sum of losses", "alternating", "RL at half rate", "SFT at half rate", "merged weights"):
        for metric in ("pass@1", "pass@32"):
            judge(f"parallel beats {control} at {metric}", "parallel", control, metric, above)
    _judge_spread(line, found)
    return found


def _judge_spread(line: list[dict], found: dict[str, dict[str, Any]]) -> None:
    """Whether seeds of RL differ more from the earliest checkpoint than from the last; no interval of four seeds says
    so, so it is told as a ratio."""
    marks = sorted({run["mark"] for run in line})
    spreads = [
        float(np.std([run["pass@1"] for run in line if (run["arm"], run["mark"]) == ("RL", mark)] or [0], ddof=0))
        for mark in marks
    ]
    if len(marks) > 1 and spreads[-1]:
        verdict = "undecided" if spreads[0] < 2 * spreads[-1] else "reproduced"
        shown = {str(mark): round(spread, 4) for mark, spread in zip(marks, spreads, strict=True)}
        found["seeds differ more at the earliest checkpoint"] = {"verdict": verdict, "spread_by_checkpoint": shown}


def _corner(runs: Sequence[dict]) -> dict[str, Any]:
    last = max((run["mark"] for run in runs), default=0)
    found: dict[str, Any] = {}
    for run in runs:
        if run["mark"] == last and run["arm"] in ("base", "RL"):
            place = found.setdefault(f"{run['mixture']}, {run['size']}", {})
            place.setdefault(run["arm"], []).append(run["pass@1"])
    for place in found.values():
        for arm, values in place.items():
            place[arm] = [round(x, 4) if x is not None else None for x in interval(values)]
    return found


def table(found: dict[str, Any]) -> str:
    """Markdown: scores, claims, corner."""
    lines = []
    for metric in METRICS:
        marks = list(next(iter(found["scores"].values()), {}))
        lines += ["", f"**{metric}**", "", "| arm | " + " | ".join(f"{int(m) / 1e6:g} M" for m in marks) + " |"]
        lines.append("|---" * (len(marks) + 1) + "|")
        for arm, scores in found["scores"].items():
            cells = [_cell(scores[mark], metric) for mark in marks]
            if any(cells):
                lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    lines += ["", "| claim | verdict | difference |", "|---|---|---|"]
    for claim, judged in found["claims"].items():
        if "mean" in judged:
            shown = "{:+.4f} ({:+.4f} to {:+.4f})".format(*judged["mean"])
        else:
            shown = ", ".join(f"{int(m) / 1e6:g} M: {s:.4f}" for m, s in judged["spread_by_checkpoint"].items())
        lines.append(f"| {claim} | {judged['verdict']} | {shown} |")
    lines += ["", "| mixture, size | pass@1 before RL | after |", "|---|---|---|"]
    for place, arms in found["corner"].items():
        before, after = (f"{100 * arms[a][0]:.1f}" if a in arms else "" for a in ("base", "RL"))
        lines.append(f"| {place} | {before} | {after} |")
    return "\n".join(lines)


def _cell(scores: dict[str, Any], metric: str) -> str:
    if not scores:
        return ""
    scale, digits = (1, 3) if metric == "general_loss" else (100, 1)
    spread = scores[f"{metric} spread"]
    return f"{scale * scores[metric]:.{digits}f}" + ("" if spread is None else f" ± {scale * spread:.{digits}f}")


def plot(runs: Sequence[dict], path: Path) -> None:
    """Every metric by pre-training tokens, mean and range of the seeds."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "tailrace"
    from matplotlib import pyplot

    line = [run for run in runs if (run["mixture"], run["size"]) == ("general", "small")]
    figure, axes = pyplot.subplots(1, len(METRICS), figsize=(4 * len(METRICS), 3.6))
    for axis, metric in zip(axes, METRICS, strict=True):
        for arm, colour in ARMS.items():
            values = by_place(line, arm, metric)
            marks = sorted({mark for mark, _ in values})
            at = [[v for (m, _), v in values.items() if m == mark] for mark in marks]
            if marks:
                x = [mark / 1e6 for mark in marks]
                axis.plot(x, [np.mean(v) for v in at], color=colour, marker="o", ms=3, label=arm)
                axis.fill_between(x, [min(v) for v in at], [max(v) for v in at], color=colour, alpha=0.12, lw=0)
        axis.set_title(metric.replace("_", " ") + (" (nats)" if metric == "general_loss" else ""))
        axis.set_xlabel("million tokens of pre-training")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
