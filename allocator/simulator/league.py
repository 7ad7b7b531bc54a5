"""Policies against each other in worlds that learn: effective groups, surrogate, and share of the gap that is closed.

The gap is between `uniform`, which knows nothing, and the oracle, which knows every prompt's true value now; it is
taken per seed, since a seed is one draw of prompts that all policies meet.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from allocator.problem import Floats, Problem
from allocator.simulator.bounds import bayes_bound
from allocator.simulator.latents import Beta, Latent, LogitNormal, Mixture, difficulty_families, quadrature
from allocator.simulator.oracles import TrueGreedy
from allocator.simulator.recordings import Recording
from allocator.simulator.report import Cell, Column, Interval, Report, Table
from allocator.simulator.run import Scheduler, open_allocator, run
from allocator.simulator.settings import ORACLE, Settings
from allocator.simulator.worlds import Learning, Lengths, Recorded, World
from allocator.spec import AllocatorSpec

VARIANTS: dict[str, tuple[str, dict[str, float | str]]] = {
    "sluice with its floor": ("sluice", {"coverage_share": AllocatorSpec.model_fields["coverage_share"].default}),
    "cero_greedy with sluice's beliefs": (
        "cero_greedy", {"prior": "learned", "forgetting": 0.5, "forgetting_per": "share"},
    ),
}  # fmt: skip
"""Rows beside the policies: the floor that sluice has in training, and what beliefs alone make of the greedy rule."""

PAPER = Problem(8_958, 500, 64_000, 132, 2, 4)
"""The paper's experiments: 32,000 groups of 8, about 64 a round."""
SMALL = Problem(512, 200, 25_600, 132, 2, 4)
"""12,800 groups of 8: every prompt can be seen 25 times."""
QUICK = Problem(448, 50, 3_200, 66, 2, 4)


@dataclass(frozen=True)
class Arena:
    """A kind of `Learning` world; a seed makes one of it. `family_bins`: how finely difficulty is known beforehand."""

    latent: Latent
    own: float = 0.15
    shared: float = 0.0006
    family_bins: int = 0
    lengths: bool = False

    def world(self, problem: Problem, seed: int) -> World:
        rng = np.random.default_rng([seed, 0])
        logit = self.latent.draw(rng, problem.prompts)
        families = difficulty_families(logit, self.family_bins, 2.0, rng) if self.family_bins else None
        lengths = Lengths.by_difficulty(logit, rng) if self.lengths else None
        return Learning(logit, seed, problem.max_units_per_prompt, self.own, self.shared, lengths, families)


@dataclass(frozen=True, eq=False)
class Replay:
    """A recording as an arena."""

    recording: Recording

    def world(self, problem: Problem, seed: int) -> World:
        return Recorded(self.recording, seed)


@dataclass(frozen=True, eq=False)
class Match:
    """One policy in one world."""

    arena: Arena | Replay
    problem: Problem
    policy: str
    seed: int
    budget_tokens: int | None = None


class Score(NamedTuple):
    effective_rate: float
    effective_rollout_share: float
    surrogate: float
    unspent_share: float
    updates: float
    tokens: float
    success: float


def play(match: Match) -> Score:
    """Policy's and world's seeds differ, so that the order of ties says nothing of the prompts."""
    problem, world = match.problem, match.arena.world(match.problem, match.seed)
    scheduler: Scheduler
    if match.policy == ORACLE:
        scheduler = TrueGreedy(world, problem, budget_tokens=match.budget_tokens)
    else:
        name, options = VARIANTS.get(match.policy, (match.policy, {}))
        scheduler = open_allocator(name, problem, world, match.seed + 1000, match.budget_tokens, **options)
    trace = run(scheduler, world, problem)
    tokens = int(trace.tokens.sum())
    spent = tokens / match.budget_tokens if match.budget_tokens else trace.spent_units.sum() / problem.budget_units
    return Score(
        trace.effective_rate, trace.effective_rollout_share, trace.surrogate, 1 - float(spent), trace.updates, tokens,
        float(world.probability.mean()),
    )  # fmt: skip


COLUMNS = (
    Column("policy", "policy"),
    Column("gap", "gap closed", ".1%"),
    Column("surrogate", "surrogate", ".4f"),
    Column("effective_rate", "effective groups", ".3f"),
    Column("effective_rollout_share", "effective rollouts", ".3f", interval=False),
    Column("updates", "updates", ",.0f", interval=False),
    Column("unspent_share", "unspent", ".1%", interval=False),
    Column("success", "final p", ".3f", interval=False),
)


def standings(scores: Mapping[str, Sequence[Score]]) -> list[dict[str, Cell]]:
    """A row per policy, most of the gap first; scores of all policies are by the same seeds."""
    rows: list[dict[str, Cell]] = []
    for policy, runs in scores.items():
        row: dict[str, Cell] = {"policy": policy, "gap": Interval.of(_gap([run.surrogate for run in runs], scores))}
        for name in Score._fields:
            row[name] = Interval.of(getattr(run, name) for run in runs)
        rows.append(row)
    return sorted(rows, key=lambda row: -_mean(row["gap"]))


def _gap(surrogate: Iterable[float], scores: Mapping[str, Sequence[Score]]) -> Floats:
    """By seed; NaN where every order of prompts is as good as another."""
    low, high = (np.array([score.surrogate for score in scores[name]]) for name in ("uniform", ORACLE))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (np.array(list(surrogate)) - low) / (high - low)


def _mean(cell: Cell) -> float:
    assert isinstance(cell, Interval)
    return cell.mean


def with_ends(policies: Iterable[str]) -> tuple[str, ...]:
    """`policies`, and the two between which the gap is measured."""
    return tuple(dict.fromkeys((ORACLE, "uniform", *policies)))


MAIN = ("sluice", "cero", "cero_greedy", "vip", "mopps")
"""Who meets in the worlds beside the paper's, if no policies are chosen."""
STAGED = ("reinforce_ada", "pilot_commit")
"""Who joins them where an epoch may take twice the pace, which they need to spend their budget."""


def compete(settings: Settings, fields: Sequence[tuple[Arena | Replay, Problem, int]]) -> list[dict[str, list[Score]]]:
    """Scores by policy for every field of (arena, problem, seeds); all policies meet in the first one."""
    policies = [with_ends((*settings.contenders(), *(() if settings.policies else VARIANTS)))]
    policies += [
        with_ends(settings.contenders((*MAIN, *(STAGED if problem.capacity_units >= 2 * problem.pace_units else ()))))
        for _, problem, _ in fields[1:]
    ]
    jobs = [
        (index, Match(arena, problem, policy, seed))
        for index, (arena, problem, seeds) in enumerate(fields)
        for policy in policies[index]
        for seed in range(seeds)
    ]
    results: list[dict[str, list[Score]]] = [{policy: [] for policy in names} for names in policies]
    for (index, match), score in zip(jobs, settings.workers.map(play, [match for _, match in jobs]), strict=True):
        results[index][match.policy].append(score)
    return results


_PAPER_LATENT = Beta(0.35, 0.6)
_THREE_KINDS = Mixture(((0.4, LogitNormal(-6, 1)), (0.4, LogitNormal(6, 1)), (0.2, LogitNormal(0, 1))))
ARENAS = {
    "paper regime, p ~ Beta(.35, .6)": Arena(_PAPER_LATENT),
    "the same, without learning": Arena(_PAPER_LATENT, own=0.0, shared=0.0),
    "the same, 16 bins of noisy difficulty known": Arena(_PAPER_LATENT, family_bins=16),
    "p ~ Beta(.2, .9)": Arena(Beta(0.2, 0.9)),
    "p ~ Beta(.8, .8)": Arena(Beta(0.8, 0.8)),
    "logit p ~ N(-1.5, 2)": Arena(LogitNormal(-1.5, 2)),
    "40 % hopeless, 40 % mastered, 20 % between": Arena(_THREE_KINDS),
}
SMALL_ARENAS = {
    "small pool, p ~ Beta(.35, .6)": Arena(_PAPER_LATENT),
    "small pool, a fifth of the learning": Arena(_PAPER_LATENT, own=0.03),
}


def league(settings: Settings) -> Report:
    """Every policy in the paper's regime, the main ones in every arena; no latent law beside the first was tuned on."""
    problem, small = (QUICK, QUICK) if settings.quick else (PAPER, SMALL)
    seeds = len(settings.seed_range(10))
    fields = {title: (arena, problem, seeds) for title, arena in ARENAS.items()}
    # Policies that sample in stages cannot spend their budget at the paper's capacity of 33/32 of the pace.
    roomy = replace(problem, capacity_units=2 * round(problem.pace_units))
    fields["paper regime, twice the capacity"] = (Arena(_PAPER_LATENT), roomy, seeds)
    fields |= {title: (arena, small, seeds) for title, arena in SMALL_ARENAS.items()}
    report = Report("league")
    overview: dict[str, dict[str, Cell]] = {}
    for number, (title, scores) in enumerate(zip(fields, compete(settings, list(fields.values())), strict=True), 1):
        rows = standings(scores)
        if title == "the same, without learning":
            rows += _bayes_rows(problem, scores)
        report.tables.append(Table(title, COLUMNS, rows, _note(fields[title][1], seeds)))
        for row in rows:
            overview.setdefault(str(row["policy"]), {"policy": row["policy"]})[str(number)] = row["gap"]
    numbered = [Column(str(number), str(number), ".1%", interval=False) for number in range(1, len(fields) + 1)]
    worlds = "; ".join(f"{number} {title}" for number, title in enumerate(fields, 1))
    report.tables.append(Table("gap closed, all worlds", [COLUMNS[0], *numbered], list(overview.values()), worlds))
    return report


def _note(problem: Problem, seeds: int) -> str:
    groups = problem.budget_units // problem.max_units_per_prompt
    return (
        f"{problem.prompts:,} prompts, {problem.epochs} rounds of at most {problem.capacity_units} units, {groups:,} "
        f"groups of {problem.max_group_rollouts}; "
        f"surrogate per prompt; mean and 95 % interval over {seeds} seeds, the gap paired by seed"
    )


def _bayes_rows(problem: Problem, scores: Mapping[str, Sequence[Score]]) -> list[dict[str, Cell]]:
    """What policies that know the exact prior can expect at most, in the world that does not move."""
    chance, weight = quadrature(_PAPER_LATENT)
    rows: list[dict[str, Cell]] = []
    for name, units in (("bound: any policy", 1), (f"bound: groups of {problem.max_group_rollouts} only", 2)):
        bound = bayes_bound(chance, weight, problem, group_units=units, depth=24 // units)
        gap = Interval.of(_gap([bound] * len(scores[ORACLE]), scores))
        rows.append({"policy": name, "surrogate": bound, "gap": gap})
    return rows
