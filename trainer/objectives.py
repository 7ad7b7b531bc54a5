"""Policy losses per token, and how tokens are weighted into one number for the whole batch."""

import numpy as np
import torch

from trainer.spec import ObjectiveSpec


def token_losses(
    objective: ObjectiveSpec, logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor
) -> torch.Tensor:
    """Loss of every response token [tokens]; its gradient is minus the objective's.

    rgra: -A log pi (arXiv 2603.18756, Eq. 2 without the KL term: no ratio, no clipping).
    grpo: -min(rho A, clip(rho, 1 - low, 1 + high) A), rho = pi / pi_old (arXiv 2402.03300).
    With pi = pi_old, as in the first step on a batch, both have the same gradient.
    """
    if objective.name == "rgra":
        return -advantages * logprobs
    ratio = torch.exp(logprobs - old_logprobs)
    clipped = torch.clamp(ratio, 1 - objective.clip_low, 1 + objective.clip_high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def token_weights(lengths: list[np.ndarray], reduction: str) -> list[np.ndarray]:
    """Weight of one token of each response, by group; all tokens' weights of the batch add up to 1.

    `lengths`: per group, int [responses], tokens of each response. Normalised over the whole batch and never per
    micro-batch or rank, so that cutting a batch differently changes nothing.

    prompt_mean: 1 / (prompts x tokens of the group): prompts count equally whatever their group's size.
    sequence_mean: 1 / (responses x tokens of the response).  token_mean: 1 / tokens of the batch.
    """
    if reduction == "prompt_mean":
        return [np.full(len(group), 1 / (len(lengths) * group.sum())) for group in lengths]
    if reduction == "sequence_mean":
        responses = sum(len(group) for group in lengths)
        return [1 / (responses * group) for group in lengths]
    tokens = sum(int(group.sum()) for group in lengths)
    return [np.full(len(group), 1 / tokens) for group in lengths]
