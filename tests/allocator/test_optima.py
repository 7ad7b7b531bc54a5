"""Optima and bounds of the simulator against exhaustive search."""

from itertools import product
from math import exp

import numpy as np
import pytest

from allocator.policies import POLICIES
from allocator.problem import Problem
from allocator.simulator.bounds import bayes_bound, stopping_value
from allocator.simulator.dynamic import dynamic_optimum, plan_value
from allocator.simulator.oracles import TrueGreedy, spread, static_optimum
from allocator.simulator.run import open_allocator, run
from allocator.simulator.static import Contender, StaticJob, static_path
from allocator.simulator.worlds import World
from allocator.utility import saturation_rate

# Optima.


@pytest.mark.parametrize("budget", range(1, 9))
def test_the_static_optimum_is_that_of_exhaustive_search(budget):
    problem = Problem(3, 2, budget, 4, 2, 1)
    value = np.array([0.25, 0.06, 0.11])
    rate = saturation_rate(value, 1.5, problem.equal_share_units)
    plans = [np.array(units) for units in product(range(5), repeat=3) if sum(units) == budget]
    best = max(float(-np.expm1(-rate * units).mean()) for units in plans)
    optimum, units = static_optimum(value, 1.5, problem)
    assert optimum == pytest.approx(best, abs=1e-12)
    plan = spread(units, problem)
    assert plan.sum(axis=0).tolist() == units.tolist()
    assert plan.max() <= 2
    assert plan.sum(axis=1).max() <= 4


@pytest.mark.parametrize("budget", range(1, 9))
@pytest.mark.parametrize(("seed", "capacity"), [(0, 4), (1, 4), (2, 2)])
def test_the_dynamic_optimum_encloses_that_of_exhaustive_search(budget, seed, capacity):
    """2 prompts, 4 rounds. The enclosure cannot be tight for every budget, since units are whole."""
    problem = Problem(2, 4, budget, capacity, 2, 1)
    value = np.random.default_rng(seed).uniform(0, 0.25, (4, 2))
    rate = saturation_rate(value, 1.0, problem.equal_share_units)
    plans = np.array(list(product(range(3), repeat=8))).reshape(-1, 4, 2)
    plans = plans[(plans.sum(axis=(1, 2)) <= budget) & (plans.sum(axis=2).max(axis=1) <= capacity)]
    best = max(plan_value(rate, plan) for plan in plans) / 2
    lower, upper = dynamic_optimum(value, 1.0, problem)
    assert lower <= best + 1e-12
    assert best <= upper + 1e-12
    assert upper - lower < (0.05 if capacity == 4 else 0.15)


def test_with_nothing_scarce_the_dynamic_optimum_is_exact():
    problem = Problem(2, 4, 16, 4, 2, 1)
    value = np.random.default_rng(0).uniform(0, 0.25, (4, 2))
    rate = saturation_rate(value, 1.0, problem.equal_share_units)
    best = max(plan_value(rate, np.array(plan).reshape(4, 2)) for plan in product(range(3), repeat=8)) / 2
    assert dynamic_optimum(value, 1.0, problem) == pytest.approx((best, best), abs=1e-12)


def test_a_path_that_stays_has_the_static_optimum():
    problem = Problem(8, 20, 80, 16, 2, 1)
    value = np.linspace(0.02, 0.25, 8)
    lower, upper = dynamic_optimum(np.tile(value, (20, 1)), 1.0, problem)
    optimum, _ = static_optimum(value, 1.0, problem)
    assert lower <= optimum + 1e-12 <= upper + 2e-12
    assert upper - lower < 2e-3


# The Bayes bound.

CHANCE, WEIGHT = np.array([0.05, 0.4, 0.5]), np.array([0.5, 0.2, 0.3])


def posterior(successes: int, failures: int) -> np.ndarray:
    belief = WEIGHT * CHANCE**successes * (1 - CHANCE) ** failures
    return belief / belief.sum()


@pytest.mark.parametrize("price", [0.02, 0.1, 0.2])
def test_the_priced_prompt_is_exhaustive_expectimax(price):
    """One response a group; after 4 groups p is told, and groups can be bought in parts."""
    problem = Problem(10, 10, 20, 20, 2, 1)
    rate = saturation_rate(CHANCE * (1 - CHANCE), 1.0, 2.0)
    parts = np.arange(0, 40, 1e-3)

    def value(successes: int, failures: int) -> float:
        belief, n = posterior(successes, failures), successes + failures
        if n == 4:
            told = [max(exp(-c * n) * (1 - np.exp(-c * parts)) - price * parts) for c in rate]
            return float(belief @ told)
        won = float(belief @ CHANCE)
        ahead = won * value(successes + 1, failures) + (1 - won) * value(successes, failures + 1)
        return max(0.0, float(belief @ (np.exp(-rate * n) * -np.expm1(-rate))) - price + ahead)

    found = stopping_value(CHANCE, WEIGHT, np.array([price]), problem, 1.0, 1, depth=4)
    assert found == pytest.approx([value(0, 0)], abs=1e-6)


def test_the_bayes_bound_exceeds_expectimax_over_a_pool():
    """Two prompts, three units one after the other: the best joint plan, by search over all histories."""
    problem = Problem(2, 3, 3, 1, 1, 1)
    rate = saturation_rate(CHANCE * (1 - CHANCE), 1.0, 1.5)

    def value(left: int, first: tuple[int, int], second: tuple[int, int]) -> float:
        if not left:
            return 0.0
        return max(step(left, first, lambda new: (new, second)), step(left, second, lambda new: (first, new)))

    def step(left, prompt, placed) -> float:
        won, lost = prompt
        belief = posterior(won, lost)
        chance = float(belief @ CHANCE)
        now = float(belief @ (np.exp(-rate * (won + lost)) * -np.expm1(-rate)))
        return (
            now
            + chance * value(left - 1, *placed((won + 1, lost)))
            + (1 - chance) * value(left - 1, *placed((won, lost + 1)))
        )

    best = value(3, (0, 0), (0, 0)) / 2
    assert best <= bayes_bound(CHANCE, WEIGHT, problem) <= 1.2 * best


def test_no_policy_exceeds_the_bayes_bound():
    problem = Problem(400, 40, 2_800, 90, 2, 4)
    p = np.random.default_rng(0).permutation(np.repeat([0.02, 0.5, 0.98], [160, 80, 160]))
    bound = bayes_bound(np.array([0.02, 0.5, 0.98]), np.array([0.4, 0.2, 0.4]), problem)
    reached = {
        name: np.mean([surrogate(name, problem, World(p, seed), seed) for seed in range(2)]) for name in POLICIES
    }
    assert max(reached.values()) <= bound
    assert bound <= run(TrueGreedy(World(p, 0), problem), World(p, 0), problem).surrogate


def surrogate(policy: str, problem: Problem, world: World, seed: int) -> float:
    return run(open_allocator(policy, problem, world, seed), world, problem).surrogate


# The paper's bound.


@pytest.mark.parametrize("policy", [name for name in ("cero", "sluice") if name in POLICIES])
def test_regret_keeps_to_bound_11(policy):
    for seed in range(3):
        path = static_path(StaticJob(Contender(policy, policy), 100, seed))
        assert 0 <= path.regret <= path.bound <= 1
        assert 0 < path.error < 0.25
