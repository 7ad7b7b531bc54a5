"""CERO: cross-epoch adaptive rollout optimisation (arXiv 2606.05606, Algorithm 1).

The budget of the whole run is priced by one dual variable, each prompt's saturating utility is linearised by another;
given both, an epoch's best allocation is a sort. Both duals take projected subgradient steps of size 1 / sqrt(K),
always on the *virtual* allocation: what the prices ask for within the capacity, before the remaining budget cuts it.

Duals are normalised by c-bar = lambda / R, the steepest slope any utility can have, hence live in [0, 1]. Left out: the
"reserve-aware catch-up" that the paper mentions, never triggers and does not specify.
"""

import math

import numpy as np

from allocator.problem import Floats, Ints, Problem, Proposal, State
from allocator.utility import conjugate_maximiser, saturation_rate


class Cero:
    """State: the duals vartheta (`priority` [M]) and nu (`price`), and one order from `seed` that breaks all ties.

    `values` [M] are the q-hat of the prior, `saturation` is lambda.
    """

    def __init__(self, problem: Problem, values: Floats, saturation: float, initial_price: float, seed: int):
        self._problem = problem
        self._saturation = saturation
        self._step = 1 / math.sqrt(problem.epochs)
        self._priority: Floats = 4 * values
        self._price = initial_price
        self._tie_rank: Ints = np.random.default_rng(seed).permutation(problem.prompts)

    def propose(self) -> Proposal:
        """The virtual allocation, eq. (8): N_max units to each prompt of positive margin, best first, to capacity."""
        problem = self._problem
        groups = -(-problem.capacity_units // problem.max_units_per_prompt)
        order = best_first(self._priority - self._price, self._tie_rank, groups)
        return Proposal.filled(order, problem.capacity_units, problem)

    def update(self, proposal: Proposal, values: Floats) -> None:
        """The dual steps, eq. (10), with `values` [M] = q-hat after this epoch's feedback and N the virtual `proposal`.

        vartheta <- [vartheta - (N - z*/K) / (N_max sqrt K)] and nu <- [nu - (B/K - sum N) / (G_B sqrt K)], both
        projected on [0, 1]. Every prompt takes its step, sampled or not.
        """
        problem = self._problem
        equal_share = problem.budget_units / problem.prompts
        pace = problem.budget_units / problem.epochs
        rate = saturation_rate(values, self._saturation, equal_share)
        slope = self._priority * (self._saturation / equal_share)
        descent = conjugate_maximiser(slope, rate, problem.epochs * problem.max_units_per_prompt)
        descent /= problem.epochs
        descent[proposal.prompts] -= proposal.units
        descent *= self._step / problem.max_units_per_prompt
        self._priority += descent
        np.clip(self._priority, 0, 1, out=self._priority)

        largest_gradient = max(pace, problem.capacity_units - pace)
        price = self._price - self._step * (pace - int(proposal.units.sum())) / largest_gradient
        self._price = min(max(price, 0.0), 1.0)

    def state_dict(self) -> State:
        """The tie order is kept and not redrawn: numpy does not promise the same stream in every version."""
        return {"priority": self._priority.copy(), "tie_rank": self._tie_rank.copy(), "price": self._price}

    def load_state_dict(self, state: State) -> None:
        self._priority = np.array(state["priority"])
        self._tie_rank = np.array(state["tie_rank"])
        self._price = float(state["price"])

    def metrics(self) -> dict[str, float]:
        return {
            "price": self._price,
            "priority_mean": float(self._priority.mean()),
            "priority_max": float(self._priority.max()),
        }


def best_first(margin: Floats, tie_rank: Ints, count: int) -> Ints:
    """The at most `count` prompts of largest positive `margin` [M], best first; among equals the lower `tie_rank` [M].

    Selecting before sorting keeps the cost linear in the pool; in the first pass the whole pool is one tie.
    """
    chosen = np.flatnonzero(margin > 0)
    if len(chosen) > count:
        candidates = margin[chosen]
        cut = np.partition(candidates, len(chosen) - count)[len(chosen) - count]
        above, tied = chosen[candidates > cut], chosen[candidates == cut]
        places = count - len(above)
        tied = tied[np.argpartition(tie_rank[tied], places - 1)[:places]]
        chosen = np.concatenate([above, tied])
    return chosen[np.lexsort((tie_rank[chosen], -margin[chosen]))]
