"""What could have been had with the truth known: the optimum of the static problem, and a greedy rule for any world."""

import numpy as np
from numpy.typing import ArrayLike

from allocator.order import best_first
from allocator.problem import Floats, Ints, Problem, Proposal
from allocator.simulator.worlds import Decision, World
from allocator.utility import saturation_rate, utility


def static_optimum(value: Floats, saturation: float, problem: Problem) -> tuple[float, Ints]:
    """OPT / M of eq. (4) for values q [M], and the units [M] of a plan that reaches it.

    The l-th unit of prompt i gains (1 - e^-c) e^{-c (l-1)}, falling in l: the B largest gains are the optimum. The
    rounds do not matter for it (`spread`).
    """
    rate = saturation_rate(value, saturation, problem.equal_share_units)
    most = problem.epochs * problem.max_units_per_prompt
    gain = -np.expm1(-rate)[:, None] * np.exp(-rate[:, None] * np.arange(most))
    budget = min(problem.budget_units, gain.size)
    best = np.argpartition(gain, gain.size - budget, axis=None)[gain.size - budget :]
    units = np.bincount(best // most, minlength=len(value)).astype(np.int64)
    return float(utility(rate, units.astype(np.float64)).mean()), units


def spread(units: Ints, problem: Problem) -> Ints:
    """A plan [K, M] that gives prompts their `units` [M] within N_max and C (CERO, App. C.2).

    Units are laid one prompt after the other, the r-th in all in round 1 + ((r - 1) mod K).
    """
    plan = np.zeros((problem.epochs, problem.prompts), np.int64)
    owner = np.repeat(np.arange(problem.prompts), units)
    np.add.at(plan, (np.arange(len(owner)) % problem.epochs, owner), 1)
    return plan


class TrueGreedy:
    """The league's `oracle`: at an even pace, groups of N_max to the largest gains at the *current* true values.

    It knows p but not where p will move, and is not optimal. Under a token budget it divides by the true mean lengths.
    """

    holds_update = False

    def __init__(self, world: World, problem: Problem, saturation: float = 1.0, budget_tokens: int | None = None):
        self._world, self._problem, self._saturation = world, problem, saturation
        self._exposure = np.zeros(problem.prompts, np.int64)
        self._rank = np.arange(problem.prompts, dtype=np.int32)
        self._in_tokens = budget_tokens is not None
        self._left = budget_tokens if budget_tokens is not None else problem.budget_units
        self._cost: Floats = np.ones(problem.prompts)
        self._dearest = 1
        if self._in_tokens:
            assert world.lengths is not None
            self._cost = world.lengths.mean_tokens * problem.unit_rollouts
            self._dearest = world.lengths.longest_tokens * problem.unit_rollouts

    def decide(self, epoch: int) -> Decision:
        problem = self._problem
        p = self._world.probability
        rate = saturation_rate(p * (1 - p), self._saturation, problem.equal_share_units)
        gain = np.exp(-rate * self._exposure) * -np.expm1(-rate * problem.max_units_per_prompt)
        due = self._left // (problem.epochs - epoch)
        order = best_first(gain / self._cost, self._rank, problem.groups(problem.capacity_units))
        cost = np.cumsum(self._cost[order]) * problem.max_units_per_prompt
        if self._in_tokens:
            order, units = order[cost <= due], problem.capacity_units
        else:
            units = due
        proposal = Proposal.filled(order, min(units, problem.capacity_units), problem)
        proposal = proposal.clipped(self._left // self._dearest)
        self._exposure[proposal.prompts] += proposal.units
        return Decision(proposal.prompts, proposal.units * problem.unit_rollouts)

    def observe(
        self, epoch: int, prompts: ArrayLike, successes: ArrayLike, failures: ArrayLike, tokens: ArrayLike | None = None
    ) -> None:
        rollouts = int(np.sum(successes) + np.sum(failures))
        if self._in_tokens:
            assert tokens is not None
            self._left -= int(np.sum(tokens))
        else:
            self._left -= rollouts // self._problem.unit_rollouts
