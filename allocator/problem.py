"""What every policy is given (the numbers of CERO eqs. (1)-(2)) and what it answers.

All amounts here are in allocation units; only `allocator.py` knows how many responses one unit is.
"""

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from allocator.ledger import AllocationError
from allocator.spec import AllocatorSpec

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
State = dict[str, NDArray | int | float | str]


@dataclass(frozen=True)
class Problem:
    """The constraints of eq. (1), in the paper's letters: M, K, B, C and N_max."""

    prompts: int
    epochs: int
    budget_units: int
    capacity_units: int
    max_units_per_prompt: int

    @classmethod
    def of(cls, spec: AllocatorSpec, prompts: int, epochs: int) -> Self:
        """Round budget and capacity down to whole units; capacity beyond M N_max cannot be used (eq. 2).

        Raises:
            AllocationError: `bad_size` if there is no prompt or no epoch.
        """
        if prompts < 1 or epochs < 1:
            raise AllocationError("bad_size", f"{prompts} prompts and {epochs} epochs: at least one of each is needed")
        return cls(
            prompts=prompts,
            epochs=epochs,
            budget_units=spec.budget_rollouts // spec.unit_rollouts,
            capacity_units=min(spec.max_rollouts_per_epoch // spec.unit_rollouts, prompts * spec.max_units_per_prompt),
            max_units_per_prompt=spec.max_units_per_prompt,
        )


@dataclass(frozen=True)
class Proposal:
    """Prompts int64[n], distinct and in priority order, with their units int64[n], each in 1..N_max.

    A policy proposes within the epoch's capacity and without looking at the remaining budget (the *virtual*
    allocation); `clipped` makes the *executed* one of it.
    """

    prompts: Ints
    units: Ints

    @classmethod
    def filled(cls, order: Ints, total_units: int, problem: Problem) -> Self:
        """Give N_max units to each prompt of `order` int64[m] until `total_units` are gone (the last may get fewer)."""
        full = cls(order, np.full(len(order), problem.max_units_per_prompt, dtype=np.int64))
        return full.clipped(total_units)

    def clipped(self, total_units: int) -> Self:
        """Cut to `total_units` in the same order; prompts left with nothing are dropped."""
        units = np.diff(np.minimum(np.cumsum(self.units), total_units), prepend=0)
        kept = units > 0
        return type(self)(self.prompts[kept], units[kept])


class Policy(Protocol):
    """Decides from its own state alone: `propose` changes nothing, `update` closes the epoch that was proposed."""

    def propose(self) -> Proposal:
        """The virtual allocation of this epoch."""

    def update(self, proposal: Proposal, values: Floats) -> None:
        """Move to the next epoch, given this epoch's proposal and the value proxy [M] *after* its feedback."""

    def state_dict(self) -> State:
        """Everything that `propose` and `update` depend on; arrays are copies."""

    def load_state_dict(self, state: State) -> None:
        """The inverse of `state_dict`; the caller has checked keys, shapes and types."""

    def metrics(self) -> dict[str, float]:
        """What the policy has to say about itself."""
