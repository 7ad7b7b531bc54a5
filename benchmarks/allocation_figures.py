"""Figures of the allocation benchmark: from the curves of its runs to comparisons with `uniform`, paired by seed.

A curve is a list of [rollouts, response tokens, held-out pass@1], one per evaluation of a run. Pure but for `plot`.
"""

from pathlib import Path
from typing import Any

import numpy as np

REFERENCE = "uniform"
GRID = 49
"""Points of a mean curve: runs of one policy need not have spent the same when they are evaluated."""
RESAMPLES = 1000
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom."""
COLOURS = {"sluice": "#0b7285", "cero": "#e8590c", "uniform": "#868e96", "dapo": "#ae3ec9"}
AXES = {"rollouts": 0, "tokens": 1}


def compare(runs: list[dict]) -> dict[str, dict]:
    """Per policy of one mix: means over its seeds, and differences from the reference on the seeds that both have.

    `final` is the last evaluation, `area` the mean pass@1 over the rollouts of the run that spent most, `to_reference`
    what reaching the reference's final accuracy takes, as a share of what it takes the reference.
    """
    budget = max(run["curve"][-1][0] for run in runs)
    by_policy: dict[str, dict[int, dict]] = {}
    for run in runs:
        by_policy.setdefault(run["policy"], {})[run["seed"]] = run
    reference = by_policy.get(REFERENCE, {})
    report = {}
    for policy, of_seed in by_policy.items():
        report[policy] = _means(list(of_seed.values()), budget)
        seeds = sorted(of_seed.keys() & reference.keys())
        if policy != REFERENCE and seeds:
            pairs = [(of_seed[seed], reference[seed]) for seed in seeds]
            report[policy]["against_uniform"] = _against(pairs, budget)
    return _rounded(report)


def _means(runs: list[dict], budget: int) -> dict[str, Any]:
    return {
        "seeds": len(runs),
        "before": float(np.mean([run["curve"][0][2] for run in runs])),
        "final": float(np.mean([run["curve"][-1][2] for run in runs])),
        "area": float(np.mean([area(run["curve"], budget) for run in runs])),
        "effective_share": float(np.mean([run["effective_share"] for run in runs])),
        "rollouts": float(np.mean([run["curve"][-1][0] for run in runs])),
        "tokens": float(np.mean([run["curve"][-1][1] for run in runs])),
    }


def _against(pairs: list[tuple[dict, dict]], budget: int) -> dict[str, Any]:
    """Differences as [mean, low, high], 95 % by Student's t over the seeds; shares of spending as in `spending`."""
    curves = [(run["curve"], other["curve"]) for run, other in pairs]
    return {
        "seeds": len(pairs),
        "final": interval([own[-1][2] - other[-1][2] for own, other in curves]),
        "area": interval([area(own, budget) - area(other, budget) for own, other in curves]),
        "effective_share": interval([run["effective_share"] - other["effective_share"] for run, other in pairs]),
        "to_reference": {axis: spending(curves, column) for axis, column in AXES.items()},
    }


def spending(curves: list[tuple[list, list]], column: int) -> dict[str, Any]:
    """Spending until the reference's final accuracy, as a share of the reference's own.

    `share` is read off the mean curves, `low` and `high` hold 95 % of bootstrap samples of the seeds, `by_seed` is read
    off each seed's own pair. None: not reached.
    """
    limit = max(point[column] for own, other in curves for point in (own[-1], other[-1]))
    grid = np.linspace(0, limit, GRID)
    own, other = (np.array([resampled(pair[i], column, grid) for pair in curves]) for i in (0, 1))

    def share(seeds: np.ndarray) -> float:
        mean_other = monotone(other[seeds].mean(0))
        target = mean_other[-1]
        spent = reached(grid, mean_other, target)  # 0 where the reference did not rise at all
        return reached(grid, monotone(own[seeds].mean(0)), target) / spent if spent else float("inf")

    rng = np.random.default_rng(0)
    samples = [share(rng.integers(len(curves), size=len(curves))) for _ in range(RESAMPLES)]
    low, high = np.quantile(samples, [0.025, 0.975], method="nearest")
    by_seed = [share(np.array([i])) for i in range(len(curves))]
    return {
        "share": _finite(share(np.arange(len(curves)))),
        "low": _finite(low),
        "high": _finite(high),
        "by_seed": [_finite(value) for value in by_seed],
    }


def monotone(values: np.ndarray) -> np.ndarray:
    """The non-decreasing sequence closest to `values` in least squares (pool adjacent violators): training rises, the
    noise of an evaluation does not; a running maximum would keep its upward half."""
    blocks: list[list[float]] = []  # mean, size
    for value in values:
        blocks.append([float(value), 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, size = blocks.pop()
            before, size_before = blocks[-1]
            blocks[-1] = [(mean * size + before * size_before) / (size + size_before), size + size_before]
    return np.repeat([mean for mean, _ in blocks], [int(size) for _, size in blocks])


def resampled(curve: list, column: int, grid: np.ndarray) -> np.ndarray:
    """pass@1 at the spendings of `grid`; after the end of the curve its last value."""
    points = np.array(curve)
    return np.interp(grid, points[:, column], points[:, 2])


def reached(spent: np.ndarray, accuracy: np.ndarray, target: float) -> float:
    """Spending at which a non-decreasing curve reaches `target`, between its points by a line; inf: never."""
    above = np.flatnonzero(accuracy >= target - 1e-12)
    if not len(above):
        return float("inf")
    after = above[0]
    if not after:
        return float(spent[0])
    low, high = accuracy[after - 1], accuracy[after]
    return float(spent[after - 1] + (spent[after] - spent[after - 1]) * (target - low) / (high - low))


def area(curve: list, budget: int) -> float:
    """Mean pass@1 over the budget; what a policy leaves unspent counts with its last value."""
    grid = np.linspace(0, budget, 8 * GRID)
    return float(resampled(curve, 0, grid).mean())


def interval(values: list[float]) -> list[float | None]:
    """Mean and 95 % interval by Student's t; without one for a single value."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return [mean, None, None]
    half = T_975[min(n - 1, len(T_975)) - 1] * float(np.std(values, ddof=1)) / n**0.5
    return [mean, mean - half, mean + half]


def table(report: dict[str, dict]) -> str:
    """The comparison as a Markdown table: differences in points, `rollouts` and `tokens` as `to_reference` shares."""
    heads = "mix", "policy", "before", "final", "against uniform", "area", "rollouts", "tokens", "effective groups"
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for mix, policies in report.items():
        for policy, figures in policies.items():
            against = figures.get("against_uniform")
            cells = [_points(against[key]) for key in ("final", "area")] if against else ["", ""]
            cells += [_share(against["to_reference"][axis]) for axis in AXES] if against else ["1", "1"]
            before, final, effective = figures["before"], figures["final"], figures["effective_share"]
            lines.append(f"| {mix} | {policy} | {before:.1%} | {final:.1%} | {' | '.join(cells)} | {effective:.0%} |")
    return "\n".join(lines)


def plot(runs: list[dict], path: Path) -> None:
    """Held-out pass@1 over rollouts, a panel per mix: means over the seeds and their 95 % band."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    mixes = list(dict.fromkeys(run["mix"] for run in runs))
    figure, panels = pyplot.subplots(1, len(mixes), figsize=(4.2 * len(mixes), 3.4), squeeze=False)
    for panel, mix in zip(panels[0], mixes, strict=True):
        for policy in dict.fromkeys(run["policy"] for run in runs if run["mix"] == mix):
            curves = [run["curve"] for run in runs if (run["mix"], run["policy"]) == (mix, policy)]
            grid = np.linspace(0, max(curve[-1][0] for curve in curves), GRID)
            values = np.array([resampled(curve, 0, grid) for curve in curves])
            bands = [interval(column.tolist()) for column in values.T]
            (line,) = panel.plot(grid, values.mean(0), label=policy, color=COLOURS.get(policy))
            if len(curves) > 1:
                _, low, high = np.array(bands).T
                panel.fill_between(grid, low, high, color=line.get_color(), alpha=0.2)
        panel.set(title=mix, xlabel="rollouts", ylabel="held-out pass@1")
        panel.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _points(values: list[float | None]) -> str:
    mean, low, high = (None if value is None else f"{100 * value:+.1f}" for value in values)
    return f"{mean}" if low is None else f"{mean} ({low} to {high})"


def _share(values: dict[str, Any]) -> str:
    if values["share"] is None:
        return "not reached"
    high = "never" if values["high"] is None else f"{values['high']:.2f}"
    return f"{values['share']:.2f} ({values['low']:.2f} to {high})"
