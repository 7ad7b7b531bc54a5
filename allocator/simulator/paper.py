"""The numbers that CERO's paper prints of its own runs, from `cero` on synthetic prompts; and how others spend."""

from typing import Any, NamedTuple

import numpy as np

from allocator.problem import Floats, Problem
from allocator.simulator.latents import Beta
from allocator.simulator.league import PAPER, QUICK, Arena
from allocator.simulator.report import Column, Interval, Report, Table
from allocator.simulator.run import Trace, open_allocator, run
from allocator.simulator.settings import Settings
from allocator.simulator.watchers import LiftWatch, PriceWatch

ARENA = Arena(Beta(0.5, 0.5), own=0.15, shared=0.002)


class Published(NamedTuple):
    """A number of the paper, and how far from it the mean over seeds may be."""

    quantity: str
    value: float
    tolerance: float
    format: str


PUBLISHED = (
    Published("first round without rollouts", 121, 0, ".0f"),
    Published("peak surplus over an even pace, responses", 1_920, 0, ",.0f"),
    Published("rounds with rollouts", 487, 3, ".1f"),
    Published("prompts at 0.84 R", 0.575, 0.02, ".3f"),
    Published("prompts at 1.12 R", 0.278, 0.02, ".3f"),
    Published("prompts at 1.40 R", 0.147, 0.02, ".3f"),
    Published("lift of predicted success .4 to .6", 1.72, 0.1, ".2f"),
    Published("lift of predicted success below .2", 0.65, 0.1, ".2f"),
    Published("lift of predicted success above .8", 0.65, 0.1, ".2f"),
)


class Spending(NamedTuple):
    trace: Trace
    lift: Floats
    price: list[float]


def spend(job: tuple[str, int, Problem]) -> Spending:
    policy, seed, problem = job
    world = ARENA.world(problem, seed)
    allocator = open_allocator(policy, problem, world, seed + 1000)
    lift, price = LiftWatch(allocator), PriceWatch(allocator)
    trace = run(allocator, world, problem, watchers=(lift, price))
    return Spending(trace, lift.lift, price.path)


def measured(spending: Spending) -> list[float]:
    """The quantities of `PUBLISHED`, in its order."""
    trace, problem = spending.trace, spending.trace.problem
    empty = np.flatnonzero(trace.spent_units == 0)
    relative = trace.exposure / problem.equal_share_units
    return [
        float(empty[0] + 1) if len(empty) else float("nan"), float(trace.surplus_rollouts.max()),
        float(np.count_nonzero(trace.spent_units)),
        *(float(np.mean(np.abs(relative - share) < 0.01)) for share in (0.84, 1.12, 1.40)),
        *spending.lift[[2, 0, 4]].tolist(),
    ]  # fmt: skip


def paper(settings: Settings) -> Report:
    """CERO against its paper; exposures and pace of the chosen policies for the plots (first seed)."""
    problem = QUICK if settings.quick else PAPER
    seeds = settings.seed_range(4)
    jobs = [("cero", seed, problem) for seed in seeds]
    others = [name for name in settings.contenders(("sluice", "uniform", "cero_greedy")) if name != "cero"]
    spendings = settings.workers.map(spend, [*jobs, *((name, 0, problem) for name in others)])
    rows: list[dict[str, Any]] = []
    for published, samples in zip(PUBLISHED, zip(*map(measured, spendings[: len(jobs)]), strict=True), strict=True):
        mean = Interval.of(samples)
        off = abs(mean.mean - published.value)
        rows.append(
            {
                "quantity": published.quantity, "paper": format(published.value, published.format),
                "measured": " ".join(format(sample, published.format) for sample in samples),
                "verdict": "" if settings.quick else "within" if off <= published.tolerance else f"off by {off:.3g}",
                "tolerance": published.tolerance, "mean": mean,
            }
        )  # fmt: skip
    columns = [Column("quantity", "quantity"), Column("paper", "paper"), Column("measured", "cero, by seed"),
               Column("tolerance", "tolerance", ".3g"), Column("verdict", "verdict")]  # fmt: skip
    note = "p ~ Beta(.5, .5), +.15 logit per effective group" + ("; too small to compare" if settings.quick else "")
    table = Table("CERO in the paper's regime", columns, rows, note)
    shown = {"cero": spendings[0], **dict(zip(others, spendings[len(jobs) :], strict=True))}
    return Report("paper", [table], {"spending": {name: _curves(item) for name, item in shown.items()}})


def _curves(spending: Spending) -> dict[str, Any]:
    trace = spending.trace
    groups = np.rint(trace.exposure / trace.problem.max_units_per_prompt).astype(np.int64)
    return {
        "groups_per_prompt": np.bincount(groups) / len(groups),
        "surplus_rollouts": trace.surplus_rollouts,
        "price": spending.price,
    }
