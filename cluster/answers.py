"""Whether what a rollout worker gives back can be what it was asked for. Pure.

A group goes into the ledger, the batch and the journal as it is, so a worker whose answers do not add up is treated as
one that died: its groups are sampled again elsewhere.
"""

import numpy as np

from actors.requests import GroupRequest, Sampling
from trainer.types import Group

ROUNDING_NATS = 1e-3
"""A log-probability may be above 0 by this much."""


def fault(group: Group, request: GroupRequest, sampling: Sampling, vocabulary: int) -> str | None:
    """What is wrong with the group, None if nothing is. `vocabulary`: tokens that the model knows."""
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
    if not (np.isfinite(group.logprobs) & (group.logprobs <= ROUNDING_NATS)).all():
        return "a log-probability that is none"
    if len(group.rewards) != len(lengths) or len(group.truncated) != len(lengths):
        return f"{len(group.rewards)} rewards for {len(lengths)} responses"
    if not ((group.rewards >= 0) & (group.rewards <= 1)).all():  # false for NaN too
        return "a reward outside [0, 1]"
    return None
