"""The `rollout` section of a spec: how the vLLM engines sample."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class WorkerRange(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    min: int = Field(default=1, ge=1, le=4096)
    """The run starts when these have their place, and does not go on without it."""
    max: int = Field(default=1, ge=1, le=4096)
    """Further ones are asked for while a rollout phase has work for them, join when the cluster has room, and leave
    when they are not needed or their node is about to go."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min = {self.min} is above max = {self.max}")
        return self


class RolloutSpec(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    workers: WorkerRange = WorkerRange()
    """Rollout workers, one vLLM engine each: a number, or `{min: 1, max: 8}` to let Ray's autoscaler add and remove."""
    max_response_tokens: int = Field(gt=0)
    """Longest response in tokens; a longer one is cut and finishes with reason `length`."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature of training rollouts; the learner divides its logits by the same number."""
    max_running_requests: int = Field(default=256, ge=1, le=65536)
    """Responses that one engine decodes together (vLLM max_num_seqs)."""
    tensor_parallel: int | None = Field(default=None, ge=1, le=1024)
    """Processes that one engine shares its model out to: on GPUs as many as `cluster.gpus_per_rollout_worker`, on CPUs
    1 where nothing is given, each with its share of `cluster.cpus_per_rollout_worker`."""
    kv_cache_gib: float = Field(default=0.25, gt=0, le=65536)
    """Key-value cache of one engine on CPU, in GiB. On GPU `gpu_memory_fraction` decides."""
    gpu_memory_fraction: float = Field(default=0.6, gt=0, lt=1)
    """Share of a GPU's memory that one engine may take."""
    sleep: bool = False
    """Engines free their GPU memory while the learner works (vLLM's sleep level 1: weights go to host memory), and take
    it again when there is something to load or to sample."""
    publish_bucket_mib: int = Field(default=64, ge=1, le=65536)
    """Largest piece of weights in flight to the engines at once, in MiB; at most two exist at a time."""

    @field_validator("workers", mode="before")
    @classmethod
    def _number_or_range(cls, workers: Any) -> Any:
        """A number is a range of that one number."""
        fixed = isinstance(workers, int) and not isinstance(workers, bool)
        return {"min": workers, "max": max(workers, 1)} if fixed else workers
