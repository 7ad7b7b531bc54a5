"""MoPPS: model predictive prompt selection by posterior sampling."""

import numpy as np

from allocator.order import best_first
from allocator.pool import Pool
from allocator.problem import Proposal, State
from allocator.rivals.cycle import TINY, Cycle
from allocator.uniform import units_due

CANDIDATES_PER_GROUP = 16
"""Candidates drawn for each group that is sampled (`ts_ratio` of the authors' scripts, 8 or 16)."""


class Mopps(Cycle):
    """Of the next candidates, the groups with least (P_i - 1/2)^2, P_i ~ Beta(a_i, b_i); even pace (2507.04632).

    Their decay of the evidence is the spec's `forgetting`, per visit (1 or 0.5 in the paper).
    """

    def __init__(self, pool: Pool, seed: int):
        super().__init__(pool, seed)
        self._seed = seed

    def _batch_size(self, units: int) -> int:
        problem = self._pool.problem
        return min(CANDIDATES_PER_GROUP * problem.groups(units), problem.prompts)

    def propose(self) -> Proposal:
        pool, units = self._pool, units_due(self._pool)
        prompts = self._next(self._batch_size(units))
        p = np.random.default_rng([self._seed, pool.epoch]).beta(*pool.posterior.parameters(prompts))
        nearness = np.maximum(p * (1 - p), TINY)  # 1/4 - (p - 1/2)^2
        places = best_first(nearness, np.arange(len(prompts), dtype=np.int32), pool.problem.groups(units))
        return Proposal.filled(prompts[places], units, pool.problem)

    def state_dict(self) -> State:
        return {**super().state_dict(), "seed": self._seed}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self._seed = int(state["seed"])
