"""The plain data that crosses rooms. Needs numpy only."""

from dataclasses import dataclass

import numpy as np


class BadInput(ValueError):
    """What the user gave cannot be used; the message names the field or file. The command line prints it and exits 2."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One problem. `id` is stable: a digest of family, question and answer, so it survives reordering of the pool."""

    id: str
    family: str
    question: str
    answer: str
    token_ids: tuple[int, ...]
    source: int
    """Index into the spec's task.sources."""
    entry: str = ""
    """What the source's scorer needs beside the answer (JSON of the reasoning-gym entry)."""


@dataclass(slots=True)
class Rollout:
    """One sampled response."""

    sample: int
    """Index within the group, 0 to n-1; part of the sampling seed."""
    token_ids: np.ndarray
    """int32 [response tokens], the end-of-sequence token included when the model produced it."""
    logprobs: np.ndarray
    """float32 [response tokens], log-probability of each token under the engine that sampled it."""
    finish_reason: str
    """`stop` (end of sequence) or `length` (cut)."""
    weight_version: int
    reward: float


@dataclass(slots=True)
class Group:
    """All responses to one prompt in one epoch; the id stays the same when a lost group is sampled again."""

    id: str
    epoch: int
    prompt: int
    """Index into the run's training (or held-out) pool."""
    rollouts: list[Rollout]

    @property
    def rewards(self) -> np.ndarray:
        """float64 [rollouts]."""
        return np.array([r.reward for r in self.rollouts])
