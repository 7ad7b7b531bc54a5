"""The baseline: one shuffled cycle over all prompts, at an even pace."""

import numpy as np

from allocator.order import tie_order
from allocator.pool import Pool
from allocator.problem import Outcome, Proposal, State


def units_due(pool: Pool) -> int:
    """Units of the next epoch at an even pace, floor(remaining / epochs left): a run ends on its budget to the unit."""
    return min(pool.remaining_units // (pool.problem.epochs - pool.epoch), pool.problem.capacity_units)


class Uniform:
    """Deals N_max units to the next prompts of a fixed permutation, B / K units per epoch, learning nothing.

    Where B / K is not a multiple of N_max, the last group of an epoch is smaller.
    """

    holds_update = False

    def __init__(self, pool: Pool, seed: int):
        self._pool = pool
        self._order = tie_order(pool.problem.prompts, seed)
        self._cursor = 0

    def propose(self) -> Proposal:
        problem = self._pool.problem
        # The capacity is at most M N_max, so a cycle never meets a prompt twice in one epoch.
        units = units_due(self._pool)
        places = (self._cursor + np.arange(problem.groups(units))) % problem.prompts
        return Proposal.filled(self._order[places].astype(np.int64), units, problem)

    def update(self, proposal: Proposal, outcome: Outcome) -> None:
        self._cursor = (self._cursor + len(outcome.prompts)) % self._pool.problem.prompts

    def state_dict(self) -> State:
        return {"order": self._order.copy(), "cursor": self._cursor}

    def load_state_dict(self, state: State) -> None:
        self._order = np.array(state["order"])
        self._cursor = int(state["cursor"])

    def metrics(self) -> dict[str, float]:
        return {}
