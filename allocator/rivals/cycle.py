"""The uniform cycle as the source of batches: rivals that are given their prompts take the next ones of it."""

import numpy as np

from allocator.problem import Ints, Outcome, Proposal
from allocator.uniform import Uniform

TINY = float(np.finfo(np.float64).tiny)
"""Floor under scores: a score of 0 is still a place in the order, and leaves all others what they are."""


class Cycle(Uniform):
    """`propose` looks at the next `_batch_size(units)` prompts of the cycle; `update` moves the cycle past them."""

    def _batch_size(self, units: int) -> int:
        """Prompts, at most M, that an epoch of `units` looks at."""
        raise NotImplementedError

    def _next(self, count: int) -> Ints:
        """The next `count` <= M prompts."""
        places = (self._cursor + np.arange(count)) % self._pool.problem.prompts
        return self._order[places].astype(np.int64)

    def update(self, proposal: Proposal, outcome: Outcome) -> None:
        # A batch may hold prompts that got nothing, but the units proposed are always those it was made for.
        looked_at = self._batch_size(int(proposal.units.sum()))
        self._cursor = (self._cursor + looked_at) % self._pool.problem.prompts
