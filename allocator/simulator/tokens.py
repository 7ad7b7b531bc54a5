"""A budget in tokens, responses of different lengths: what policies make of the same number of tokens."""

from allocator.problem import Problem
from allocator.simulator.latents import Beta
from allocator.simulator.league import COLUMNS, Arena, Match, Score, play, standings, with_ends
from allocator.simulator.report import Column, Report, Table
from allocator.simulator.settings import Settings

ARENA = Arena(Beta(0.35, 0.6), lengths=True)
PROBLEM = Problem(2_240, 250, 16_000, 256, 2, 4)
"""A quarter of the paper's pool and budget, half its rounds; four times the pace is allowed, for short responses."""
QUICK = Problem(448, 50, 3_200, 256, 2, 4)


def tokens(settings: Settings) -> Report:
    """The budget is what an equal share of responses to every prompt would take; so is the surrogate's scale."""
    problem = QUICK if settings.quick else PROBLEM
    seeds = settings.seed_range(10)
    policies = with_ends(settings.contenders(("uniform", "cero", "sluice", "cero_greedy")))
    budgets = {}
    for seed in seeds:
        lengths = ARENA.world(problem, seed).lengths
        assert lengths is not None
        budgets[seed] = int(problem.budget_units * problem.unit_rollouts * lengths.mean_tokens.mean())
    jobs = [Match(ARENA, problem, policy, seed, budgets[seed]) for policy in policies for seed in seeds]
    scores: dict[str, list[Score]] = {policy: [] for policy in policies}
    for job, score in zip(jobs, settings.workers.map(play, jobs), strict=True):
        scores[job.policy].append(score)
    columns = [*COLUMNS[:5], Column("tokens", "tokens", ",.0f", interval=False), *COLUMNS[6:]]
    note = (
        f"{problem.prompts:,} prompts, {problem.epochs} rounds; mean lengths lognormal, longer for harder prompts; "
        f"the same tokens for every policy; 95 % intervals over {len(seeds)} seeds"
    )
    return Report("tokens", [Table("equal tokens", columns, standings(scores), note)])
