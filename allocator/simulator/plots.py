"""Reports as SVG files. The only module that needs matplotlib; one colour per policy in all of them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

from allocator.simulator.report import Interval, Report, Table

COLOURS = {
    "oracle": "#222222", "uniform": "#8a8a8a", "sluice": "#0072b2", "cero": "#d55e00", "cero_greedy": "#8e44ad",
    "cero_fixed": "#e59c3c", "cero, lambda 3": "#f0a884", "knapsack": "#009e73", "vip": "#c2185b", "mopps": "#17a2b8",
    "dapo": "#a67c00", "gvm": "#6b8e23", "reinforce_ada": "#7a4b3a", "pilot_commit": "#b0a000",
    "random_matched": "#c9a5a0",
}  # fmt: skip
OTHER = "#444444"
QUIET = "#b5b5b5"
STYLE = {
    "font.family": "sans-serif", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": QUIET, "axes.titlelocation": "left", "axes.titlesize": 10.5, "axes.titleweight": "bold",
    "axes.labelcolor": "#444444", "xtick.color": QUIET, "ytick.color": QUIET, "xtick.labelcolor": "#444444",
    "ytick.labelcolor": "#444444", "svg.fonttype": "path", "svg.hashsalt": "tailrace", "figure.dpi": 100,
}  # fmt: skip


def save_plots(report: Report, directory: Path) -> list[Path]:
    """The figures of one report, as `<experiment>[-<what>].svg`."""
    directory.mkdir(parents=True, exist_ok=True)
    draw: dict[str, Callable[[Report], dict[str, Figure]]] = {
        "paper": _paper, "league": _league, "static": _static, "drift": _drift, "tokens": _standings,
        "replay": _standings,
    }  # fmt: skip
    paths = []
    with matplotlib.rc_context(STYLE):
        for what, figure in draw[report.experiment](report).items():
            path = directory / f"{report.experiment}{what and '-' + what}.svg"
            figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")  # the same numbers give the same file
            plt.close(figure)
            paths.append(path)
    return paths


def _colour(policy: str) -> str:
    return COLOURS.get(policy, OTHER)


# Regret over rounds.


def _static(report: Report) -> dict[str, Figure]:
    figure, axis = plt.subplots(figsize=(6.8, 4.6))
    rounds, policies = report.curves["K"], report.curves["policies"]
    regret = {policy: curve["regret"] for policy, curve in policies.items()}
    _regret_lines(axis, rounds, regret)
    tightest = min(policies.values(), key=lambda curve: curve["bound"][-1].mean)["bound"]
    axis.plot(rounds, [bound.mean for bound in tightest], color=QUIET, linestyle=(0, (4, 3)), linewidth=1.2)
    start = rounds[0], tightest[0].mean
    axis.annotate("bound (11), least of all policies", start, (0, -12), textcoords="offset points", color=OTHER)
    axis.set_yscale("log")
    axis.set_title("Regret per prompt against the exact optimum, values that stay")
    _name_at_right(axis, rounds[-1], {policy: intervals[-1].mean for policy, intervals in regret.items()})
    return {"": figure}


def _drift(report: Report) -> dict[str, Figure]:
    rounds, laws = report.curves["K"], report.curves["laws"]
    figure, axes = plt.subplots(1, len(laws), figsize=(6.4 * len(laws), 6.4), squeeze=False, sharey=True)
    for axis, (title, curves) in zip(axes[0], laws.items(), strict=True):
        _regret_lines(axis, rounds, curves)
        axis.set_title(f"Regret per prompt: {title}", pad=14)
        axis.tick_params(labelleft=True)
    figure.subplots_adjust(wspace=0.45)
    for axis, curves in zip(axes[0], laws.values(), strict=True):
        _name_at_right(axis, rounds[-1], {policy: intervals[-1].mean for policy, intervals in curves.items()})
    return {"": figure}


def _regret_lines(axis: Axes, rounds: Sequence[int], curves: Mapping[str, Sequence[Interval]]) -> None:
    """A line per policy over K with its 95 % band."""
    for policy, intervals in curves.items():
        mean, half = np.array(intervals).T
        axis.plot(rounds, mean, color=_colour(policy), linewidth=1.8, marker="o", markersize=3.5)
        if len(curves) <= 6:  # more bands than that hide each other
            low = np.maximum(mean - half, mean / 3)  # an interval down to 0 has no end on a log axis
            axis.fill_between(rounds, low, mean + half, color=_colour(policy), alpha=0.12, linewidth=0)
    axis.set_xscale("log")
    axis.set_xticks(rounds, [f"{k:,}" for k in rounds])
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.minorticks_off()
    axis.set_xlabel("rounds K")


def _name_at_right(axis: Axes, x: float, ends: Mapping[str, float]) -> None:
    """Names beside the curves' ends, moved apart where they would overlap; the axis must not change any more."""
    order = sorted(ends, key=lambda name: ends[name])
    wanted = axis.transData.transform([(x, ends[name]) for name in order])[:, 1] * 72 / axis.figure.dpi
    height = wanted.copy()
    for _ in range(200):
        for lower in range(len(height) - 1):
            short = max(11 - (height[lower + 1] - height[lower]), 0)
            height[lower] -= short / 2
            height[lower + 1] += short / 2
    for name, shift in zip(order, height - wanted, strict=True):
        axis.annotate(
            name, (x, ends[name]), (8, shift), textcoords="offset points", color=_colour(name), va="center",
            fontsize=9, fontweight="bold" if name == "sluice" else "normal", annotation_clip=False,
        )  # fmt: skip


# Standings.


def _league(report: Report) -> dict[str, Figure]:
    worlds = report.tables[:-1]
    columns = 4
    rows = -(-len(worlds) // columns)
    names = [str(row["policy"]) for row in worlds[0].rows]
    size = (3.3 * columns, 3.4 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    lowest = min(row["gap"].mean for table in worlds for row in table.rows if isinstance(row["gap"], Interval))
    for axis, table in zip(axes.flat, worlds, strict=False):
        _dots(axis, table, "gap", names)
        axis.set_title(_wrapped(table.title, 30), fontsize=9)
        axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.set_xlim(max(lowest - 0.1, -0.6), 1.08)
    for axis in axes.flat[len(worlds) :]:
        axis.set_visible(False)
    figure.suptitle("Share of the gap from uniform to the oracle that is closed", x=0.06, ha="left", fontweight="bold")
    figure.tight_layout()
    return {"": _two_panels(worlds[0]), "worlds": figure}


def _standings(report: Report) -> dict[str, Figure]:
    return {"": _two_panels(report.tables[0])}


def _two_panels(table: Table) -> Figure:
    rows = [row for row in table.rows if isinstance(row.get("effective_rate"), Interval)]
    names = [str(row["policy"]) for row in rows]
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 0.5 + 0.32 * len(names)), sharey=True)
    for axis, key, title in (
        (axes[0], "effective_rate", "Effective groups"),
        (axes[1], "gap", "Gap from uniform to the oracle that is closed"),
    ):
        _dots(axis, table, key, names, numbers=True)
        axis.set_title(title)
        axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    figure.suptitle(table.title, x=0.02, y=1.04, ha="left", color="#444444", fontsize=10)
    figure.tight_layout()
    return figure


def _dots(axis: Axes, table: Table, key: str, names: Sequence[str], numbers: bool = False) -> None:
    """A dot with its 95 % interval per policy, the first of `names` at the top."""
    cells = {str(row["policy"]): row.get(key) for row in table.rows}
    for place, name in enumerate(reversed(names)):
        cell = cells.get(name)
        if not isinstance(cell, Interval):
            continue
        axis.axhline(place, color="#eeeeee", linewidth=0.8, zorder=0)
        half = 0.0 if np.isnan(cell.half_width) else cell.half_width
        axis.errorbar(cell.mean, place, xerr=half, fmt="o", markersize=5.5, color=_colour(name), elinewidth=1.6)
        if numbers:
            axis.annotate(f"{cell.mean:.1%}", (cell.mean + half, place), (6, 0), textcoords="offset points",
                          va="center", fontsize=8.5, color=_colour(name))  # fmt: skip
    axis.set_yticks(range(len(names)), list(reversed(names)))
    for label in axis.get_yticklabels():
        label.set_color(_colour(label.get_text()))
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.margins(x=0.14 if numbers else 0.05)


def _wrapped(text: str, width: int) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))


# Spending.


def _paper(report: Report) -> dict[str, Figure]:
    spending = report.curves["spending"]
    return {"exposure": _exposure(spending), "pace": _pace(spending)}


def _exposure(spending: Mapping[str, Mapping[str, Any]]) -> Figure:
    figure, axes = plt.subplots(len(spending), 1, figsize=(5.6, 1.3 * len(spending) + 0.6), sharex=True, sharey=True)
    most = max(len(curves["groups_per_prompt"]) for curves in spending.values())
    for axis, (policy, curves) in zip(np.atleast_1d(axes), spending.items(), strict=True):
        shares = curves["groups_per_prompt"]
        axis.bar(np.arange(len(shares)), shares, color=_colour(policy), width=0.72)
        axis.set_title(policy, loc="right", color=_colour(policy), y=0.72)
        for groups, share in enumerate(shares):
            if share >= 0.02:
                axis.annotate(
                    f"{share:.0%}", (groups, share), (0, 2), textcoords="offset points", ha="center", fontsize=8
                )
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.set_ylim(0, 0.75)
    figure.suptitle("Prompts by the number of groups they got", x=0.02, ha="left", fontsize=10.5, fontweight="bold")
    np.atleast_1d(axes)[-1].set_xlabel("groups of 8")
    np.atleast_1d(axes)[-1].set_xticks(range(0, most, max(1, most // 16)))
    figure.tight_layout()
    return figure


def _pace(spending: Mapping[str, Mapping[str, Any]]) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8))
    axes[0].axhline(0, color=QUIET, linewidth=0.8, zorder=0)
    axes[0].set_title("Responses spent beyond an even pace")
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes[1].set_title("Price of the budget, normalised")
    figure.subplots_adjust(wspace=0.4)
    for axis, key in zip(axes, ("surplus_rollouts", "price"), strict=True):
        paths = {policy: np.asarray(curves[key]) for policy, curves in spending.items() if len(curves[key])}
        for policy, path in paths.items():
            axis.plot(np.arange(1, len(path) + 1), path, color=_colour(policy), linewidth=1.5)
        axis.set_xlabel("round")
        if key == "price":
            axis.set_ylim(bottom=0)
        _name_at_right(axis, max(map(len, paths.values()), default=0), {name: path[-1] for name, path in paths.items()})
    return figure
