"""Regret where values drift, whatever is sampled, against the exact optimum of the known path."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from allocator.problem import Floats, Problem
from allocator.simulator.bounds import dynamic_bound
from allocator.simulator.dynamic import Certified, dynamic_optimum
from allocator.simulator.oracles import TrueGreedy
from allocator.simulator.report import Cell, Column, Interval, Report, Table
from allocator.simulator.run import Scheduler, open_allocator, run
from allocator.simulator.settings import ORACLE, Settings
from allocator.simulator.watchers import ErrorWatch
from allocator.simulator.worlds import Drift, linear_drift

DRIFT_K = (50, 100, 200, 400)


@dataclass(frozen=True)
class DriftLaw:
    """l ~ Normal(0, start), s ~ Normal(mean_slope, slope): logit of prompt i in round k is l_i + s_i k / K."""

    start: float
    slope: float
    mean_slope: float = 0.0

    def path(self, problem: Problem, seed: int) -> Floats:
        """p [K, M]"""
        rng = np.random.default_rng([seed, 0])
        logit = rng.normal(0, self.start, problem.prompts)
        slope = rng.normal(self.mean_slope, self.slope, problem.prompts)
        return linear_drift(logit, slope, problem.epochs)


LAWS = {
    "l ~ N(0, 2), s ~ N(0, 3)": DriftLaw(2, 3),
    "l ~ N(0, 3), s ~ N(2, 2), never tuned on": DriftLaw(3, 2, 2),
}


@dataclass(frozen=True)
class DriftJob:
    law: DriftLaw
    rounds: int
    seed: int
    policy: str = ""

    @property
    def problem(self) -> Problem:
        return Problem(32, self.rounds, 16 * self.rounds, 32, 2, 1)


def drift_optimum(job: DriftJob) -> Certified:
    p = job.law.path(job.problem, job.seed)
    return dynamic_optimum(p * (1 - p), 1.0, job.problem)


def drift_path(job: DriftJob) -> tuple[float, float]:
    """Surrogate per prompt, and bound (12) on the regret (NaN for the oracle, which has no proxy)."""
    problem, p = job.problem, job.law.path(job.problem, job.seed)
    world = Drift(p, job.seed)
    scheduler: Scheduler
    if job.policy == ORACLE:
        scheduler = TrueGreedy(world, problem)
        return run(scheduler, world, problem).surrogate, float("nan")
    scheduler = open_allocator(job.policy, problem, world, job.seed + 1000)
    watch = ErrorWatch(scheduler)
    surrogate = run(scheduler, world, problem, watchers=[watch]).surrogate
    value = p * (1 - p)
    variation = float(np.abs(np.diff(value, axis=0)).max(axis=1).sum())
    return surrogate, dynamic_bound(problem, 1.0, watch.total / p.size, variation)


Optima = dict[DriftJob, Certified]
Runs = dict[DriftJob, tuple[float, float]]


def drift(settings: Settings) -> Report:
    """Regret of every policy against the exact dynamic optimum, from its certified upper bound."""
    policies = tuple(dict.fromkeys((ORACLE, *settings.contenders())))
    rounds = (20, 40) if settings.quick else DRIFT_K
    seeds = settings.seed_range(10)
    paths = [DriftJob(law, k, seed) for k in reversed(rounds) for law in LAWS.values() for seed in seeds]
    optima = dict(zip(paths, settings.workers.map(drift_optimum, paths), strict=True))
    jobs = [replace(path, policy=policy) for path in paths for policy in policies]
    runs = dict(zip(jobs, settings.workers.map(drift_path, jobs), strict=True))

    report = Report("drift", curves={"K": rounds, "laws": {}})
    columns = [
        Column("policy", "policy"), *(Column(f"K={k}", f"K={k}", ".4f") for k in rounds),
        Column("bound", "least bound (12)", ".2f"), Column("within", "within"),
    ]  # fmt: skip
    note = f"Reg/M against the optimum's certified upper bound, mean and 95 % interval over {len(seeds)} seeds"
    for title, law in LAWS.items():
        rows = [_regret_row(law, rounds, seeds, policy, optima, runs) for policy in policies]
        rows.sort(key=lambda row: row[f"K={rounds[-1]}"])
        report.curves["laws"][title] = {row["policy"]: [row[f"K={k}"] for k in rounds] for row in rows}
        rows.append(_optimum_row(law, rounds, seeds, optima))
        report.tables.append(Table(f"regret, values that drift: {title}", columns, rows, note))
    return report


def _regret_row(
    law: DriftLaw, rounds: tuple[int, ...], seeds: range, policy: str, optima: Optima, runs: Runs
) -> dict[str, Any]:
    row: dict[str, Any] = {"policy": policy}
    bounds, within, paths = [], 0, 0
    for k in rounds:
        regrets = []
        for seed in seeds:
            surrogate, bound = runs[DriftJob(law, k, seed, policy)]
            regrets.append(optima[DriftJob(law, k, seed)].upper - surrogate)
            bounds.append(bound)
            within += regrets[-1] <= bound
            paths += 1
        row[f"K={k}"] = Interval.of(regrets)
    if policy != ORACLE:
        row |= {"bound": min(bounds), "within": f"{within} of {paths}"}
    return row


def _optimum_row(law: DriftLaw, rounds: tuple[int, ...], seeds: range, optima: Optima) -> dict[str, Cell]:
    row: dict[str, Cell] = {"policy": "optimum / M"}
    for k in rounds:
        lower, upper = np.mean([optima[DriftJob(law, k, seed)] for seed in seeds], axis=0)
        row[f"K={k}"] = f"{lower:.4f} to {upper:.4f}"
    return row
