"""CERO: cross-epoch adaptive rollout optimisation (arXiv 2606.05606, Algorithm 1).

The budget of the whole run is priced by one dual variable, each prompt's saturating utility is linearised by another;
given both, an epoch's best allocation is a sort. Both duals take projected subgradient steps of size 1 / sqrt(K),
always on the *virtual* allocation: what the prices ask for within the capacity, before the remaining budget cuts it.

Duals are normalised by c-bar = lambda / R, the steepest slope any utility can have, hence live in [0, 1]. Left out: the
"reserve-aware catch-up" that the paper mentions, never triggers and does not specify.
"""

import math

import numpy as np

from allocator.order import best_first, tie_order
from allocator.pool import Pool
from allocator.problem import Floats, Outcome, Proposal, State
from allocator.utility import blocks, conjugate_maximiser, saturation_rate


class Cero:
    """State: the duals vartheta (`priority` [M]) and nu (`price`), and one order from `seed` that breaks all ties."""

    holds_update = False

    def __init__(self, pool: Pool, seed: int):
        self._pool = pool
        self._saturation = pool.spec.utility_saturation
        self._priority: Floats = 4 * pool.posterior.value()
        self._price = pool.spec.initial_price
        self._tie_rank = tie_order(pool.problem.prompts, seed)

    def propose(self) -> Proposal:
        """The virtual allocation, eq. (8): N_max units to each prompt of positive margin, best first, to capacity."""
        problem = self._pool.problem
        groups = problem.groups(problem.capacity_units)
        order = best_first(self._priority - self._price, self._tie_rank, groups)
        return Proposal.filled(order, problem.capacity_units, problem)

    def update(self, proposal: Proposal, outcome: Outcome) -> None:
        """The dual steps, eq. (10), with q-hat after this epoch's feedback and N the virtual `proposal`.

        vartheta <- [vartheta - (N - z*/K) / (N_max sqrt K)] and nu <- [nu - (B/K - sum N) / (G_B sqrt K)], both
        projected on [0, 1]. Every prompt takes its step, sampled or not.
        """
        problem = self._pool.problem
        step, share = 1 / math.sqrt(problem.epochs), problem.equal_share_units
        horizon = problem.epochs * problem.max_units_per_prompt
        taken = np.zeros(problem.prompts)
        taken[proposal.prompts] = proposal.units * (step / problem.max_units_per_prompt)
        for block in blocks(problem.prompts):
            priority = self._priority[block]
            rate = saturation_rate(self._pool.posterior.value(block), self._saturation, share)
            exposure = conjugate_maximiser(priority * (self._saturation / share), rate, horizon)
            exposure *= step / horizon
            exposure -= taken[block]
            priority += exposure
            np.clip(priority, 0, 1, out=priority)

        pace = problem.pace_units
        largest_gradient = max(pace, problem.capacity_units - pace)
        price = self._price - step * (pace - int(proposal.units.sum())) / largest_gradient
        self._price = min(max(price, 0.0), 1.0)

    def state_dict(self) -> State:
        """The tie order is kept and not redrawn: numpy does not promise the same stream in every version."""
        return {"priority": self._priority.copy(), "tie_rank": self._tie_rank.copy(), "price": self._price}

    def load_state_dict(self, state: State) -> None:
        self._priority = np.array(state["priority"])
        self._tie_rank = np.array(state["tie_rank"])
        self._price = float(state["price"])

    def metrics(self) -> dict[str, float]:
        return {"price": self._price}
