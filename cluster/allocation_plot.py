"""A picture of what the budget scheduler did in a run, from its journal alone."""

from pathlib import Path

import numpy as np

from cluster.allocation import replayed
from cluster.checkpoint import RunDirectory
from cluster.lines import as_written

MOST_EPOCHS, MOST_PROMPTS = 400, 600
"""Columns and rows of the picture of beliefs; more are thinned out evenly."""


def plot(run: RunDirectory, path: Path) -> dict[str, dict[str, float]]:
    """Write an SVG or PNG to `path`; gives by family its prompts, rollouts, and believed success first and last.

    Raises BadInput without a journal of an rl stage, and where the journal is damaged or differs from the decisions.
    """
    with as_written(run.path / "journal.jsonl"):
        return _plotted(run, path)


def _plotted(run: RunDirectory, path: Path) -> dict[str, dict[str, float]]:
    prices, spent, beliefs, budget = [], [0.0], [], 0.0
    for allocator, allocation in replayed(run):
        prices.append(np.nan if allocation.price is None else allocation.price)
        figures = allocator.metrics()
        spent.append(figures[f"spent_{allocator.spec.currency}"])
        beliefs.append(allocator.posterior_mean.astype(np.float32))
        budget = float(allocator.spec.budget)
    pool = allocator.pool
    opening = next(event for event in run.events() if event["event"] == "allocator")
    families = np.array(opening["families"])
    rollouts = pool.exposure * allocator.spec.unit_rollouts
    _draw(path, np.array(prices), np.array(spent) / budget, np.stack(beliefs), rollouts, pool.problem.epochs)
    return by_family(families, rollouts, beliefs[0], beliefs[-1])


def by_family(
    families: np.ndarray, rollouts: np.ndarray, first: np.ndarray, last: np.ndarray
) -> dict[str, dict[str, float]]:
    """Prompts, rollouts, and believed success first and last; all [M]."""
    return {
        str(family): {
            "prompts": int((families == family).sum()),
            "rollouts": int(rollouts[families == family].sum()),
            "believed_first": float(first[families == family].mean()),
            "believed_last": float(last[families == family].mean()),
        }
        for family in np.unique(families)
    }


def _draw(
    path: Path, prices: np.ndarray, spent: np.ndarray, beliefs: np.ndarray, rollouts: np.ndarray, epochs: int
) -> None:
    """`prices` [K], `spent` [K + 1] as shares of the budget, `beliefs` [K, M], `rollouts` [M]."""
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    (price, spend), (belief, use) = figure.subplots(2, 2)
    price.plot(np.arange(1, len(prices) + 1), prices, color="#0b7285")
    price.set(title="price of the budget", ylabel="relative to the most a unit can be worth", ylim=(0, None))
    spend.plot([0, epochs], [0, 1], color="#adb5bd", linewidth=1)
    spend.plot(np.arange(len(spent)), spent, color="#0b7285")
    spend.set(title="budget spent; grey: an even pace", ylabel="share", ylim=(0, 1.02))
    columns = np.unique(np.linspace(0, len(beliefs) - 1, MOST_EPOCHS).astype(int))
    order = np.argsort(beliefs[-1])
    rows = order[np.unique(np.linspace(0, len(order) - 1, MOST_PROMPTS).astype(int))]
    image = belief.imshow(
        beliefs[columns][:, rows].T, aspect="auto", origin="lower", cmap="viridis", vmin=0, vmax=1,
        extent=(1, len(beliefs) + 1, 0, beliefs.shape[1]),
    )  # fmt: skip
    belief.set(title="believed success of every prompt", ylabel="prompts, by their last belief")
    figure.colorbar(image, ax=belief)
    jitter = np.random.default_rng(0).uniform(-0.3, 0.3, len(rollouts)) * max(rollouts.min(initial=4), 1)
    use.scatter(beliefs[-1], rollouts + jitter, s=4, alpha=0.4, color="#0b7285", linewidths=0)
    use.set(title="rollouts of every prompt", xlabel="believed success at the end", ylabel="rollouts", xlim=(0, 1))
    for axes in (price, spend, belief):
        axes.set_xlabel("epoch")
    for axes in (price, spend, use):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
