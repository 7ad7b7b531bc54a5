"""What every policy is given (the numbers of CERO eqs. (1)-(2)) and what it answers.

All amounts here are in allocation units; only `allocator.py` knows how many responses one unit is.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from allocator.pool import Pool

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
State = dict[str, NDArray | int | float | str]


@dataclass(frozen=True)
class Problem:
    """The constraints of eq. (1), in the paper's letters: M, K, B, C, N_max and g."""

    prompts: int
    epochs: int
    budget_units: int
    capacity_units: int
    max_units_per_prompt: int
    unit_rollouts: int = 1

    @property
    def equal_share_units(self) -> float:
        """R = B / M: the exposure that every prompt would have under equal shares."""
        return self.budget_units / self.prompts

    @property
    def pace_units(self) -> float:
        """B-bar = B / K."""
        return self.budget_units / self.epochs

    @property
    def max_group_rollouts(self) -> int:
        """Responses of the largest group."""
        return self.unit_rollouts * self.max_units_per_prompt

    def groups(self, units: int) -> int:
        """Groups, the last of them perhaps smaller, that `units` make."""
        return -(-units // self.max_units_per_prompt)


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


@dataclass(frozen=True)
class Outcome:
    """What the executed groups [n] of an epoch earned: rewards summed, and responses minus that."""

    prompts: Ints
    units: Ints
    successes: Floats
    failures: Floats

    @property
    def effective(self) -> np.ndarray:
        """bool [n]: whether the group has both reward and room for it, so that its advantages are not all zero."""
        return (self.successes > 0) & (self.failures > 0)


class Policy(Protocol):
    """Decides from its own state and the pool's: `propose` changes nothing, `update` closes the epoch proposed."""

    holds_update: bool
    """After `update`: the groups sampled so far wait for further ones before the learner gets them all in one batch."""

    def propose(self) -> Proposal:
        """The virtual allocation of this epoch."""

    def update(self, proposal: Proposal, outcome: Outcome) -> None:
        """Move to the next epoch; the pool holds this epoch's feedback already."""

    def state_dict(self) -> State:
        """Everything beside the pool that `propose` and `update` depend on; arrays are copies."""

    def load_state_dict(self, state: State) -> None:
        """The inverse of `state_dict`; the caller has checked keys, shapes and types, and has loaded the pool."""

    def metrics(self) -> dict[str, float]:
        """What the policy has to say about itself."""


class PolicyType(Protocol):
    """A policy's class: what it decides on is the `pool`, random choices follow from `seed`."""

    def __call__(self, pool: "Pool", seed: int) -> Policy: ...
