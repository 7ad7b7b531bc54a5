"""Whether what a rollout worker gives back can be what it was asked for. Pure.

A group goes into the ledger, the batch and the journal as it is, so a worker whose answers do not add up is treated as
one that died: its groups are sampled again elsewhere.
"""

from typing import Any

import numpy as np

from actors.handover import Delivery
from actors.requests import GroupRequest, Sampling
from actors.rollout import Collected
from trainer.types import Group

ROUNDING_NATS = 1e-3
"""A log-probability may be above 0 by this much."""
LOWEST_NATS = -1e4
"""Nothing this improbable is ever sampled."""
KINDS = {"token_ids": "iu", "logprobs": "f", "lengths": "iu", "rewards": "f", "truncated": "b"}
"""Of numpy's dtypes, by column."""


def not_an_answer(found: Any) -> str | None:
    """What is wrong with what `collect` gave, None if it is what that gives."""
    if not isinstance(found, Collected) or not isinstance(found.items, list):
        return f"it gave a {type(found).__name__} instead of what it has finished"
    for item in found.items:
        if not isinstance(item, Group | Delivery):
            return f"it gave a {type(item).__name__} instead of a group"
        if not isinstance(item.id if isinstance(item, Group) else item.group_id, str):
            return "it gave a group without a name"
    return None


def fault(group: Group, request: GroupRequest, sampling: Sampling, vocabulary: int) -> str | None:
    """What is wrong with the group, None if nothing is. `vocabulary`: tokens that the model knows."""
    for name, kind in KINDS.items():
        column = getattr(group, name, None)
        if not isinstance(column, np.ndarray) or column.ndim != 1 or column.dtype.kind not in kind:
            return f"{name} are not a column of numbers"
    asked = request.epoch, request.prompt, request.weight_version, request.rollouts
    if (group.epoch, group.prompt, group.weight_version, len(group)) != asked:
        return "epoch, prompt, weight version or size are not those of the request"
    lengths, tokens = group.lengths, int(group.lengths.sum())
    if lengths.min() < 1 or lengths.max() > sampling.max_tokens:
        return (
            f"a response has {int(lengths.min())} or {int(lengths.max())} tokens, asked were 1 to {sampling.max_tokens}"
        )
    if len(group.token_ids) != tokens or len(group.logprobs) not in (tokens, 0):
        return f"{len(group.token_ids)} tokens and {len(group.logprobs)} log-probabilities for lengths of {tokens}"
    if not len(group.logprobs) and sampling.pool == "train":
        return "no log-probabilities"
    if group.token_ids.min() < 0 or group.token_ids.max() >= vocabulary:
        return f"a token outside the vocabulary of {vocabulary}"
    if not ((group.logprobs >= LOWEST_NATS) & (group.logprobs <= ROUNDING_NATS)).all():  # false for NaN too
        return "a log-probability that is none"
    if len(group.rewards) != len(lengths) or len(group.truncated) != len(lengths):
        return f"{len(group.rewards)} rewards for {len(lengths)} responses"
    if not ((group.rewards >= 0) & (group.rewards <= 1)).all():  # false for NaN too
        return "a reward outside [0, 1]"
    return None
