"""Rivals that are given a batch of prompts and split the epoch's units over it: group sizes vary, prompts do not.

The batch is the next prompts of the uniform cycle, as many as make the mean group (1 + N_max) / 2 units, midway between
the smallest and the largest. So a larger N_max leaves more to decide; with N_max = 1 all are the uniform cycle.
"""

import numpy as np

from allocator.pool import Pool
from allocator.problem import Floats, Ints, Outcome, Proposal, State
from allocator.rivals.cycle import TINY, Cycle
from allocator.uniform import units_due

GVM_ALPHA, GVM_BETA = 1e-3, 2.0


class Split(Cycle):
    """`_split` says how; what gets no unit is passed over until the cycle comes round again."""

    def _batch_size(self, units: int) -> int:
        problem = self._pool.problem
        return min(-(-2 * units // (1 + problem.max_units_per_prompt)), problem.prompts)

    def propose(self) -> Proposal:
        units = units_due(self._pool)
        prompts = self._next(self._batch_size(units))
        shares = self._split(prompts, units) if units else np.zeros(0, np.int64)
        return Proposal(prompts[shares > 0], shares[shares > 0])

    def _split(self, prompts: Ints, units: int) -> Ints:
        """Units of each of `prompts` [n], 0..N_max, that sum to `units`, n <= units <= n N_max."""
        raise NotImplementedError

    def _mean(self, prompts: Ints) -> Floats:
        a, b = self._pool.posterior.parameters(prompts)
        return a / (a + b)


class Knapsack(Split):
    """max sum_i [1 - p^N - (1-p)^N] p (1-p)^2, sum N_i = batch budget (2509.25849): Prob(gradient) x expected progress.

    Concave in N, hence solved exactly by taking the best next units; the paper runs a dynamic programme. p [M] is the
    success rate at the last visit, the prior mean before the first. Every prompt gets a unit, and what no other prompt
    has use for goes to those with p = 0. Left out: estimates of p from several past visits.
    """

    def __init__(self, pool: Pool, seed: int):
        super().__init__(pool, seed)
        self._rate = pool.posterior.mean()

    def _split(self, prompts: Ints, units: int) -> Ints:
        problem, p = self._pool.problem, self._rate[prompts][:, None]
        responses = problem.unit_rollouts * np.arange(1, problem.max_units_per_prompt + 1)
        gain = p * (1 - p) ** 2 * -np.diff(p**responses + (1 - p) ** responses)  # [n, N_max - 1], of each further unit
        gain[p[:, 0] == 0] = TINY
        best = np.argsort(-gain, axis=None, kind="stable")[: units - len(prompts)]
        return 1 + np.bincount(best // max(gain.shape[1], 1), minlength=len(prompts))

    def update(self, proposal: Proposal, outcome: Outcome) -> None:
        super().update(proposal, outcome)
        self._rate[outcome.prompts] = outcome.successes / (outcome.successes + outcome.failures)

    def state_dict(self) -> State:
        return {**super().state_dict(), "rate": self._rate.copy()}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self._rate = np.array(state["rate"])


class Gvm(Split):
    """n_i proportional to G_i / sqrt(p_i + alpha / p_i^(beta - 1)), 0 where p_i = 0 (2505.02391, `em/stage_2`).

    Left out: the gradient norms, as the scheduler sees no gradients (G_i = 1), and the pilot that measures p in every
    epoch: p is the posterior mean, which is never 0, so a prompt gets nothing only by rounding.
    """

    def _split(self, prompts: Ints, units: int) -> Ints:
        p = self._mean(prompts)
        weight = 1 / np.sqrt(p + GVM_ALPHA / p ** (GVM_BETA - 1))
        return filled(0.0, weight, 0, self._pool.problem.max_units_per_prompt, units)


class Vip(Split):
    """min sum_i a_i / (n_i - 1), a_i = p_i (1 - p_i): n_i = 1 + sqrt(a_i / xi) responses, clipped (2602.01601).

    Left out: the Gaussian process over prompt embeddings that predicts p there. Here p is the posterior mean, which
    tells prompts not yet seen apart only with `prior: learned` and families.
    """

    def _split(self, prompts: Ints, units: int) -> Ints:
        problem, p = self._pool.problem, self._mean(prompts)
        return filled(1 / problem.unit_rollouts, np.sqrt(p * (1 - p)), 1, problem.max_units_per_prompt, units)


def filled(offset: float, weight: Floats, low: int, high: int, total: int) -> Ints:
    """clip(offset + scale weight [n], low, high) in whole numbers, at the scale where they sum to `total`.

    By bisection on the scale, then largest remainders. Needs weight > 0 and n low <= total <= n high.
    """
    below, above = 0.0, high / float(weight.min())
    for _ in range(64):
        middle = (below + above) / 2
        if np.clip(offset + middle * weight, low, high).sum() <= total:
            below = middle
        else:
            above = middle
    share = np.clip(offset + below * weight, low, high)
    whole = share.astype(np.int64)
    whole[np.argsort(whole - share, kind="stable")[: total - int(whole.sum())]] += 1
    return whole
