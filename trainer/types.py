"""The plain data that crosses rooms. Needs numpy only."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


class BadInput(ValueError):
    """What the user gave cannot be used. The message names the field or file; the command line exits 2."""


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
    solutions: tuple[str, ...] = ()
    """Reference solutions, whole texts; without any the answer is the only one."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled response: a view into its group's arrays."""

    token_ids: np.ndarray
    """int32 [response tokens], the end-of-sequence token included when the model produced it."""
    logprobs: np.ndarray
    """float32 [response tokens], log-probability of each token under the engine that sampled it."""
    reward: float
    truncated: bool
    """Cut at the length limit instead of ended by the model."""


@dataclass(slots=True)
class Group:
    """All responses to one prompt in one epoch, as columns; row i is sample i, which is part of its sampling seed.

    The id stays the same when a lost group is sampled again.
    """

    id: str
    epoch: int
    prompt: int
    """Index into the pool that it was sampled from."""
    weight_version: int
    token_ids: np.ndarray
    """int32 [tokens of all responses], end to end."""
    logprobs: np.ndarray
    """float32 [tokens of all responses], under the engine that sampled them."""
    lengths: np.ndarray
    """int32 [responses]."""
    rewards: np.ndarray
    """float64 [responses], in [0, 1]."""
    truncated: np.ndarray
    """bool [responses]."""
    believed: float = math.nan
    """Success rate that the allocator believed of the prompt before it saw these rewards."""

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[Rollout]:
        ends = np.cumsum(self.lengths)
        for i, (end, length) in enumerate(zip(ends, self.lengths, strict=True)):
            span = slice(end - length, end)
            yield Rollout(self.token_ids[span], self.logprobs[span], float(self.rewards[i]), bool(self.truncated[i]))


COLUMNS = ("token_ids", "logprobs", "lengths", "rewards", "truncated")
"""The arrays of a group, in the order of its fields."""


def merged(groups: Sequence[Group]) -> list[Group]:
    """One group per prompt, in the order of their first groups: what one weight version sampled over several epochs."""
    by_prompt: dict[int, list[Group]] = {}
    for group in groups:
        by_prompt.setdefault(group.prompt, []).append(group)
    return [_joined(parts) for parts in by_prompt.values()]


def _joined(parts: Sequence[Group]) -> Group:
    first = parts[0]
    joined = [np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS]
    merged = Group(first.id, first.epoch, first.prompt, first.weight_version, *joined)
    merged.believed = first.believed
    return merged
