"""Which sequences the drafter learns from: those of the newest epoch, mixed with the longest of the epoch before. Pure.

The newest to finish are short, and the long ones are what the tail is made of; keeping last epoch's longest corrects
the bias ("one-step offset", TLT section 4). The buffer holds handles of feature blobs wherever they are, knows their
size and decides what to drop. It outlives training sessions, and a checkpoint holds what it holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

LONG_SHARE = 0.25
"""Share of an epoch's kept sequences, the longest, that stays for another epoch."""


@dataclass(frozen=True, slots=True)
class Blob:
    """The features of some sequences of one epoch."""

    handle: Any
    """Where it is: a Ray reference in a run, the features themselves in a test."""
    epoch: int
    long: bool
    """Whether it holds the epoch's longest sequences."""
    sequences: int
    tokens: int
    size_bytes: int


class FeatureBuffer:
    """Blobs of the newest epoch that had an update and the long ones of the epochs before, within `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.blobs: list[Blob] = []

    def add(self, blobs: Sequence[Blob]) -> None:
        """An epoch's features have come. Older ones that are not the longest go; then the oldest go until the rest
        fits. What is newest stays even if it alone is over the limit."""
        if not blobs:
            return
        newest = max(blob.epoch for blob in blobs)
        fresh = [*(blob for blob in self.blobs if blob.epoch == newest), *blobs]
        older = sorted((b for b in self.blobs if b.epoch < newest), key=lambda b: (not b.long, -b.epoch))
        room = self._max_bytes - sum(blob.size_bytes for blob in fresh)
        self.blobs = fresh
        for blob in older:
            room -= blob.size_bytes
            if room < 0:
                break
            self.blobs.append(blob)

    @property
    def newest(self) -> int:
        """The epoch of the newest features, -1 without any."""
        return max((blob.epoch for blob in self.blobs), default=-1)


def select(lengths: Sequence[int], budget_tokens: int, seed: int) -> tuple[list[int], list[int]]:
    """Sequences whose features are worth keeping, as indices: (the longest, others at random), within the budget.

    The longest quarter of what fits gets half of the tokens, the others the rest.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    longest: list[int] = []
    room = budget_tokens
    most = max(1, round(LONG_SHARE * len(lengths)))
    half = room - budget_tokens // 2 if sum(lengths) > budget_tokens else 0
    for i in order[:most]:
        if room - lengths[i] < half and longest:
            break
        longest.append(i)
        room -= lengths[i]
    others = [i for i in range(len(lengths)) if i not in set(longest)]
    Random(seed).shuffle(others)
    rest = []
    for i in others:
        if lengths[i] <= room:
            rest.append(i)
            room -= lengths[i]
    return longest, sorted(rest)
