"""The `allocator` section of a spec: the budget, in rollouts or tokens, and the policy that spends it."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

PolicyName = Literal[
    "sluice", "cero", "uniform", "random_matched", "cero_fixed", "cero_greedy", "knapsack", "dapo", "gvm", "vip",
    "reinforce_ada", "mopps", "pilot_commit",
]  # fmt: skip

# What a policy believes if the spec does not say: CERO and most others as in the paper of CERO.
_AS_PUBLISHED = {"prior": "fixed", "forgetting": 1.0, "forgetting_per": "epoch"}
_BELIEFS = {
    "sluice": {"prior": "learned", "forgetting": 0.5, "forgetting_per": "share"},
    "vip": {**_AS_PUBLISHED, "prior": "learned"},
    "mopps": {**_AS_PUBLISHED, "forgetting": 0.5, "forgetting_per": "visit"},
}


class AllocatorSpec(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    policy: PolicyName = "sluice"
    """Who decides the group sizes: `sluice` (ours), `cero` (arXiv 2606.05606), `uniform` (a fixed cycle over all
    prompts), or one of the rivals of docs/allocator.md."""
    budget_rollouts: int | None = Field(default=None, gt=0, le=10**9)
    """Total number of responses that the run's RL epochs may sample; never exceeded. Either this or `budget_tokens`."""
    budget_tokens: int | None = Field(default=None, gt=0, le=10**13)
    """Total number of response tokens that the run's RL epochs may sample; never exceeded."""
    unit_rollouts: int = Field(default=4, ge=1, le=10_000)
    """Responses per allocation unit (g in CERO); every group is a multiple of it."""
    max_units_per_prompt: int = Field(default=2, ge=1, le=10_000)
    """Largest number of units one prompt may get in one epoch (N_max in CERO)."""
    max_rollouts_per_epoch: int = Field(gt=0, le=10**7)
    """Capacity of one epoch in responses (C in CERO, there in units)."""
    prior: Literal["fixed", "learned"] | None = None
    """Where beliefs start: `fixed` at the two counts below, or `learned` for each family of prompts from the first
    group of every prompt sampled so far. Not given: `learned` for `sluice` and `vip`, `fixed` for the others."""
    prior_successes: float = Field(default=1.0, gt=0)
    """Beta prior of every prompt: pseudo-count of correct responses (a_0)."""
    prior_failures: float = Field(default=1.0, gt=0)
    """Beta prior of every prompt: pseudo-count of wrong responses (b_0)."""
    utility_saturation: float = Field(default=1.0, gt=0)
    """How fast the value of further rollouts on one prompt saturates (lambda in CERO)."""
    forgetting: float | None = Field(default=None, gt=0, le=1)
    """Share of the evidence kept (rho in CERO); 1 forgets nothing. Not given: 0.5 for `sluice` and `mopps`, else 1."""
    forgetting_per: Literal["epoch", "visit", "share"] | None = None
    """When evidence fades: every `epoch` for all prompts (CERO), at each `visit` to the prompt, or for each equal
    `share` of the budget (budget / prompts) spent on the prompt. Not given: `share` for `sluice`, `visit`
    for `mopps`, `epoch` for the others."""
    initial_price: float = Field(default=0.5, ge=0, le=1)
    """Normalised dual price of the budget before the first epoch (nu_1 in CERO)."""
    coverage_share: float = Field(default=0.25, ge=0, lt=1)
    """`sluice`: share of each epoch that goes to the prompts sampled least, whatever is believed of them, so that a
    policy does not unlearn what it is never asked."""

    @property
    def currency(self) -> Literal["rollouts", "tokens"]:
        """What the budget is counted in."""
        return "tokens" if self.budget_rollouts is None else "rollouts"

    @property
    def budget(self) -> int:
        """The budget, in `currency`."""
        return self.budget_rollouts or self.budget_tokens or 0

    @property
    def max_group_rollouts(self) -> int:
        """Largest possible group, in responses."""
        return self.unit_rollouts * self.max_units_per_prompt

    @model_validator(mode="before")
    @classmethod
    def _beliefs_follow_the_policy(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        beliefs = _BELIEFS.get(str(data.get("policy", "sluice")), _AS_PUBLISHED)
        return {**data, **{name: value for name, value in beliefs.items() if data.get(name) is None}}

    @model_validator(mode="after")
    def _one_budget_holds_a_group(self) -> Self:
        if (self.budget_rollouts is None) == (self.budget_tokens is None):
            raise ValueError("give either budget_rollouts or budget_tokens")
        if self.budget_rollouts is not None and self.budget_rollouts < self.unit_rollouts:
            raise ValueError(
                f"budget_rollouts = {self.budget_rollouts} is smaller than one group of "
                f"unit_rollouts = {self.unit_rollouts}: nothing could be sampled"
            )
        if self.budget_rollouts is not None and self.budget_rollouts % self.unit_rollouts:
            raise ValueError(
                f"budget_rollouts = {self.budget_rollouts} is not a multiple of unit_rollouts = {self.unit_rollouts}: "
                f"{self.budget_rollouts % self.unit_rollouts} could never be sampled"
            )
        if self.max_group_rollouts > self.max_rollouts_per_epoch:
            raise ValueError(
                f"group cap above the epoch's batch: unit_rollouts x max_units_per_prompt = {self.unit_rollouts} x "
                f"{self.max_units_per_prompt} = {self.max_group_rollouts} > max_rollouts_per_epoch = "
                f"{self.max_rollouts_per_epoch}"
            )
        return self
