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

F_975 = {1: 647.8, 2: 39.0, 3: 15.44, 4: 9.60, 5: 7.15, 6: 5.82, 7: 4.99}
"""97.5 % quantiles of F with so many degrees of freedom above and below."""

Values = dict[tuple[int, int], float]
"""(checkpoint, seed) to a metric."""


def report(runs: Sequence[dict]) -> dict[str, Any]:
    """Scores by arm and checkpoint, printed claims and controls with verdicts, and the corner of mixture and size."""
    line = [run for run in runs if (run["mixture"], run["size"]) == ("general", "small")]
    marks = sorted({run["mark"] for run in line})
    arms = list(dict.fromkeys(run["arm"] for run in line))
    scores = {
        arm: {str(mark): _scores([r for r in line if (r["arm"], r["mark"]) == (arm, mark)]) for mark in marks}
        for arm in arms
    }
    return {"scores": scores, "claims": claims(line), "controls": controls(line), "corner": _corner(runs)}


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
    """What arXiv 2606.04272 prints, each claim reproduced, not reproduced or undecided."""
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
    judge("parallel beats SFT at pass@32", "parallel", "SFT", "pass@32", above)
    judge("parallel beats SFT then RL at pass@32", "parallel", "SFT then RL", "pass@32", above)
    judge("parallel is below RL at pass@1", "parallel", "RL", "pass@1", below)
    judge("parallel is below SFT then RL at pass@1", "parallel", "SFT then RL", "pass@1", below)
    judge("parallel is above SFT at pass@1", "parallel", "SFT", "pass@1", above)
    _judge_spread(line, found)
    return found


def controls(line: list[dict]) -> dict[str, dict[str, Any]]:
    """Parallel averaging against what its half learning rates and second batch ask for; no source reports these."""
    found: dict[str, dict[str, Any]] = {}
    for control in ("sum of losses", "alternating", "RL at half rate", "SFT at half rate", "merged weights"):
        for metric in ("pass@1", "pass@32"):
            gap = difference(by_place(line, "parallel", metric), by_place(line, control, metric))
            if gap is not None:
                _, low, high = gap["mean"]
                verdict = "better" if low > 0 else "worse" if high < 0 else "undecided"
                found[f"{control}, {metric}"] = {"verdict": verdict, **gap}
    return found


def _judge_spread(line: list[dict], found: dict[str, dict[str, Any]]) -> None:
    """Whether seeds of RL differ more from the earliest checkpoint than from the last: an F test of the two variances,
    two-sided at 5 %."""
    values = {
        mark: [run["pass@1"] for run in line if (run["arm"], run["mark"]) == ("RL", mark)]
        for mark in sorted({run["mark"] for run in line})
    }
    seeds = {len(v) for v in values.values()}
    if len(values) < 2 or len(seeds) > 1 or min(seeds) - 1 not in F_975:
        return
    spreads = {mark: float(np.std(v, ddof=1)) for mark, v in values.items()}
    first, last, limit = spreads[min(spreads)] ** 2, spreads[max(spreads)] ** 2, F_975[min(seeds) - 1]
    verdict = "reproduced" if first > limit * last else "not reproduced" if last > limit * first else "undecided"
    shown = {str(mark): round(spread, 4) for mark, spread in spreads.items()}
    found["seeds differ more at the earliest checkpoint"] = {"verdict": verdict, "spread_by_checkpoint": shown}


def _corner(runs: Sequence[dict]) -> dict[str, Any]:
    """RL from the end of pre-training by mixture and size, and which of the two moves its pass@1 more, by seed."""
    last = max((run["mark"] for run in runs), default=0)
    by_place: dict[str, dict[str, dict[int, float]]] = {}
    for run in runs:
        if run["mark"] == last and run["arm"] in ("base", "RL"):
            place = by_place.setdefault(f"{run['mixture']}, {run['size']}", {})
            place.setdefault(run["arm"], {})[run["seed"]] = run["pass@1"]
    found: dict[str, Any] = {
        place: {arm: _interval(list(values.values())) for arm, values in arms.items()}
        for place, arms in by_place.items()
    }
    start, mixed, grown = (
        by_place.get(p, {}).get("RL", {}) for p in ("general, small", "spelling, small", "general, large")
    )
    seeds = sorted(start.keys() & mixed.keys() & grown.keys())
    if len(seeds) > 1:
        gaps = {
            "mixture": _interval([mixed[s] - start[s] for s in seeds]),
            "size": _interval([grown[s] - start[s] for s in seeds]),
            "mixture_minus_size": _interval([mixed[s] - grown[s] for s in seeds]),
        }
        _, low, high = gaps["mixture_minus_size"]
        verdict = "the mixture" if low > 0 else "the size" if high < 0 else "undecided"
        found["larger lever"] = {"verdict": verdict, **gaps}
    return found


def _interval(values: list[float]) -> list[Any]:
    return [None if x is None else round(x, 4) for x in interval(values)]


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
    lines += ["", "| claim of the paper | verdict | difference |", "|---|---|---|"]
    for claim, judged in found["claims"].items():
        if "mean" in judged:
            shown = _signed(judged["mean"])
        else:
            shown = ", ".join(f"{int(m) / 1e6:g} M: {s:.4f}" for m, s in judged["spread_by_checkpoint"].items())
        lines.append(f"| {claim} | {judged['verdict']} | {shown} |")
    if found["controls"]:
        lines += ["", "| parallel averaging against | is | by |", "|---|---|---|"]
        lines += [
            f"| {name} | {judged['verdict']} | {_signed(judged['mean'])} |"
            for name, judged in found["controls"].items()
        ]
    lines += ["", "| mixture, size | pass@1 before RL | after |", "|---|---|---|"]
    lever = found["corner"].get("larger lever")
    for place, arms in found["corner"].items():
        if place != "larger lever":
            cells = (_points(arms[arm]) if arm in arms else "" for arm in ("base", "RL"))
            lines.append(f"| {place} | {' | '.join(cells)} |")
    if lever:
        gaps = ", ".join(f"{name.replace('_', ' ')} {_points(lever[name])}" for name in lever if name != "verdict")
        lines += ["", f"Larger lever: {lever['verdict']} ({gaps}, in points of pass@1 after RL)."]
    return "\n".join(lines)


def _signed(values: list[float]) -> str:
    return "{:+.4f} ({:+.4f} to {:+.4f})".format(*values)


def _points(values: list[Any]) -> str:
    mean, low, high = values
    return f"{100 * mean:.1f}" + ("" if low is None else f" ({100 * low:.1f} to {100 * high:.1f})")


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
