"""Attention of draft chains over packed documents, at the cost of the documents, not of the pack.

The queries of a document are cut into segments of at most SEGMENT chains, each with the keys up to its last chain;
segments of similar size are padded to one another and calculated together. So a pack of many short documents is a few
matrix products, a long document costs half its square, and no mask is larger than its bucket.

Steps after the first see the same keys and, besides, the chain's own drafted ones. What a chain takes from the former
is summarised by a mean and a log-sum-exp, and both are joined as in blockwise attention (Milakov & Gimelshein 2018,
arXiv 1805.02867; Liu et al. 2023, arXiv 2310.01889, section 3).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

SEGMENT = 256
"""Chains per segment. Smaller ones follow the diagonal more closely, larger ones make fewer buckets."""
BUCKET_COST = 32_768
"""Scores (chain x key, per head) that cost as much as one more bucket; padding may waste so many."""
CHECKPOINT_SCORES = 1 << 24
"""Scores per head above which they are recomputed in the backward pass instead of kept: a document of 5,000 tokens."""


@dataclass(frozen=True, slots=True)
class Bucket:
    chains: torch.Tensor
    """int64 [segments, width], padding 0."""
    keys: torch.Tensor
    """int64 [segments, reach], indices of tokens, padding 0."""
    unseen: torch.Tensor
    """float32 [segments, 1, 1, width, reach]: 0 where the chain sees the key, else -inf."""


@dataclass(frozen=True, slots=True)
class Segments:
    buckets: tuple[Bucket, ...]
    order: torch.Tensor
    """int64 [chains], where each chain's result is among those of all buckets, padding included."""
    recompute: bool

    @classmethod
    def of(cls, offsets: np.ndarray, first: np.ndarray, counts: np.ndarray, device: torch.device | str) -> "Segments":
        """Documents whose tokens begin at `offsets` [documents], with `counts` chains from position `first` on."""
        chain_offsets = np.cumsum(counts) - counts
        rows = [  # first token, first chain, chains, position of the first chain
            (offset, chain + cut, min(SEGMENT, count - cut), begin + cut)
            for offset, chain, begin, count in zip(offsets, chain_offsets, first, counts, strict=True)
            for cut in range(0, count, SEGMENT)
        ]
        groups = _grouped(np.array([(width, begin + width) for _, _, width, begin in rows]))
        buckets, order, results = [], np.empty(counts.sum(), np.int64), 0
        for group in groups:
            chunk = np.array([rows[i] for i in group])
            token, chain, width, begin = (column[:, None] for column in chunk.T)
            query, key = np.arange(width.max()), np.arange((begin + width).max())
            real, seen = query < width, key < begin + width
            unseen = np.where(key <= (begin + query)[..., None], np.float32(0), np.float32(-np.inf))
            chains, keys = np.where(real, chain + query, 0), np.where(seen, token + key, 0)
            buckets.append(Bucket(*(torch.from_numpy(a).to(device) for a in (chains, keys, unseen[:, None, None]))))
            order[chains[real]] = results + np.flatnonzero(real)
            results += real.size
        scores = sum(bucket.unseen.numel() for bucket in buckets)
        return cls(tuple(buckets), torch.from_numpy(order).to(device), scores > CHECKPOINT_SCORES)


def _grouped(sizes: np.ndarray) -> list[list[int]]:
    """Indices of segments [segments, (chains, keys)] by bucket: largest first, until padding wastes BUCKET_COST."""
    groups: list[list[int]] = []
    waste = 0
    for i in np.lexsort((np.arange(len(sizes)), -sizes[:, 1], -sizes.prod(1))):
        width, reach = sizes[i]
        if groups:
            box = np.maximum(sizes[i], shape := sizes[groups[-1]].max(0)).prod()
            waste += box - width * reach + (box - shape.prod()) * len(groups[-1])
        if not groups or waste > BUCKET_COST:
            groups.append([])
            waste = 0
        groups[-1].append(int(i))
    return groups


class Memory:
    """Step 0's keys and values of all tokens, gathered once by bucket, read by the queries of every step."""

    def __init__(self, key: torch.Tensor, value: torch.Tensor, segments: Segments) -> None:
        """`key` and `value` are [tokens, kv_heads, head_dim]."""
        self.segments = segments
        self._keys = [_by_head(key, bucket.keys) for bucket in segments.buckets]
        self._values = [_by_head(value, bucket.keys) for bucket in segments.buckets]

    def read(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the chains' queries [chains, heads, head_dim] take from the keys that they see.

        Returns the mean of the values [chains, heads, head_dim] and the log-sum-exp of the scores [chains, heads].
        """
        means: list[torch.Tensor] = []
        sums: list[torch.Tensor] = []
        for bucket, key, value in zip(self.segments.buckets, self._keys, self._values, strict=True):
            width, kv_heads = bucket.chains.shape[1], key.shape[1]
            heads = _by_head(query, bucket.chains) * query.shape[-1] ** -0.5
            grouped = heads.unflatten(1, (kv_heads, -1)).flatten(2, 3)  # those that share a key-value head, stacked
            for results, part in zip(
                (means, sums),
                _BucketRead.apply(grouped, key, value, bucket.unseen, self.segments.recompute),
                strict=True,
            ):
                results.append(part.unflatten(2, (-1, width)).flatten(1, 2).transpose(1, 2).flatten(0, 1))
        order = self.segments.order
        return torch.cat(means).index_select(0, order), torch.cat(sums).index_select(0, order).squeeze(-1)


def joined(
    query: torch.Tensor,
    read: tuple[torch.Tensor, torch.Tensor],
    drafted: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    """Attention over what was read from memory and over each chain's own drafted keys and values.

    `drafted` holds a pair [chains, kv_heads, head_dim] per step from 1 on. Returns [chains, heads, head_dim].
    """
    mean, log_sum = read
    if not drafted:
        return mean
    share = query.shape[1] // drafted[0][0].shape[1]
    grouped = query.unflatten(1, (-1, share))
    scores = [(grouped * key[:, :, None]).sum(-1).flatten(1) * query.shape[-1] ** -0.5 for key, _ in drafted]
    weights = torch.stack([log_sum, *scores], -1).softmax(-1)
    result = (weights[..., :1] * mean).unflatten(1, (-1, share))
    for i, (_, value) in enumerate(drafted, start=1):
        result = result + weights[..., i : i + 1].unflatten(1, (-1, share)) * value[:, :, None]
    return result.flatten(1, 2)


def _by_head(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """[tokens, kv_heads, head_dim] gathered by [segments, width] -> [segments, kv_heads, width, head_dim]."""
    return x.index_select(0, rows.flatten()).unflatten(0, rows.shape).transpose(1, 2)


class _BucketRead(torch.autograd.Function):
    """Means [segments, kv_heads, shared heads x width, head_dim] and log-sum-exps [.., 1] of one bucket.

    By hand because autograd would pass over the scores, which are most of the work, several times as often.
    """

    @staticmethod
    def forward(ctx, query, key, value, unseen, recompute):
        scores = _scores(query, key, unseen)
        top = scores.amax(-1, keepdim=True)
        weights = scores.softmax(-1)
        log_sum = top - weights.amax(-1, keepdim=True).log_()  # the largest weight is exp(top - log_sum)
        mean = weights @ value
        ctx.save_for_backward(query, key, value, unseen, mean, log_sum, None if recompute else weights)
        return mean, log_sum

    @staticmethod
    def backward(ctx, mean_grad, log_sum_grad):
        query, key, value, unseen, mean, log_sum, weights = ctx.saved_tensors
        if weights is None:
            weights = (_scores(query, key, unseen) - log_sum).exp_()
        # d mean as in flash attention (Dao et al. 2022, arXiv 2205.14135, B.2); d log_sum / d scores = weights.
        shift = (mean_grad * mean).sum(-1, keepdim=True) - log_sum_grad
        scores_grad = (mean_grad @ value.transpose(2, 3)).sub_(shift).mul_(weights)
        return scores_grad @ key, scores_grad.transpose(2, 3) @ query, weights.transpose(2, 3) @ mean_grad, None, None


def _scores(query: torch.Tensor, key: torch.Tensor, unseen: torch.Tensor) -> torch.Tensor:
    """[segments, kv_heads, shared heads x width, reach]; `query` is already scaled."""
    scores = query @ key.transpose(2, 3)
    scores.unflatten(2, (-1, unseen.shape[-2])).add_(unseen)
    return scores
