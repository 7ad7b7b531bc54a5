"""What a rollout worker is asked to do: plain data, no Ray and no vLLM."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GroupRequest:
    """What a worker is asked to sample."""

    id: str
    epoch: int
    prompt: int
    rollouts: int
    weight_version: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a pool's responses are sampled."""

    pool: str
    """`train` or `heldout`; part of the seed, so that evaluation and training never share random numbers."""
    max_tokens: int
    temperature: float
