"""The scheduler that the driver talks to: `decide(epoch)`, sample, `observe(epoch, ...)`, and so on for K epochs.

Owns the ledger, the pool and one policy, and keeps them in step. Invariants: what was spent is what was observed, and
at most the budget; a decision is a pure function of the state, so deciding an epoch again, or in a process that resumed
from `state_dict()`, gives the same allocation; a refused call changes nothing.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from allocator.counts import checked_counts
from allocator.ledger import AllocationError, Ledger
from allocator.policies import POLICIES
from allocator.pool import Pool
from allocator.problem import Floats, Ints, Outcome, Problem, Proposal, State
from allocator.spec import AllocatorSpec
from allocator.state import checked_state, with_prefix, without_prefix

FIRST_LENGTH_SHARE = 0.5
"""Length expected of a response before any was seen, relative to the longest that is allowed."""


@dataclass(frozen=True, eq=False)
class Allocation:
    """The groups of one epoch: `prompts` int64[n], distinct, in priority order, and their `rollouts` int64[n] >= 1.

    n = 0 is a valid epoch: nothing is sampled and no update is made, but it is observed like any other.
    """

    epoch: int
    prompts: Ints
    rollouts: Ints
    believed: Floats
    """Believed success rate of each prompt, float64 [n]."""
    price: float | None
    """Price of the budget under which this was decided, if the policy has one."""


class Allocator:
    """Spends `spec`'s budget on a pool of `prompts` (M) over `epochs` (K) decisions; epochs count from 0.

    Args:
        families: A name per prompt [M]; prompts of one family share a learned prior. All are one family if not given.
        prompt_set: Identifies the prompts and their order; a state of another set is refused.
        max_response_tokens: Longest possible response; needed under a token budget.

    Raises:
        AllocationError: `bad_size` without prompts or epochs, with another number of families, or without
            `max_response_tokens` under a token budget; `budget_too_small` if no unit fits a token budget.
    """

    def __init__(
        self, spec: AllocatorSpec, prompts: int, epochs: int, seed: int, *, families: Sequence[str] | None = None,
        prompt_set: str = "", max_response_tokens: int = 0,
    ):  # fmt: skip
        if prompts < 1 or epochs < 1:
            raise AllocationError("bad_size", f"{prompts} prompts and {epochs} epochs: at least one of each is needed")
        if families is not None and len(families) != prompts:
            raise AllocationError("bad_size", f"{len(families)} families for {prompts} prompts")
        self.spec = spec
        self._prompt_set = prompt_set
        self._longest = max_response_tokens
        self._ledger, first_length = self._open_ledger()
        problem = Problem(
            prompts, epochs, self._affordable_units(first_length),
            min(spec.max_rollouts_per_epoch // spec.unit_rollouts, prompts * spec.max_units_per_prompt),
            spec.max_units_per_prompt, spec.unit_rollouts,
        )  # fmt: skip
        index = np.zeros(prompts, np.int64) if families is None else np.unique(families, return_inverse=True)[1]
        self._pool = Pool(spec, problem, index, first_length)
        self._policy = POLICIES[spec.policy](self._pool, seed)
        self._spent = {"rollouts": 0, "tokens": 0}
        self._pending: tuple[Proposal, Allocation] | None = None

    def _open_ledger(self) -> tuple[Ledger, float]:
        """The account, and the length expected of a first response (0 under a rollout budget)."""
        spec = self.spec
        if spec.currency == "rollouts":
            return Ledger(spec.budget), 0.0
        if self._longest < 1:
            raise AllocationError("bad_size", "a token budget needs max_response_tokens, the longest possible response")
        if spec.budget < spec.unit_rollouts * self._longest:
            raise AllocationError(
                "budget_too_small",
                f"budget_tokens = {spec.budget} does not hold unit_rollouts {spec.unit_rollouts} x "
                f"max_response_tokens {self._longest}",
            )
        return Ledger(spec.budget, "tokens"), self._longest * FIRST_LENGTH_SHARE

    def _affordable_units(self, response_tokens: float) -> int:
        """Units that the remaining budget is expected to pay for."""
        return int(self._ledger.remaining / (self.spec.unit_rollouts * (response_tokens or 1.0)))

    @property
    def epoch(self) -> int:
        """The epoch to decide or, if it is decided already, to observe next; K after the last."""
        return self._pool.epoch

    @property
    def exhausted(self) -> bool:
        """Whether no unit can be paid any more; an open decision counts as spent once it is observed."""
        return self._ledger.budget - self._ledger.spent < self._reserve_per_unit

    @property
    def holds_update(self) -> bool:
        """Whether the groups observed since the last update wait for more before the learner gets them in one batch."""
        return self._policy.holds_update and not self.exhausted and self.epoch < self._pool.problem.epochs

    @property
    def pool(self) -> Pool:
        """What is known of the prompts, to read."""
        return self._pool

    @property
    def posterior_mean(self) -> Floats:
        """Believed success probability of every prompt [M]."""
        return self._pool.posterior.mean()

    @property
    def _reserve_per_unit(self) -> int:
        return self.spec.unit_rollouts * (1 if self._ledger.currency == "rollouts" else self._longest)

    def decide(self, epoch: int) -> Allocation:
        """The groups of `epoch`; the same answer until it is observed. Empty when the policy waits or nothing is left.

        Raises:
            AllocationError: `wrong_epoch` if `epoch` is not the next one.
        """
        if epoch != self.epoch or epoch >= self._pool.problem.epochs:
            raise AllocationError("wrong_epoch", f"asked to decide epoch {epoch}, but {self._expected_call()}")
        if self._pending is None:
            proposal = self._policy.propose()
            executed = proposal.clipped(self._ledger.remaining // self._reserve_per_unit)
            a, b = self._pool.posterior.parameters(executed.prompts)
            rollouts, price = executed.units * self.spec.unit_rollouts, self._policy.metrics().get("price")
            allocation = Allocation(epoch, executed.prompts, rollouts, a / (a + b), price)
            # The decision is handed out again on request: nobody may change it in the meantime.
            allocation.prompts.flags.writeable = allocation.rollouts.flags.writeable = False
            self._ledger.reserve(epoch, int(executed.units.sum()) * self._reserve_per_unit)
            self._pending = proposal, allocation
        return self._pending[1]

    def observe(
        self, epoch: int, prompts: ArrayLike, successes: ArrayLike, failures: ArrayLike, tokens: ArrayLike | None = None
    ) -> None:
        """Close `epoch` with what its groups earned.

        Args:
            epoch: The epoch decided last.
            prompts: int [n], exactly the prompts of its decision, in any order.
            successes: float [n], sum of the rewards (each in [0, 1]) of each group.
            failures: float [n], rollouts of the group minus `successes`.
            tokens: int [n], response tokens of each group; may be left out under a rollout budget.

        Raises:
            AllocationError: `observed_twice`, `wrong_epoch`; `bad_shape`, `not_finite`, `negative`,
                `too_many_successes`, `unknown_prompt`, `wrong_prompts`, `wrong_counts`, `bad_tokens` about the arrays.
        """
        if epoch < self.epoch:
            raise AllocationError("observed_twice", f"epoch {epoch} was observed before; {self._expected_call()}")
        if epoch > self.epoch or self._pending is None:
            raise AllocationError("wrong_epoch", f"asked to observe epoch {epoch}, but {self._expected_call()}")
        proposal, allocation = self._pending
        longest = self._longest if self._ledger.currency == "tokens" else 0
        counts = checked_counts(self._pool.problem.prompts, allocation, prompts, successes, failures, tokens, longest)
        spent = {"rollouts": int(allocation.rollouts.sum()), "tokens": int(counts.tokens.sum())}
        self._ledger.settle(epoch, spent[self._ledger.currency])
        self._spent = {currency: self._spent[currency] + amount for currency, amount in spent.items()}
        outcome = Outcome(counts.prompts, counts.rollouts // self.spec.unit_rollouts, counts.successes, counts.failures)
        self._pool.observe(outcome, counts.tokens)
        self._estimate_budget()
        self._policy.update(proposal, outcome)
        self._pending = None

    def _estimate_budget(self) -> None:
        """What is left in units: exact under a rollout budget, by the mean length so far under a token budget."""
        pool = self._pool
        if self._ledger.currency == "rollouts":
            pool.remaining_units = self._ledger.remaining // self.spec.unit_rollouts
            return
        pool.remaining_units = int(self._ledger.remaining / pool.mean_cost)
        total = pool.remaining_units + int(pool.exposure.sum())
        pool.problem = dataclasses.replace(pool.problem, budget_units=max(total, 1))

    def metrics(self) -> dict[str, float]:
        """Totals so far, means over the pool, and the policy's own numbers (`price`: of the budget, normalised).

        `surplus_rollouts` is the spending beyond an even pace; `value_mean` the mean q-hat.
        """
        problem, posterior = self._pool.problem, self._pool.posterior
        pace = problem.budget_units * self.spec.unit_rollouts / problem.epochs
        return {
            "epoch": float(self.epoch),
            "spent_rollouts": float(self._spent["rollouts"]),
            "spent_tokens": float(self._spent["tokens"]),
            f"remaining_{self._ledger.currency}": float(self._ledger.budget - self._ledger.spent),
            "surplus_rollouts": self._spent["rollouts"] - pace * self.epoch,
            "posterior_mean": float(posterior.mean().mean()),
            "value_mean": float(posterior.value().mean()),
            "sampled_share": float(np.count_nonzero(self._pool.exposure)) / problem.prompts,
            **self._policy.metrics(),
        }

    def posterior_prompts(self) -> dict[str, int]:
        """How many prompts are believed to succeed at which rate, by the upper edge of ten bins."""
        edges = np.linspace(0, 1, 11)
        counts, _ = np.histogram(self.posterior_mean, edges)
        return {f"{edge:.1f}": int(count) for edge, count in zip(edges[1:], counts, strict=True)}

    def state_dict(self) -> State:
        """A flat dict of numpy arrays (copies) and plain scalars; see `load_state_dict`."""
        return {
            **{f"spec.{name}": "" if v is None else v for name, v in self.spec.model_dump().items()},
            "prompts": self._pool.problem.prompts,
            "epochs": self._pool.problem.epochs,
            "prompt_set": self._prompt_set,
            "decided": int(self._pending is not None),
            "spent_rollouts": self._spent["rollouts"],
            "spent_tokens": self._spent["tokens"],
            **with_prefix("pool", self._pool.state_dict()),
            **with_prefix("policy", self._policy.state_dict()),
        }

    def load_state_dict(self, state: State) -> None:
        """Continue exactly where `state` was taken; an open decision is open again. The seed in it replaces this one's.

        Raises:
            AllocationError: `other_run` if the state is of another spec, prompt set or number of epochs; `bad_state` if
                it is damaged.
        """
        fixed = {"prompts", "epochs", "prompt_set", *(f"spec.{name}" for name in AllocatorSpec.model_fields)}
        checked = checked_state(state, template=self.state_dict(), fixed=fixed)
        epoch, decided = int(checked["pool.epoch"]), int(checked["decided"])
        if decided not in (0, 1) or not 0 <= epoch <= self._pool.problem.epochs - decided:
            raise AllocationError("bad_state", f"epoch {epoch} of {self._pool.problem.epochs}, decided {decided}")
        spent = {"rollouts": int(checked["spent_rollouts"]), "tokens": int(checked["spent_tokens"])}
        exposure = np.asarray(checked["pool.exposure"])
        if (
            exposure.min() < 0
            or int(exposure.sum()) * self.spec.unit_rollouts != spent["rollouts"]
            or spent["tokens"] < 0
        ):
            raise AllocationError("bad_state", f"{spent} spent, but {int(exposure.sum())} units on the prompts")
        currency = self._ledger.currency
        self._ledger = Ledger(self._ledger.budget, currency, spent[currency])
        self._spent = spent
        self._pool.load_state_dict(without_prefix("pool", checked))
        self._estimate_budget()
        self._policy.load_state_dict(without_prefix("policy", checked))
        self._pending = None
        if decided:
            self.decide(epoch)

    def _expected_call(self) -> str:
        if self.epoch == self._pool.problem.epochs:
            return f"all {self.epoch} planned epochs are over"
        return f"epoch {self.epoch} is to be {'decided' if self._pending is None else 'observed'} next"
