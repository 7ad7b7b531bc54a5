"""A picture of speculation and bubbles in a run, from its metrics.jsonl alone."""

from pathlib import Path
from typing import Any

import numpy as np

from cluster.checkpoint import RunDirectory
from cluster.lines import as_written
from trainer.types import BadInput

IDLE, HARVESTED, LINE = "#dee2e6", "#0b7285", "#0b7285"
TIMELINE_S = 120.0
"""Seconds of the timeline that is drawn, the newest of the run: in a long run single bubbles could not be seen."""


def plot(run: RunDirectory, path: Path) -> dict[str, Any]:
    """Write an SVG, PNG or PDF to `path`; gives the run's figures in plain numbers.

    Raises BadInput for a run without an epoch, or with damaged ones.
    """
    rows = [row for row in run.metrics() if "bubbles" in row]
    if not rows:
        raise BadInput(f"{run.path}: metrics.jsonl has no epoch with figures of bubbles")
    with as_written(run.path / "metrics.jsonl"):
        return _plotted(rows, path)


def _plotted(rows: list[dict[str, Any]], path: Path) -> dict[str, Any]:
    _draw(path, rows)
    bubbles = {key: sum(row["bubbles"][key] for row in rows) for key in ("idle_s", "harvested_s", "critical_s")}
    late = [s for row in rows for s in row["bubbles"]["give_back_s"]]
    lengths = [row["speculation"]["accept_length"] for row in rows if row["speculation"]["accept_length"]]
    return {
        **bubbles,
        "long_idle_s": sum(row["bubbles"]["long_idle_s"] for row in rows),
        "long_harvested_s": sum(row["bubbles"]["long_harvested_s"] for row in rows),
        "give_back_median_s": float(np.median(late)) if late else None,
        "give_back_max_s": max(late, default=None),
        "accept_length_first": lengths[0] if lengths else None,
        "accept_length_last": lengths[-1] if lengths else None,
        "drafter_versions": rows[-1]["speculation"]["drafter_version"],
        "off": rows[-1]["speculation"]["off"],
        "training_ended": rows[-1]["bubbles"]["training_ended"],
    }


def _draw(path: Path, rows: list[dict[str, Any]]) -> None:
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    figure = Figure(figsize=(11, 9), layout="constrained")
    axes: Any = figure.subplot_mosaic([["bubbles", "bubbles"], ["epochs", "position"], ["length", "chosen"]])
    timeline(axes["bubbles"], rows)
    accept_length(axes["epochs"], rows)
    acceptance_by_position(axes["position"], rows)
    accept_length_by_response(axes["length"], rows)
    _chosen(figure, axes["chosen"], rows)
    for name in ("bubbles", "epochs", "position", "length"):
        axes[name].spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def timeline(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Idle stretches of every worker, and how much of each the drafter trained in."""
    stretches = [stretch for row in rows for stretch in row["bubbles"]["stretches"]]
    workers = sorted({worker for worker, *_ in stretches})
    end = max((stop for _, _, stop, _ in stretches), default=0.0)
    began = max(min((start for _, start, _, _ in stretches), default=0.0), end - TIMELINE_S)
    for worker, start, stop, harvested in stretches:
        if stop > began:
            place = workers.index(worker)
            axes.barh(place, stop - start, left=start - began, height=0.6, color=IDLE)
            # A drafter that starts late leaves the beginning of a stretch, so what it used ends with the stretch.
            axes.barh(place, harvested, left=stop - harvested - began, height=0.6, color=HARVESTED)
    axes.set_yticks(range(len(workers)), workers)
    axes.set(
        title="bubbles: idle seconds of rollout workers (grey) and what the drafter trained in (blue)",
        xlabel="seconds, newest of the run", xlim=(0, None),
    )  # fmt: skip


def accept_length(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Acceptance length by epoch, and where another drafter enters service."""
    known = [(row["epoch"], row["speculation"]["accept_length"]) for row in rows if row["speculation"]["accept_length"]]
    axes.plot([e for e, _ in known], [n for _, n in known], color=LINE)
    versions = [row["speculation"]["drafter_version"] for row in rows]
    for row, old in zip(rows, [0, *versions], strict=False):
        if row["speculation"]["drafter_version"] != old:
            axes.axvline(row["epoch"], color=IDLE, zorder=0)
    axes.set(title="acceptance length; grey: another drafter enters service", xlabel="epoch", ylim=(1, None))


def acceptance_by_position(axes: Any, rows: list[dict[str, Any]]) -> None:
    last = _newest(rows)
    if last:
        shares = np.full((len(last), max(len(s["acceptance_by_position"]) for s in last)), np.nan)
        for i, stats in enumerate(last):
            shares[i, : len(stats["acceptance_by_position"])] = stats["acceptance_by_position"]
        axes.bar(np.arange(1, shares.shape[1] + 1), np.nanmean(shares, 0), color=LINE)
    axes.set(title="first i drafts all accepted, last 10 epochs", xlabel="i", ylim=(0, 1))


def accept_length_by_response(axes: Any, rows: list[dict[str, Any]]) -> None:
    by_length: dict[int, list[float]] = {}
    for stats in _newest(rows):
        for tokens, mean in stats["accept_length_by_response_tokens"].items():
            by_length.setdefault(int(tokens), []).append(mean)
    edges = sorted(by_length)
    axes.plot(edges, [np.mean(by_length[edge]) for edge in edges], "o-", color=LINE)
    axes.set(title="acceptance length by response tokens so far", xlabel="tokens", ylim=(1, None))
    if edges:
        axes.set_xscale("log", base=2)


def _newest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the last ten epochs with drafts say of speculation."""
    return [row["speculation"] for row in rows if row["speculation"]["acceptance_by_position"]][-10:]


def _chosen(figure: Any, axes: Any, rows: list[dict[str, Any]]) -> None:
    """Mean K by running requests and epoch."""
    edges = sorted({int(e) for row in rows for e in row["speculation"]["draft_tokens_by_running"]})
    means = np.full((max(len(edges), 1), len(rows)), np.nan)
    for column, row in enumerate(rows):
        for edge, mean in row["speculation"]["draft_tokens_by_running"].items():
            means[edges.index(int(edge)), column] = mean
    image = axes.imshow(means, aspect="auto", origin="lower", cmap="viridis", vmin=0, interpolation="nearest")
    axes.set_yticks(range(len(edges)), [str(edge) for edge in edges])
    axes.set(title="draft tokens chosen", xlabel="epoch", ylabel="running requests, from")
    figure.colorbar(image, ax=axes)
