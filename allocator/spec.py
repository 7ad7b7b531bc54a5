"""The `allocator` section of a spec: the rollout budget and the policy that spends it."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class AllocatorSpec(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    policy: Literal["cero", "uniform"] = "cero"
    """Who decides the group sizes: `cero` (dual-priced, arXiv 2606.05606) or `uniform` (a fixed cycle over all
    prompts)."""
    budget_rollouts: int = Field(gt=0, le=10**9)
    """Total number of responses that the run's RL epochs may sample; never exceeded."""
    unit_rollouts: int = Field(default=4, ge=1, le=10_000)
    """Responses per allocation unit (g in CERO); every group is a multiple of it."""
    max_units_per_prompt: int = Field(default=2, ge=1, le=10_000)
    """Largest number of units one prompt may get in one epoch (N_max in CERO)."""
    max_rollouts_per_epoch: int = Field(gt=0, le=10**7)
    """Capacity of one epoch in responses (C in CERO, there in units)."""
    prior_successes: float = Field(default=1.0, gt=0)
    """Beta prior of every prompt: pseudo-count of correct responses (a_0)."""
    prior_failures: float = Field(default=1.0, gt=0)
    """Beta prior of every prompt: pseudo-count of wrong responses (b_0)."""
    utility_saturation: float = Field(default=1.0, gt=0)
    """How fast the value of further rollouts on one prompt saturates (lambda in CERO)."""
    forgetting: float = Field(default=1.0, gt=0, le=1)
    """Share of the evidence kept per epoch (rho in CERO); 1 forgets nothing."""
    initial_price: float = Field(default=0.5, ge=0, le=1)
    """Normalised dual price of the budget before the first epoch (nu_1 in CERO)."""

    @property
    def max_group_rollouts(self) -> int:
        """Largest possible group, in responses."""
        return self.unit_rollouts * self.max_units_per_prompt

    @model_validator(mode="after")
    def _a_group_fits(self) -> Self:
        if self.budget_rollouts < self.unit_rollouts:
            raise ValueError(
                f"budget_rollouts = {self.budget_rollouts} is smaller than one group of "
                f"unit_rollouts = {self.unit_rollouts}: nothing could be sampled"
            )
        if self.max_group_rollouts > self.max_rollouts_per_epoch:
            raise ValueError(
                f"group cap above the epoch's batch: unit_rollouts x max_units_per_prompt = {self.unit_rollouts} x "
                f"{self.max_units_per_prompt} = {self.max_group_rollouts} > max_rollouts_per_epoch = "
                f"{self.max_rollouts_per_epoch}"
            )
        return self
