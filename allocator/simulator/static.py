"""Regret where values stay as they are, over the number of rounds: does it fall as the paper proves?"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from allocator.problem import Problem
from allocator.simulator.bounds import static_bound
from allocator.simulator.oracles import static_optimum
from allocator.simulator.report import Cell, Column, Interval, Report, Table
from allocator.simulator.run import open_allocator, run
from allocator.simulator.settings import Settings
from allocator.simulator.watchers import ErrorWatch
from allocator.simulator.worlds import World

PATHS = {50: 30, 200: 30, 800: 30, 3_200: 12, 12_800: 6}
"""Runs by number of rounds K, for the paper's own algorithm and ours; a third of them for the others."""


class Path(NamedTuple):
    """One run: regret per prompt, and the paper's bound on it with the proxy error of this very run."""

    regret: float
    bound: float
    error: float


@dataclass(frozen=True)
class Contender:
    label: str
    policy: str
    saturation: float = 1.0

    @property
    def main(self) -> bool:
        """Whether it gets all paths: the paper's own algorithm and ours."""
        return self.policy in ("cero", "sluice") and self.saturation == 1


@dataclass(frozen=True)
class StaticJob:
    contender: Contender
    rounds: int
    seed: int


def static_path(job: StaticJob) -> Path:
    """M = 64, half a unit per prompt and round, C = M, p ~ Beta(.5, .5): the paper's eq. (4)."""
    problem = Problem(64, job.rounds, 32 * job.rounds, 64, 2, 1)
    saturation = job.contender.saturation
    p = np.clip(np.random.default_rng([job.seed, 0]).beta(0.5, 0.5, problem.prompts), 1e-6, 1 - 1e-6)
    world = World(p, job.seed)
    optimum, _ = static_optimum(p * (1 - p), saturation, problem)
    policy = job.contender.policy
    allocator = open_allocator(policy, problem, world, job.seed + 1000, utility_saturation=saturation)
    watch = ErrorWatch(allocator)
    trace = run(allocator, world, problem, saturation, [watch])
    error = watch.total / (problem.prompts * problem.epochs)
    return Path(optimum - trace.surrogate, static_bound(problem, saturation, error), error)


def static(settings: Settings) -> Report:
    """Regret over K, its slope, and the bound (11) on every path."""
    policies = settings.contenders(("cero", "sluice", "cero_greedy", "uniform"))
    contenders = [Contender(name, name) for name in policies]
    if "cero" in policies:
        contenders.append(Contender("cero, lambda 3", "cero", 3.0))
    rounds = (50, 200) if settings.quick else tuple(PATHS)
    jobs = [
        StaticJob(contender, k, seed)
        for k in reversed(rounds)
        for contender in contenders
        for seed in settings.seed_range(PATHS[k] if contender.main else PATHS[k] // 3)
    ]
    paths: dict[tuple[Contender, int], list[Path]] = {}
    for job, path in zip(jobs, settings.workers.map(static_path, jobs), strict=True):
        paths.setdefault((job.contender, job.rounds), []).append(path)
    rows, curves = [], {}
    for contender in contenders:
        by_rounds = [paths[contender, k] for k in rounds]
        regret = [Interval.of(path.regret for path in runs) for runs in by_rounds]
        bound = [Interval.of(path.bound for path in runs) for runs in by_rounds]
        rows.append(_static_row(contender.label, rounds, regret, by_rounds))
        curves[contender.label] = {"regret": regret, "bound": bound}
    columns = [
        Column("policy", "policy"), *(Column(f"K={k}", f"K={k:,}", ".4f") for k in rounds),
        Column("slope", "slope", ".2f"), Column("largest_share", "of bound (11)", ".1%"), Column("within", "within"),
    ]  # fmt: skip
    note = (
        "Reg/M against the exact optimum, mean and 95 % interval; slope of log regret over log K; bound (11) with each "
        "path's own proxy error: largest share of it that regret took, and on how many paths it held"
    )
    return Report("static", [Table("regret, values that stay", columns, rows, note)], {"K": rounds, "policies": curves})


def _static_row(label: str, rounds: tuple[int, ...], regret: list[Interval], runs: list[list[Path]]) -> dict[str, Cell]:
    paths = [path for group in runs for path in group]
    held = sum(path.regret <= path.bound for path in paths)
    means = np.maximum([interval.mean for interval in regret], 1e-12)
    row: dict[str, Cell] = {"policy": label, **{f"K={k}": mean for k, mean in zip(rounds, regret, strict=True)}}
    row["slope"] = float(np.polyfit(np.log(rounds), np.log(means), 1)[0])
    row["largest_share"] = max(path.regret / path.bound for path in paths)
    row["within"] = f"{held} of {len(paths)}"
    return row
