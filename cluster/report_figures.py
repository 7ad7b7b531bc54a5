"""The figures of a report as inline SVG. Their colours are those of the page: matplotlib draws in placeholders, which
become the variables of its style sheet, so that one drawing serves light and dark.
"""

import re
from collections.abc import Callable, Sequence
from io import StringIO
from typing import Any

import numpy as np

from cluster.speculation_plot import HARVESTED, IDLE

INK, ACCENT, QUIET = "#010203", HARVESTED, IDLE
COLOURS = {INK: "var(--ink)", ACCENT: "var(--accent)", QUIET: "var(--quiet)", "#ffffff": "var(--page)"}
SIZE = (4.6, 2.6)
"""Inches. Small, so that a figure as wide as a phone still has legible letters; wide screens show two in a row."""
STYLE = {
    "svg.fonttype": "none",  # letters stay letters: they are read out, searched, and set in the font of the page
    "font.size": 9, "figure.facecolor": "none", "axes.facecolor": "none", "legend.frameon": False,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "lines.linewidth": 1.5,
    "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip
WINDOW = 20
"""Most epochs of a moving average; a short run has a tenth of its own."""
MOST_POINTS = 1000
BINS = 10
"""Bars of the budget by believed success."""


def drawn(draw: Callable[[Any], None], name: str) -> str:
    """The SVG element of what `draw` puts on the axes it is given. `name` tells this figure's marks from others'."""
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set_title("")  # the page has it as the caption
        file = StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = file.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # groups are numbered alike in every figure
    svg = re.sub(r'^<svg[^>]*(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', svg)
    for placeholder, variable in COLOURS.items():
        svg = svg.replace(placeholder, variable)
    return svg


def learning(axes: Any, spent: Sequence[float], reward: Sequence[float], heldout: Sequence[dict], unit: str) -> None:
    """Reward of the training prompts, its moving average, and pass@1 of the held-out ones with intervals.

    `spent`, `reward` by epoch; `heldout`: `spent`, `score` and `ci` (low, high; or None) of every evaluation.
    """
    x, y = np.array(spent, float), np.array(reward, float)
    if len(x):
        thin = np.unique(np.linspace(0, len(x) - 1, MOST_POINTS).astype(int))
        axes.plot(x[thin], y[thin], color=QUIET, linewidth=1)
        window = max(1, min(WINDOW, len(y) // 10))
        smooth = np.convolve(y, np.ones(window) / window, "valid")
        thin = thin[thin >= window - 1]
        axes.plot(x[thin], smooth[thin - window + 1], color=INK, linewidth=1.2, label="reward in training")
    for number, one in enumerate(heldout):
        low, high = one["ci"] or (one["score"], one["score"])
        axes.errorbar(
            one["spent"], one["score"], [[max(one["score"] - low, 0)], [max(high - one["score"], 0)]], fmt="o",
            color=ACCENT, markersize=4.5, capsize=2.5, linewidth=1.2, zorder=3,
            label=None if number else "pass@1 held out, 95 %",
        )  # fmt: skip
    axes.set(xlabel=f"{unit} spent", ylim=(min(0, np.nanmin(y, initial=0)), None))
    axes.margins(y=0.1)
    axes.xaxis.set_major_formatter(_thousands)
    if len(x) or heldout:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, fontsize=8, handlelength=1.2)


def spending(axes: Any, shares: Sequence[float], epochs: int) -> None:
    """`shares` of the budget that were spent after every epoch, beside an even pace over the `epochs` of the recipe."""
    axes.plot([0, epochs], [0, 1], color=QUIET, linewidth=1)
    axes.plot(np.arange(len(shares) + 1), [0.0, *shares], color=ACCENT)
    axes.set(xlabel="epoch", ylabel="share of the budget", xlim=(0, None), ylim=(0, 1.04))


def difficulty(axes: Any, beliefs: np.ndarray, rollouts: np.ndarray) -> None:
    """Share of the prompts, and of the rollouts, by believed success at the end; both [M]."""
    edges = np.linspace(0, 1, BINS + 1)
    middles = (edges[:-1] + edges[1:]) / 2
    prompts, _ = np.histogram(beliefs, edges)
    spent, _ = np.histogram(beliefs, edges, weights=rollouts)
    width = 0.4 / BINS
    axes.bar(middles - width / 2, prompts / max(prompts.sum(), 1), width, color=QUIET, label="prompts")
    axes.bar(middles + width / 2, spent / max(spent.sum(), 1), width, color=ACCENT, label="rollouts")
    axes.set(xlabel="believed success at the end", ylabel="share", xlim=(0, 1))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, fontsize=8, handlelength=1.2)


def _thousands(value: float, _: int) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g} M"
    return f"{value / 1e3:g} k" if abs(value) >= 1e4 else f"{value:,.4g}"
