"""The optimum of the dynamic problem, where values move along a known path: certified from below and above."""

from typing import NamedTuple

import numpy as np

from allocator.problem import Floats, Ints, Problem
from allocator.utility import saturation_rate

CAPACITY_STEPS = 12
"""Subgradient steps on the prices of the rounds' capacity, in the dynamic optimum."""


class Certified(NamedTuple):
    """Bounds of an optimum per prompt: `lower` is the value of a plan that keeps all constraints."""

    lower: float
    upper: float


def dynamic_optimum(value: Floats, saturation: float, problem: Problem) -> Certified:
    """max of sum_k [U(q_k, z_k) - U(q_k, z_{k-1})] / M for a known path of values q [K, M].

    With prices for the budget and for each round's capacity the prompts part, and each is a dynamic program over
    (round, exposure). Its value plus what the constraints are worth at the prices is an upper bound for any prices; its
    plan, fitted to the constraints, a lower one. First the budget's price is found, then all prices descend.
    """
    rate = saturation_rate(value, saturation, problem.equal_share_units)
    decay = _decay(rate, problem.max_units_per_prompt)
    price = _budget_price(rate, decay, problem)
    scarcity, step_size = np.zeros(problem.epochs), 0.15 * max(price, float(rate.mean()) / 10)
    lower, upper = 0.0, np.inf
    for step in range(CAPACITY_STEPS):
        bound, plan = _priced(decay, price + scarcity, problem.max_units_per_prompt)
        upper = min(upper, bound + price * problem.budget_units + float(scarcity.sum()) * problem.capacity_units)
        lower = max(lower, plan_value(rate, _fitted(rate, plan, problem)))
        excess = plan.sum(axis=1) / problem.capacity_units - 1
        if excess.max() <= 0 and scarcity @ excess == 0 and (price == 0 or plan.sum() == problem.budget_units):
            break  # the plan keeps all constraints and fills those that have a price: it is the optimum
        scarcity = np.maximum(scarcity + step_size / np.sqrt(step + 1) * excess, 0)
        price = max(price * (1 + (plan.sum() / problem.budget_units - 1) / np.sqrt(step + 1)), 0.0)
    return Certified(lower / problem.prompts, upper / problem.prompts)


def _budget_price(rate: Floats, decay: list[Floats], problem: Problem) -> float:
    """The price of a unit at which the capacity-free plan takes the budget, to about 1 %; 0 if all can be afforded.

    The priced optimum plus price x B is convex in the price: the next trial is where the tangents of the two closest
    ones around the least cross.
    """
    low, high = 0.0, float(rate.max())  # at the highest price nothing is bought
    bound, excess = np.array([0.0, high * problem.budget_units]), np.array([0.0, -problem.budget_units])
    price = low
    while high - low > 0.01 * high:
        total, plan = _priced(decay, np.full(problem.epochs, price), problem.max_units_per_prompt)
        over = int(plan.sum()) - problem.budget_units
        if over == 0 or (price == 0 and over < 0):
            return price
        side = int(over < 0)
        bound[side], excess[side] = total + price * problem.budget_units, over
        low, high = (low, price) if side else (price, high)
        price = (bound[0] + excess[0] * low - bound[1] - excess[1] * high) / (excess[0] - excess[1])
        if not low < price < high:
            break
    return high


def _decay(rate: Floats, max_units: int) -> list[Floats]:
    """e^{-c_k z} by round, [M, N_max (k + 1) + 1]: exposures that can be reached until the end of round k."""
    return [np.exp(-c[:, None] * np.arange(max_units * (k + 1) + 1)) for k, c in enumerate(rate)]


def _priced(decay: list[Floats], prices: Floats, max_units: int) -> tuple[float, Ints]:
    """Sum over prompts of the best value less the `prices` [K] of its units, and the plan [K, M] that has it.

    V_k(z) = max over n of e^{-c_k z} - e^{-c_k (z+n)} - price_k n + V_{k+1}(z + n).
    """
    prompts = len(decay[0])
    ahead = np.zeros_like(decay[-1])
    choices = []
    for e, price in zip(reversed(decay), reversed(prices), strict=True):
        width = e.shape[1] - max_units
        score = ahead - e
        best, choice = score[:, :width].copy(), np.zeros((prompts, width), np.int8)
        for n in range(1, max_units + 1):
            other = score[:, n : n + width] - price * n
            better = other > best
            np.copyto(best, other, where=better)
            choice[better] = n
        ahead = best + e[:, :width]
        choices.append(choice)
    exposure, plan = np.zeros(prompts, np.int64), np.zeros((len(decay), prompts), np.int64)
    for k, choice in enumerate(reversed(choices)):
        plan[k] = choice[np.arange(prompts), exposure]
        exposure += plan[k]
    return float(ahead[:, 0].sum()), plan


def _fitted(rate: Floats, plan: Ints, problem: Problem) -> Ints:
    """`plan` [K, M] within C and B: units too many for a round, those of least gain, wait for a later one; what is left
    when the budget is gone is dropped."""
    after = np.cumsum(plan, axis=0)
    gain = rate * np.exp(-rate * after)
    fitted, carried, left = np.zeros_like(plan), np.zeros(problem.prompts, np.int64), problem.budget_units
    for k, units in enumerate(plan):
        wanted = np.minimum(units + carried, problem.max_units_per_prompt)
        best = np.argsort(-gain[k])
        room = min(problem.capacity_units, left)
        fitted[k, best] = np.diff(np.minimum(np.cumsum(wanted[best]), room), prepend=0)
        carried += units - fitted[k]
        left -= int(fitted[k].sum())
    return fitted


def plan_value(rate: Floats, plan: Ints) -> float:
    """Sum over rounds and prompts of what `plan` [K, M] gains at the rates c [K, M]."""
    after = np.cumsum(plan, axis=0)
    return float((np.exp(-rate * (after - plan)) * -np.expm1(-rate * plan)).sum())
