"""What a rollout engine is configured with."""

from dataclasses import dataclass

from actors.plugin import BACKEND
from actors.speculation import Speculation


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What an engine needs to know; see RolloutSpec for the meaning and units."""

    model_dir: str
    dtype: str
    context_tokens: int
    max_running_requests: int
    kv_cache_bytes: int | None
    """Size of the key-value cache of each of its processes; None lets `gpu_memory_fraction` decide."""
    gpu_memory_fraction: float
    tensor_parallel: int
    """Processes that hold a share of the model each; with more than one they are processes of their own."""
    cores: int
    """That the engine is pinned to, all its processes together; 0 on GPU, where it is not."""
    seed: int
    transfer: str = BACKEND
    """vLLM weight-transfer backend: ours, or `nccl`."""
    speculation: Speculation | None = None
    """None: plain decoding, vLLM without anything of ours on the way."""
    sleeps: bool = False
    """Whether the engine can free its GPU memory while it has nothing to do."""
