"""What a learner rank is told when it starts, and what of it DeepSpeed is told."""

from dataclasses import dataclass
from typing import Any

from actors.features import TapConfig
from trainer.spec import LearnerSpec


@dataclass(frozen=True, slots=True)
class LearnerConfig:
    model_dir: str
    dtype: str
    spec: LearnerSpec
    temperature: float
    threads: int
    device: str
    """`cpu` or `cuda`."""
    seed: int
    bucket_bytes: int
    gpus_per_worker: int = 0
    """GPUs of one rollout worker, where weights go over NCCL; 0: through the object store."""
    longest_response: int = 1
    """Tokens of the longest response that may be sampled."""
    tap: TapConfig | None = None
    """Which features of the policy a drafter learns from; None without one to train."""


def deepspeed_config(config: LearnerConfig) -> dict[str, Any]:
    """For `deepspeed.initialize`."""
    spec = config.spec
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # Micro-batches vary in number, so step() is the boundary.
        "managed_gradient_accumulation": False,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": spec.learning_rate,
                "betas": list(spec.adam_betas),
                "weight_decay": spec.weight_decay,
                "torch_adam": config.device == "cpu",
            },
        },
        "gradient_clipping": spec.max_grad_norm,
        "zero_optimization": {"stage": spec.zero_stage, "overlap_comm": False},
        "bf16": {"enabled": config.dtype == "bfloat16"},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
