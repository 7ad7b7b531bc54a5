"""The reduced vocabulary that an eagle3 head proposes from: the tokens that the run really uses. Numpy only."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from trainer.types import BadInput


@dataclass(frozen=True, eq=False)
class DraftVocabulary:
    ids: np.ndarray
    """int64 [draft_vocab_size], distinct target ids in ascending order; index = draft id."""
    vocab_size: int
    """Of the target."""

    def __post_init__(self) -> None:
        ids = self.ids
        if len(ids) < 1 or ids[0] < 0 or ids[-1] >= self.vocab_size or (np.diff(ids) <= 0).any():
            raise BadInput(f"drafter vocabulary: ids are not distinct, ascending and below {self.vocab_size}")

    @classmethod
    def full(cls, vocab_size: int) -> "DraftVocabulary":
        return cls(np.arange(vocab_size, dtype=np.int64), vocab_size)

    @classmethod
    def chosen(cls, counts: np.ndarray, size: int, keep: Iterable[int] = ()) -> "DraftVocabulary":
        """The `size` most frequent of `counts` [vocab_size], ties by smaller id; `keep` (ends of sequence) always."""
        kept = sorted(set(keep))
        if not len(kept) <= size <= len(counts) or size < 1:
            raise BadInput(f"drafter.draft_vocab_size: {size} is not in {max(len(kept), 1)} .. {len(counts)}")
        if kept and not 0 <= kept[0] <= kept[-1] < len(counts):
            raise BadInput(f"drafter vocabulary: ids to keep {kept} are not below {len(counts)}")
        order = np.lexsort((np.arange(len(counts)), -np.asarray(counts, np.float64)))
        rest = order[~np.isin(order, kept)][: size - len(kept)]
        return cls(np.sort(np.concatenate([np.array(kept, np.int64), rest.astype(np.int64)])), len(counts))

    @classmethod
    def from_d2t(cls, d2t: np.ndarray, vocab_size: int) -> "DraftVocabulary":
        return cls(np.arange(len(d2t), dtype=np.int64) + d2t.astype(np.int64), vocab_size)

    @property
    def reduced(self) -> bool:
        return len(self.ids) < self.vocab_size

    @property
    def d2t(self) -> np.ndarray:
        """int64 [draft_vocab_size]: target id = draft id + d2t[draft id], as vLLM's `compute_logits` adds it."""
        return self.ids - np.arange(len(self.ids))

    @property
    def t2d(self) -> np.ndarray:
        """bool [vocab_size]: whether the head can propose the token."""
        mask = np.zeros(self.vocab_size, bool)
        mask[self.ids] = True
        return mask
