"""Rivals that sample in stages before they learn: the update is held until the last one.

Epochs are the stages here, so there are fewer updates than epochs, and the groups of one prompt within a hold are one
group to the learner. Later stages of a batch are smaller than its first: the budget is spent only if the capacity of an
epoch leaves room above the even pace.
"""

import numpy as np
from numpy.typing import NDArray

from allocator.pool import Pool
from allocator.problem import Ints, Outcome, Proposal, State
from allocator.rivals.cycle import Cycle
from allocator.uniform import Uniform, units_due

PILOT_BAND = (0.125, 0.75)


class Dapo(Uniform):
    """Sample on until #{i: 0 < successes_i < n_i} >= batch, the groups of an evenly paced epoch (2503.14476, Sec. 3.2).

    Left out: the cut to exactly a batch; the learner gets all groups that were paid for.
    """

    def __init__(self, pool: Pool, seed: int):
        super().__init__(pool, seed)
        self._batch_groups = pool.problem.groups(units_due(pool))
        self._effective = 0

    def update(self, proposal: Proposal, outcome: Outcome) -> None:
        super().update(proposal, outcome)
        self._effective = (self._effective if self.holds_update else 0) + int(outcome.effective.sum())
        self.holds_update = self._effective < self._batch_groups

    def state_dict(self) -> State:
        return {**super().state_dict(), "effective": self._effective, "holds": int(self.holds_update)}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self._effective, self.holds_update = int(state["effective"]), bool(state["holds"])


class Staged(Cycle):
    """Opens a batch with a unit for each of the next prompts of the cycle, then goes on with those that may have more.

    State: by prompt [M] the units that it may still get in the open batch; none is open when all are 0.
    """

    def __init__(self, pool: Pool, seed: int):
        super().__init__(pool, seed)
        self._left: Ints = np.zeros(pool.problem.prompts, np.int64)

    def _batch_size(self, units: int) -> int:
        return min(units, self._pool.problem.prompts)

    def propose(self) -> Proposal:
        going_on = self._order[self._left[self._order] > 0].astype(np.int64)
        if len(going_on):
            return Proposal(going_on, self._stage(self._left[going_on])).clipped(self._pool.problem.capacity_units)
        prompts = self._next(self._batch_size(self._opening_units()))
        return Proposal(prompts, np.ones_like(prompts))

    def _opening_units(self) -> int:
        """An even pace, plus at once what the smaller stages of earlier batches fell behind it."""
        pool, problem = self._pool, self._pool.problem
        spent = problem.budget_units - pool.remaining_units
        behind = problem.budget_units * (pool.epoch + 1) // problem.epochs - spent
        return min(max(units_due(pool), behind), problem.capacity_units)

    def update(self, proposal: Proposal, outcome: Outcome) -> None:
        opens = not self._left.any()
        if opens:
            super().update(proposal, outcome)
        self._left[outcome.prompts] = self._more(outcome, opens)
        self.holds_update = bool(self._left.any())

    def _stage(self, left: Ints) -> Ints:
        """Units of the next stage for prompts that have `left` [n] > 0."""
        raise NotImplementedError

    def _more(self, outcome: Outcome, opens: bool) -> Ints:
        """Units that the prompts of `outcome` may still get after it; `opens`: it is the first stage of their batch."""
        raise NotImplementedError

    def state_dict(self) -> State:
        return {**super().state_dict(), "left": self._left.copy()}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self._left = np.array(state["left"])
        self.holds_update = bool(self._left.any())


class ReinforceAda(Staged):
    """A unit per round until 0 < successes_i < n_i or n_i = N_max units (2510.04996, the balance variant).

    Left out: more than one success and failure as the aim, and the down-sampling of groups to one size after it.
    """

    def __init__(self, pool: Pool, seed: int):
        super().__init__(pool, seed)
        self._seen: NDArray[np.int8] = np.zeros(pool.problem.prompts, np.int8)  # 1: a success, 2: a failure, 3: both

    def _stage(self, left: Ints) -> Ints:
        return np.ones_like(left)

    def _more(self, outcome: Outcome, opens: bool) -> Ints:
        prompts = outcome.prompts
        seen = (outcome.successes > 0) + 2 * (outcome.failures > 0)
        left = self._left[prompts]
        if opens:
            left += self._pool.problem.max_units_per_prompt
        else:
            seen |= self._seen[prompts]
        self._seen[prompts] = seen
        return np.where(seen == 3, 0, left - 1)

    def state_dict(self) -> State:
        return {**super().state_dict(), "seen": self._seen.copy()}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self._seen = np.array(state["seen"])


class PilotCommit(Staged):
    """A pilot unit each, then N_max - 1 more units where .125 <= mean of the pilot <= .75 (2605.26606).

    Prompts above the band are evicted and those below deferred, both until the cycle comes round again. Left out: the
    eviction for good after a perfect pilot (a unit may be too few responses for that, 16 there), and the buffer in
    which the authors keep survivors for up to 4 updates: here every survivor is committed before the update.
    """

    def _stage(self, left: Ints) -> Ints:
        return left

    def _more(self, outcome: Outcome, opens: bool) -> Ints:
        mean = outcome.successes / (outcome.successes + outcome.failures)
        kept = opens & (PILOT_BAND[0] <= mean) & (mean <= PILOT_BAND[1])
        return kept * (self._pool.problem.max_units_per_prompt - 1)
