"""The scheduler that the driver talks to: `decide(epoch)`, sample, `observe(epoch, ...)`, and so on for K epochs.

Owns the ledger, the posterior and one policy, and keeps them in step. Invariants: what was spent is what was observed,
and at most the budget; a decision is a pure function of the state, so deciding an epoch again, or in a process that
resumed from `state_dict()`, gives the same allocation; a refused call changes nothing.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from allocator.cero import Cero
from allocator.ledger import AllocationError, Ledger
from allocator.posterior import Posterior
from allocator.problem import Floats, Ints, Policy, Problem, Proposal, State
from allocator.spec import AllocatorSpec
from allocator.state import checked_state, with_prefix, without_prefix
from allocator.uniform import Uniform

# Share of a group by which graded successes + failures may miss its size: the rounding of a float32 sum, and no sample.
COUNT_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Allocation:
    """The groups of one epoch: `prompts` int64[n], distinct, in priority order, and their `rollouts` int64[n] >= 1.

    n = 0 is a valid epoch: nothing is sampled and no update is made, but it is observed like any other.
    """

    epoch: int
    prompts: Ints
    rollouts: Ints


class Allocator:
    """Spends `spec.budget_rollouts` on a pool of `prompts` (M) over `epochs` (K) decisions; epochs count from 0.

    Raises:
        AllocationError: `bad_size` without prompts or epochs.
    """

    def __init__(self, spec: AllocatorSpec, prompts: int, epochs: int, seed: int):
        self.spec = spec
        self._problem = Problem.of(spec, prompts, epochs)
        self._ledger = Ledger(spec.budget_rollouts)
        self._posterior = Posterior(prompts, spec.prior_successes, spec.prior_failures, spec.forgetting)
        self._policy: Policy
        if spec.policy == "cero":
            values = self._posterior.value()
            self._policy = Cero(self._problem, values, spec.utility_saturation, spec.initial_price, seed)
        else:
            self._policy = Uniform(self._problem, seed)
        self._epoch = 0
        self._pending: tuple[Proposal, Allocation] | None = None

    @property
    def epoch(self) -> int:
        """The epoch to decide or, if it is decided already, to observe next; K after the last."""
        return self._epoch

    @property
    def exhausted(self) -> bool:
        """Whether less than one unit of the budget is unspent; an open decision counts as spent once it is observed."""
        return self._ledger.budget_rollouts - self._ledger.spent_rollouts < self.spec.unit_rollouts

    @property
    def posterior_mean(self) -> Floats:
        """Believed success probability of every prompt [M]."""
        return self._posterior.mean()

    def decide(self, epoch: int) -> Allocation:
        """The groups of `epoch`; the same answer until it is observed. Empty when the policy waits or nothing is left.

        Raises:
            AllocationError: `wrong_epoch` if `epoch` is not the next one.
        """
        if epoch != self._epoch or epoch >= self._problem.epochs:
            raise AllocationError("wrong_epoch", f"asked to decide epoch {epoch}, but {self._expected_call()}")
        if self._pending is None:
            proposal = self._policy.propose()
            executed = proposal.clipped(self._ledger.remaining_rollouts // self.spec.unit_rollouts)
            allocation = Allocation(epoch, executed.prompts, executed.units * self.spec.unit_rollouts)
            # The decision is handed out again on request: nobody may change it in the meantime.
            allocation.prompts.flags.writeable = allocation.rollouts.flags.writeable = False
            self._ledger.reserve(epoch, int(allocation.rollouts.sum()))
            self._pending = proposal, allocation
        return self._pending[1]

    def observe(self, epoch: int, prompts: ArrayLike, successes: ArrayLike, failures: ArrayLike) -> None:
        """Close `epoch` with what its groups earned.

        Args:
            epoch: The epoch decided last.
            prompts: int [n], exactly the prompts of its decision, in any order.
            successes: float [n], sum of the rewards (each in [0, 1]) of each group.
            failures: float [n], rollouts of the group minus `successes`.

        Raises:
            AllocationError: `observed_twice`, `wrong_epoch`; `bad_shape`, `not_finite`, `negative`,
                `too_many_successes`, `unknown_prompt`, `wrong_prompts`, `wrong_counts` about the arrays.
        """
        if epoch < self._epoch:
            raise AllocationError("observed_twice", f"epoch {epoch} was observed before; {self._expected_call()}")
        if epoch > self._epoch or self._pending is None:
            raise AllocationError("wrong_epoch", f"asked to observe epoch {epoch}, but {self._expected_call()}")
        proposal, allocation = self._pending
        ids, won, lost = _checked_counts(self._problem.prompts, allocation, prompts, successes, failures)
        self._ledger.settle(epoch, int(allocation.rollouts.sum()))
        self._posterior.update(ids, won, lost)
        self._policy.update(proposal, self._posterior.value())
        self._epoch += 1
        self._pending = None

    def metrics(self) -> dict[str, float]:
        """Totals so far, means over the pool, and the policy's own numbers (CERO: the dual price of the budget).

        `surplus_rollouts` is the spending beyond an even pace; `value_mean` the mean q-hat.
        """
        spent = self._ledger.spent_rollouts
        pace = self._problem.budget_units * self.spec.unit_rollouts / self._problem.epochs
        return {
            "epoch": float(self._epoch),
            "spent_rollouts": float(spent),
            "remaining_rollouts": float(self._ledger.budget_rollouts - spent),
            "surplus_rollouts": spent - pace * self._epoch,
            "posterior_mean": float(self._posterior.mean().mean()),
            "value_mean": float(self._posterior.value().mean()),
            **self._policy.metrics(),
        }

    def state_dict(self) -> State:
        """A flat dict of numpy arrays (copies) and plain scalars; see `load_state_dict`."""
        return {
            **with_prefix("spec", self.spec.model_dump()),
            "prompts": self._problem.prompts,
            "epochs": self._problem.epochs,
            "epoch": self._epoch,
            "decided": int(self._pending is not None),
            "spent_rollouts": self._ledger.spent_rollouts,
            **with_prefix("posterior", self._posterior.state_dict()),
            **with_prefix("policy", self._policy.state_dict()),
        }

    def load_state_dict(self, state: State) -> None:
        """Continue exactly where `state` was taken; an open decision is open again. The seed in it replaces this one's.

        Raises:
            AllocationError: `other_run` if the state is of another spec, pool or number of epochs; `bad_state` if it
                is damaged.
        """
        fixed = {"prompts", "epochs", *(f"spec.{name}" for name in AllocatorSpec.model_fields)}
        checked = checked_state(state, template=self.state_dict(), fixed=fixed)
        epoch, decided = int(checked["epoch"]), int(checked["decided"])
        if decided not in (0, 1) or not 0 <= epoch <= self._problem.epochs - decided:
            raise AllocationError("bad_state", f"epoch {epoch} of {self._problem.epochs}, decided {decided}")
        self._ledger = Ledger(self.spec.budget_rollouts, int(checked["spent_rollouts"]))
        self._posterior.load_state_dict(without_prefix("posterior", checked))
        self._policy.load_state_dict(without_prefix("policy", checked))
        self._epoch = epoch
        self._pending = None
        if decided:
            self.decide(epoch)

    def _expected_call(self) -> str:
        if self._epoch == self._problem.epochs:
            return f"all {self._epoch} planned epochs are over"
        return f"epoch {self._epoch} is to be {'decided' if self._pending is None else 'observed'} next"


def _checked_counts(
    pool: int, allocation: Allocation, prompts: ArrayLike, successes: ArrayLike, failures: ArrayLike
) -> tuple[Ints, Floats, Floats]:
    """The three arrays [n] of `observe`, if they answer `allocation`; errors as there."""

    def refuse_where(wrong: np.ndarray, reason: str, message: str) -> None:
        if wrong.any():
            raise AllocationError(reason, f"epoch {allocation.epoch}: {message}, prompts {ids[wrong][:5].tolist()}")

    ids = np.asarray(prompts)
    won, lost = np.asarray(successes, dtype=np.float64), np.asarray(failures, dtype=np.float64)
    if ids.ndim != 1 or not ids.shape == won.shape == lost.shape:
        shapes = f"{ids.shape}, {won.shape}, {lost.shape}"
        raise AllocationError("bad_shape", f"prompts, successes and failures need one shape [n], not {shapes}")
    if len(ids) and ids.dtype.kind not in "iu":
        raise AllocationError("bad_shape", f"prompts must be integers, not {ids.dtype}")
    ids = ids.astype(np.int64)
    refuse_where((ids < 0) | (ids >= pool), "unknown_prompt", f"outside the pool of {pool}")
    refuse_where(~(np.isfinite(won) & np.isfinite(lost)), "not_finite", "successes or failures are not finite")

    by_id, decided_by_id = np.argsort(ids), np.argsort(allocation.prompts)
    if not np.array_equal(ids[by_id], allocation.prompts[decided_by_id]):
        missing, extra = np.setdiff1d(allocation.prompts, ids), np.setdiff1d(ids, allocation.prompts)
        raise AllocationError(
            "wrong_prompts",
            f"epoch {allocation.epoch} decided {len(allocation.prompts)} groups and got {len(ids)}; "
            f"missing {missing[:5].tolist()}, not decided {extra[:5].tolist()}, the rest repeated",
        )
    rollouts = np.empty_like(ids)
    rollouts[by_id] = allocation.rollouts[decided_by_id]
    refuse_where(won > rollouts, "too_many_successes", "more successes than rollouts")
    refuse_where((won < 0) | (lost < 0), "negative", "negative successes or failures")
    off = np.abs(won + lost - rollouts) > COUNT_TOLERANCE * rollouts
    refuse_where(off, "wrong_counts", "successes + failures are not the rollouts decided")
    return ids, won, lost
