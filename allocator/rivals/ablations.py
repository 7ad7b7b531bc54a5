"""CERO with one part taken out: the ablations of its own paper (arXiv 2606.05606, Sec. 6 and Table 2)."""

import numpy as np

from allocator.cero import Cero
from allocator.order import best_first, tie_order
from allocator.pool import Pool
from allocator.problem import Floats, Outcome, Proposal, State
from allocator.rivals.cycle import TINY
from allocator.uniform import units_due
from allocator.utility import blocks, saturation_rate


class RandomMatched(Cero):
    """Sum N_k as CERO's, N_k on a uniform draw of prompts: the same schedule without the choice (2606.05606, Sec. 6).

    The duals step on what CERO would have proposed, from the beliefs that the random groups leave.
    """

    def __init__(self, pool: Pool, seed: int):
        super().__init__(pool, seed)
        self._seed = seed

    def propose(self) -> Proposal:
        units = super().propose().units
        order = np.random.default_rng([self._seed, self._pool.epoch]).permutation(self._pool.problem.prompts)
        return Proposal(order[: len(units)], units)

    def update(self, proposal: Proposal, outcome: Outcome) -> None:
        super().update(super().propose(), outcome)  # CERO's own proposal depends on the duals alone, which stand still

    def state_dict(self) -> State:
        return {**super().state_dict(), "seed": self._seed}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self._seed = int(state["seed"])


class CeroFixed(Cero):
    """max sum theta_i n_i at B / K units an epoch: CERO with nu = 0 and an even pace (2606.05606, Table 2 "fixed")."""

    def __init__(self, pool: Pool, seed: int):
        super().__init__(pool, seed)
        self._price = 0.0

    def propose(self) -> Proposal:
        problem, units = self._pool.problem, units_due(self._pool)
        order = best_first(np.maximum(self._priority, TINY), self._tie_rank, problem.groups(units))
        return Proposal.filled(order, units, problem)

    def update(self, proposal: Proposal, outcome: Outcome) -> None:
        super().update(proposal, outcome)
        self._price = 0.0


class CeroGreedy:
    """Top U(q, z + N_max) - U(q, z) = e^(-c z) (1 - e^(-c N_max)), even pace (2606.05606, Table 2 "greedy").

    q is q-hat of eq. (6), c = 4 lambda q / R, and z the exposure that was really executed.
    """

    holds_update = False

    def __init__(self, pool: Pool, seed: int):
        self._pool = pool
        self._tie_rank = tie_order(pool.problem.prompts, seed)

    def propose(self) -> Proposal:
        pool, problem, units = self._pool, self._pool.problem, units_due(self._pool)
        gain: Floats = np.empty(problem.prompts)
        for block in blocks(problem.prompts):
            rate = saturation_rate(pool.posterior.value(block), pool.spec.utility_saturation, problem.equal_share_units)
            gain[block] = np.exp(-rate * pool.exposure[block]) * -np.expm1(-rate * problem.max_units_per_prompt)
        order = best_first(np.maximum(gain, TINY), self._tie_rank, problem.groups(units))
        return Proposal.filled(order, units, problem)

    def update(self, proposal: Proposal, outcome: Outcome) -> None:
        pass  # all that it decides on is in the pool

    def state_dict(self) -> State:
        return {"tie_rank": self._tie_rank.copy()}

    def load_state_dict(self, state: State) -> None:
        self._tie_rank = np.array(state["tie_rank"])

    def metrics(self) -> dict[str, float]:
        return {}
