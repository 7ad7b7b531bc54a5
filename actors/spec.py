"""The `rollout` section of a spec: how the vLLM engines sample."""

from pydantic import BaseModel, ConfigDict, Field


class RolloutSpec(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    max_response_tokens: int = Field(gt=0)
    """Longest response in tokens; a longer one is cut and finishes with reason `length`."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature of training rollouts; the learner divides its logits by the same number."""
    max_running_requests: int = Field(default=256, ge=1, le=65536)
    """Responses that one engine decodes together (vLLM max_num_seqs)."""
    kv_cache_gib: float = Field(default=0.25, gt=0, le=65536)
    """Key-value cache of one engine on CPU, in GiB. On GPU `gpu_memory_fraction` decides."""
    gpu_memory_fraction: float = Field(default=0.6, gt=0, lt=1)
    """Share of a GPU's memory that one engine may take."""
    publish_bucket_mib: int = Field(default=64, ge=1, le=65536)
    """Largest piece of weights in flight to the engines at once, in MiB; at most two exist at a time."""
