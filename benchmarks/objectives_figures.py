"""Figures of the objectives benchmark: means and differences over seeds, and verdicts on the printed orderings.

Pure but for `plot`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.allocation_figures import interval

REFERENCE = "GRPO"
COLOURS = {"RGRA": "#0b7285", "GRPO": "#e8590c", "GRPO-pos": "#ae3ec9", "RAFT": "#868e96", "REINFORCE": "#2b8a3e"}
CLOSE = 0.02
"""RGRA is as good as GRPO where it is not worse by more than this much pass@1; all of the interval must say so."""
FALLEN = 0.5
"""A run has collapsed where its reward ends below this share of what it began with, or its responses are this much
shorter (arXiv 2603.18756, dynamics: minimal answers within the first steps)."""
LAST = 5
"""Epochs that an end is the mean of."""


def report(runs: Sequence[dict]) -> dict[str, Any]:
    """By mode: figures of every arm, and verdicts on the orderings."""
    modes = dict.fromkeys(run["mode"] for run in runs)
    return {mode: _of_mode([run for run in runs if run["mode"] == mode]) for mode in modes}


def _of_mode(runs: list[dict]) -> dict[str, Any]:
    arms: dict[str, dict[int, dict]] = {}
    for run in runs:
        arms.setdefault(run["arm"], {})[run["seed"]] = run
    figures = {arm: _figures(list(of_seed.values())) for arm, of_seed in arms.items()}
    for arm, of_seed in arms.items():
        seeds = sorted(of_seed.keys() & arms.get(REFERENCE, {}).keys())
        if arm != REFERENCE and len(seeds) > 1:
            figures[arm][f"minus_{REFERENCE}"] = difference(of_seed, arms[REFERENCE])
    return {"arms": figures, "orderings": _orderings(arms)}


def _figures(runs: list[dict]) -> dict[str, Any]:
    after = [run["after"]["pass@1"] for run in runs]
    return {
        "seeds": len(runs),
        "before": round(float(np.mean([run["before"]["pass@1"] for run in runs])), 4),
        "after": [round(x, 4) for x in (interval(after) if len(after) > 1 else [after[0]] * 3)],
        "seed_spread": round(float(np.std(after, ddof=1)), 4) if len(after) > 1 else None,
        "pass@k": round(float(np.mean([run["after"]["pass@k"] for run in runs])), 4),
        "response_tokens": [
            round(float(np.mean([run[when]["response_tokens_mean"] for run in runs])), 3)
            for when in ("before", "after")
        ],
        "entropy": [round(float(np.mean([run[when]["entropy"] for run in runs])), 4) for when in ("before", "after")],
        "collapsed": sum(collapsed(run) for run in runs),
    }


def collapsed(run: dict) -> bool:
    """Whether reward or response length fell to a fraction of where it began."""
    fell = [np.mean(run[key][-LAST:]) < FALLEN * np.mean(run[key][:2]) for key in ("reward", "response_tokens")]
    return bool(any(fell))


def difference(ours: dict[int, dict], theirs: dict[int, dict]) -> list[float]:
    """Final pass@1, ours minus theirs, paired by seed: [mean, low, high], 95 % by Student's t."""
    seeds = sorted(ours.keys() & theirs.keys())
    return [round(x, 4) for x in interval([ours[s]["after"]["pass@1"] - theirs[s]["after"]["pass@1"] for s in seeds])]


def _orderings(arms: dict[str, dict[int, dict]]) -> dict[str, dict[str, Any]]:
    """OBJECTIVES.md, section E: reproduced, not reproduced or undecided, with the difference judged."""
    found: dict[str, dict[str, Any]] = {}

    def judge(claim: str, better: str, worse: str) -> None:
        if better in arms and worse in arms and len(arms[better].keys() & arms[worse].keys()) > 1:
            mean, low, high = difference(arms[better], arms[worse])
            verdict = "reproduced" if low > 0 else "not reproduced" if high < 0 else "undecided"
            found[claim] = {"verdict": verdict, "difference": [mean, low, high]}

    same = ("reward", "response_tokens", "after")
    if {"RGRA", "GRPO"} <= arms.keys() and all(
        run[key] == arms["GRPO"][seed][key]
        for seed, run in arms["RGRA"].items() if seed in arms["GRPO"] for key in same
    ):  # fmt: skip
        # One step per batch: the ratio is 1, the gradients are the same, and so is every sampled token.
        found["RGRA is as good as GRPO"] = {"verdict": "equal by construction", "difference": [0.0, 0.0, 0.0]}
    elif {"RGRA", "GRPO"} <= arms.keys() and len(arms["RGRA"].keys() & arms["GRPO"].keys()) > 1:
        mean, low, high = difference(arms["RGRA"], arms["GRPO"])
        verdict = "reproduced" if low >= -CLOSE else "not reproduced" if high < 0 else "undecided"
        found["RGRA is as good as GRPO"] = {"verdict": verdict, "difference": [mean, low, high]}
    judge("GRPO beats GRPO-pos", "GRPO", "GRPO-pos")
    judge("RGRA beats GRPO-pos", "RGRA", "GRPO-pos")
    judge("GRPO beats RAFT", "GRPO", "RAFT")
    judge("RGRA beats RAFT", "RGRA", "RAFT")
    judge("RGRA beats REINFORCE", "RGRA", "REINFORCE")
    judge("GRPO-pos beats REINFORCE", "GRPO-pos", "REINFORCE")
    for arm in ("GRPO-pos", "RAFT", "REINFORCE"):
        if arm in arms:
            count, seeds = sum(map(collapsed, arms[arm].values())), len(arms[arm])
            verdict = "reproduced" if 2 * count > seeds else "not reproduced" if not count else "undecided"
            found[f"{arm} collapses"] = {"verdict": verdict, "seeds_collapsed": [count, seeds]}
    return found


def table(found: dict[str, Any]) -> str:
    """Markdown, one table per mode."""
    lines = []
    for mode, of_mode in found.items():
        heads = "objective", "seeds", "pass@1 before", "after", "spread", "minus GRPO", "response tokens", "collapsed"
        lines += [f"**{mode}**", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for arm, f in of_mode["arms"].items():
            mean, low, high = (100 * x for x in f["after"])
            minus = f.get(f"minus_{REFERENCE}")
            text = "" if minus is None else "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * x for x in minus))
            spread = "" if f["seed_spread"] is None else f"{100 * f['seed_spread']:.1f}"
            tokens = "{:.2f} → {:.2f}".format(*f["response_tokens"])
            lines.append(
                f"| {arm} | {f['seeds']} | {100 * f['before']:.1f} | {mean:.1f} ({low:.1f} to {high:.1f}) | {spread} | "
                f"{text} | {tokens} | {f['collapsed']} |"
            )
        lines += ["", "| claim | verdict | difference in points |", "|---|---|---|"]
        for claim, judged in of_mode["orderings"].items():
            if "difference" in judged:
                text = "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * x for x in judged["difference"]))
            else:
                text = "{} of {} seeds".format(*judged["seeds_collapsed"])
            lines.append(f"| {claim} | {judged['verdict']} | {text} |")
        lines.append("")
    return "\n".join(lines)


def plot(runs: Sequence[dict], path: Path) -> None:
    """Reward and response length by epoch, mean and standard error of the seeds, a column per mode."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "tailrace"
    from matplotlib import pyplot

    modes = list(dict.fromkeys(run["mode"] for run in runs))
    figure, axes = pyplot.subplots(2, len(modes), figsize=(5 * len(modes), 6), sharex=True, sharey="row", squeeze=False)
    for column, mode in enumerate(modes):
        for row, (key, name) in enumerate((("reward", "reward"), ("response_tokens", "response tokens"))):
            axis = axes[row][column]
            for arm, colour in COLOURS.items():
                curves = np.array([run[key] for run in runs if run["mode"] == mode and run["arm"] == arm])
                if len(curves):
                    mean, error = curves.mean(0), curves.std(0) / len(curves) ** 0.5
                    axis.plot(mean, color=colour, label=arm)
                    axis.fill_between(range(len(mean)), mean - error, mean + error, color=colour, alpha=0.15, lw=0)
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
            if not column:
                axis.set_ylabel(name)
        axes[0][column].set_title(mode)
        axes[1][column].set_xlabel("epoch")
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
