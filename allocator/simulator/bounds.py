"""The paper's regret bounds, and what no policy can exceed that has to learn the values while it spends.

The latter is a Lagrangian bound: give units a price, and every prompt is a stopping problem of its own, whose belief is
that of the exact prior; its value plus price x budget bounds what any policy for the whole pool can expect, for any
price. Only the static world has it: there p stays as drawn.
"""

from math import comb, sqrt

import numpy as np

from allocator.problem import Floats, Problem
from allocator.utility import saturation_rate


def static_bound(problem: Problem, saturation: float, error: float) -> float:
    """Eq. (11), of regret per prompt. `error`: mean over rounds and prompts of |q-hat_{i,k+1} - q_i|."""
    return min(1.0, saturation * _learning_term(problem, error))


def dynamic_bound(problem: Problem, saturation: float, error: float, variation: float) -> float:
    """Eq. (12), of regret per prompt. `variation`: V_K, the sum over rounds of max_i |q_{i,k+1} - q_{i,k}|."""
    drift = 4 * (1 + problem.max_units_per_prompt / _share_per_round(problem)) * variation
    return saturation * min(1.0, _learning_term(problem, error) + drift)


def _learning_term(problem: Problem, error: float) -> float:
    units, share, pace = problem.max_units_per_prompt, _share_per_round(problem), problem.pace_units
    gradient = max(pace, problem.capacity_units - pace) / problem.prompts
    return (units + gradient) / share / sqrt(problem.epochs) + 8 * units / share * error


def _share_per_round(problem: Problem) -> float:
    return problem.equal_share_units / problem.epochs


def bayes_bound(
    chance: Floats, weight: Floats, problem: Problem, saturation: float = 1.0, group_units: int = 1, depth: int = 12
) -> float:
    """Largest expected surrogate per prompt of any policy, if p has the prior `weight` [n] on `chance` [n].

    `group_units`: prompts are sampled in groups of so many units; 1 bounds policies with any sizes, for larger groups
    tell nothing until they are complete. After `depth` groups all is told, which keeps it a bound.
    """
    share = problem.equal_share_units
    steepest = saturation * group_units / share
    prices, bound = np.linspace(0, steepest, 33), np.inf
    for _ in range(3):  # convex in the price: closer and closer around the least
        priced = stopping_value(chance, weight, prices, problem, saturation, group_units, depth)
        bounds = priced + prices * share / group_units
        least = int(np.argmin(bounds))
        bound = min(bound, float(bounds[least]))
        prices = np.linspace(prices[max(least - 1, 0)], prices[min(least + 1, len(prices) - 1)], 17)
    return bound


def stopping_value(
    chance: Floats, weight: Floats, prices: Floats, problem: Problem, saturation: float, group_units: int, depth: int
) -> Floats:
    """Value [P] of one prompt where every group costs a price [P], by dynamic programming over (groups, successes)."""
    rate = saturation_rate(chance * (1 - chance), saturation, problem.equal_share_units) * group_units  # per group
    size = problem.unit_rollouts * group_units
    success = np.stack([comb(size, s) * chance**s * (1 - chance) ** (size - s) for s in range(size + 1)], axis=1)
    value = _belief(chance, weight, depth * size) @ _told_value(rate, prices, depth)
    for groups in range(depth - 1, -1, -1):
        belief = _belief(chance, weight, groups * size)
        next_success = belief @ success
        ahead = sum(next_success[:, s, None] * value[s : s + len(belief)] for s in range(size + 1))
        gain = belief @ (np.exp(-rate * groups) * -np.expm1(-rate))
        value = np.maximum(gain[:, None] - prices + ahead, 0)
    return value[0]


def _belief(chance: Floats, weight: Floats, responses: int) -> Floats:
    """Posterior weights [responses + 1, n] after each number of successes among `responses`."""
    successes = np.arange(responses + 1)[:, None]
    log_odds = np.log(weight + 1e-300) + successes * np.log(chance) + (responses - successes) * np.log1p(-chance)
    belief = np.exp(log_odds - log_odds.max(axis=1, keepdims=True))
    return belief / belief.sum(axis=1, keepdims=True)


def _told_value(rate: Floats, prices: Floats, groups: int) -> Floats:
    """Value [n, P] of going on after `groups` for who knows p: buy (parts of) groups down to a slope of the price."""
    slope = rate * np.exp(-rate * groups)
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = np.maximum(np.log(slope[:, None] / prices), 0)
        surplus = (slope[:, None] - prices - prices * depth) / rate[:, None]
    surplus = np.where(prices > 0, surplus, np.exp(-rate * groups)[:, None])
    return np.where(slope[:, None] > prices, surplus, 0)
