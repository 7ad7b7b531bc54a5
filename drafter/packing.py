"""Sequences of unequal length, end to end without padding, each its own document.

A *chain* is a draft that starts at position c of a document: step j (from 0) is fed the embedding of token c + 1 + j,
stands at position c + j and predicts token c + 2 + j. Chains of a document are consecutive, so what belongs to the
token that step j of chain i predicts is found at chain i + j.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from drafter.attention import Segments
from drafter.features import FeatureSequence


@dataclass(frozen=True, slots=True)
class Pack:
    token_ids: torch.Tensor
    """int64 [tokens]."""
    positions: torch.Tensor
    """int64 [tokens], from 0 in each document."""
    features: torch.Tensor
    """float32 [tokens, feature_size]."""
    last: torch.Tensor
    """float32 [chains, hidden]: the target's last hidden state at c + 1, whose logits step 0 should match."""
    starts: torch.Tensor
    """int64 [chains], index of c among the tokens."""
    reach: torch.Tensor
    """int64 [chains], tokens of the response that a chain may predict; step j counts where reach > j."""
    segments: Segments
    """Which keys a chain sees: those of its own document up to c."""

    @property
    def chains(self) -> int:
        return len(self.starts)


def plan_packs(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices of sequences by pack, in their order: a pack is full when the next one would exceed the budget.

    A sequence longer than the budget gets a pack of its own; nothing is cut.
    """
    packs: list[list[int]] = []
    used = token_budget + 1
    for index, length in enumerate(lengths):
        if used + length > token_budget:
            packs.append([])
            used = 0
        packs[-1].append(index)
        used += length
    return packs


def pack(sequences: Sequence[FeatureSequence], device: torch.device | str = "cpu") -> Pack:
    """All sequences in one pack. Those without a drafted token (`chains` 0) are left out; at least one must stay."""
    sequences = [sequence for sequence in sequences if sequence.chains]
    if not sequences:
        raise ValueError("no sequence has a response of two tokens or more, so there is nothing to draft")
    lengths = np.array([len(sequence) for sequence in sequences])
    counts = np.array([sequence.chains for sequence in sequences])
    first = np.array([sequence.prompt_length - 1 for sequence in sequences])
    offsets = np.cumsum(lengths) - lengths
    within = _ranges(counts)
    starts = np.repeat(offsets + first, counts) + within
    # Rows of `last` that no chain predicts from are not moved to the device.
    last = [s.last[s.prompt_length : s.prompt_length + s.chains] for s in sequences]
    return Pack(
        _to(np.concatenate([s.token_ids for s in sequences]).astype(np.int64), device),
        _to(_ranges(lengths), device),
        _to(np.concatenate([s.features for s in sequences]), device).float(),
        _to(np.concatenate(last), device).float(),
        _to(starts, device),
        _to(np.repeat(counts, counts) - within, device),
        Segments.of(offsets, first, counts, device),
    )


def _ranges(counts: np.ndarray) -> np.ndarray:
    """0 .. count - 1 for each count, end to end."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _to(array: np.ndarray, device: torch.device | str) -> torch.Tensor:
    return torch.from_numpy(array).to(device)
