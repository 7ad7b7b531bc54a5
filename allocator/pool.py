"""What the scheduler knows of every prompt; policies read it, `Allocator` keeps it up to date."""

import numpy as np

from allocator.posterior import Posterior
from allocator.problem import Floats, Ints, Outcome, Problem, State
from allocator.spec import AllocatorSpec
from allocator.state import with_prefix, without_prefix

COST_PRIOR_ROLLOUTS = 4.0
"""Weight, in responses, of the pool's mean length in the expected length of a prompt's next response."""


class Pool:
    """`posterior`; `exposure` [M], units spent on each prompt so far (z); `epoch`, the one to decide next;
    `remaining_units` of the budget.

    Under a token budget `problem.budget_units` and `remaining_units` are estimates from the mean length of responses.
    """

    def __init__(self, spec: AllocatorSpec, problem: Problem, families: Ints, response_tokens: float = 0.0):
        """`response_tokens`: length expected of a response before any was seen; 0 without a token budget."""
        self.spec = spec
        self.problem = problem
        self.posterior = Posterior(
            families, spec.prior_successes, spec.prior_failures, spec.forgetting or 1.0, spec.forgetting_per or "epoch",
            spec.prior == "learned",
        )  # fmt: skip
        self.exposure = np.zeros(problem.prompts, np.int32)
        self.epoch = 0
        self.remaining_units = problem.budget_units
        self._lengths = np.zeros((problem.prompts, 2), np.float32) if response_tokens else None  # responses, tokens
        self._all_lengths = np.array([COST_PRIOR_ROLLOUTS, COST_PRIOR_ROLLOUTS * response_tokens])

    @property
    def mean_cost(self) -> float:
        """Tokens that one unit costs on average so far, 1 under a rollout budget."""
        if self._lengths is None:
            return 1.0
        return float(self._all_lengths[1] / self._all_lengths[0]) * self.problem.unit_rollouts

    def cost(self, prompts: np.ndarray | slice = slice(None)) -> Floats | float:
        """What a unit of each prompt is expected to cost, in units of the pool's mean."""
        if self._lengths is None:
            return 1.0
        mean = self._all_lengths[1] / self._all_lengths[0]
        count, tokens = self._lengths[prompts].T.astype(np.float64)
        return (COST_PRIOR_ROLLOUTS * mean + tokens) / ((COST_PRIOR_ROLLOUTS + count) * mean)

    def observe(self, outcome: Outcome, tokens: Ints) -> None:
        """Take in an epoch's groups [n] and their response `tokens` [n], and move to the next epoch."""
        prompts = outcome.prompts
        shares, first = outcome.units / self.problem.equal_share_units, self.exposure[prompts] == 0
        self.posterior.update(prompts, shares, outcome.successes, outcome.failures, first)
        self.exposure[prompts] += outcome.units.astype(np.int32)
        self.epoch += 1
        if self._lengths is not None:
            seen = np.stack([outcome.successes + outcome.failures, tokens.astype(np.float64)], axis=1)
            self._lengths[prompts] += seen.astype(np.float32)
            self._all_lengths += seen.sum(axis=0)

    def state_dict(self) -> State:
        lengths = {} if self._lengths is None else {"lengths": self._lengths.copy(), "all": self._all_lengths.copy()}
        counts: State = {"exposure": self.exposure.copy(), "epoch": self.epoch}
        return {**counts, **lengths, **with_prefix("posterior", self.posterior.state_dict())}

    def load_state_dict(self, state: State) -> None:
        self.exposure = np.array(state["exposure"])
        self.epoch = int(state["epoch"])
        if self._lengths is not None:
            self._lengths, self._all_lengths = np.array(state["lengths"]), np.array(state["all"])
        self.posterior.load_state_dict(without_prefix("posterior", state))
