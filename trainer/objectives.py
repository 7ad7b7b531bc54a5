"""Policy losses per token, what is added to them, and how tokens are weighted into one number for the whole batch.

Everything is flat over the response tokens of a micro-batch, [tokens]; `rows` int64 [tokens] numbers their responses.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch

from trainer.objective import ObjectiveSpec

if TYPE_CHECKING:
    from trainer.batches import MicroBatch


def batch_losses(
    objective: ObjectiveSpec, on_policy: bool, logprobs: torch.Tensor, entropy: torch.Tensor, micro: "MicroBatch"
) -> torch.Tensor:
    """The whole objective's loss of every response token [tokens], before the weights of the reduction.

    On-policy the policy that samples is the one that learns: the ratio is 1 by definition, and the engine's rounding
    must not enter it.
    """
    old = logprobs.detach() if on_policy else micro.old_logprobs
    losses = token_losses(objective, logprobs, old, micro.advantages, micro.rows)
    if objective.mismatch != "none":
        learner = logprobs if objective.ratio == "none" else old
        losses = losses * mismatch_weights(objective, learner, micro.logprobs, micro.rows)
    if objective.kl in ("k2", "k3"):
        losses = losses + objective.kl_coefficient * kl_losses(objective.kl, logprobs, micro.reference)
    if objective.entropy_coefficient:
        losses = losses - objective.entropy_coefficient * entropy
    return losses


def token_losses(
    objective: ObjectiveSpec,
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """Policy loss of every response token [tokens]; its gradient is minus the objective's. rho = pi / pi_old.

    none: -A log pi (RGRA, arXiv 2603.18756, Eq. 2).
    token_clip: -min(rho A, clip(rho, 1 - low, 1 + high) A) (PPO, arXiv 1707.06347, Eq. 7; GRPO, arXiv 2402.03300;
    clip-higher, arXiv 2503.14476).
    dual_clip: the same, for A < 0 at most dual_clip |A| (arXiv 1912.09729, Eq. 5).
    gspo: as token_clip, with s = exp(mean over the response of log rho) for rho (arXiv 2507.18071, Eq. 5-7).
    cispo: -sg(clip(rho, 1 - low, 1 + high)) A log pi (arXiv 2506.13585, Eq. 4-5).
    With pi = pi_old, as in the first step on a batch, all of them have the same gradient.
    """
    if objective.ratio == "none":
        return -advantages * logprobs
    ratio = policy_ratio(objective, logprobs, old_logprobs, rows)
    clipped = torch.clamp(ratio, 1 - objective.clip_low, 1 + objective.clip_high)
    if objective.ratio == "cispo":
        return -clipped.detach() * advantages * logprobs
    gain = torch.minimum(ratio * advantages, clipped * advantages)
    if objective.ratio == "dual_clip":
        gain = torch.where(advantages < 0, torch.maximum(gain, objective.dual_clip * advantages), gain)
    return -gain


def policy_ratio(
    objective: ObjectiveSpec, logprobs: torch.Tensor, old_logprobs: torch.Tensor, rows: torch.Tensor | None
) -> torch.Tensor:
    """rho of every token [tokens]: its own, or under gspo its response's geometric mean."""
    log_ratio = logprobs - old_logprobs
    if objective.ratio == "gspo":
        assert rows is not None
        log_ratio = _response_means(log_ratio, rows)
    return torch.exp(log_ratio)


def kl_losses(estimator: str, logprobs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Estimate of KL(pi || pi_ref) of every token [tokens], d = log pi - log pi_ref (http://joschu.net/blog/kl-approx.html).

    k2: d^2 / 2, whose gradient is the reverse KL's on-policy. k3: e^-d + d - 1, whose gradient is the forward KL's.
    """
    d = logprobs - reference
    return d.square() / 2 if estimator == "k2" else torch.exp(-d) + d - 1


def mismatch_weights(
    objective: ObjectiveSpec, learner: torch.Tensor, engine: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    """Weight pi_learner / pi_engine of every token's loss [tokens], without gradient.

    tis: truncated to [mismatch_low, mismatch_high]. mis: zero outside of it (IcePop, arXiv 2510.18855). By token, or by
    the product over the response, which alone is unbiased.
    """
    weight = mismatch_ratio(objective, learner, engine, rows)
    low, high = objective.mismatch_low, objective.mismatch_high
    if objective.mismatch == "tis":
        return weight.clamp(low, high)
    return torch.where((weight >= low) & (weight <= high), weight, torch.zeros_like(weight))


def mismatch_ratio(
    objective: ObjectiveSpec, learner: torch.Tensor, engine: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    """pi_learner / pi_engine of every token [tokens] without gradient: its own, or the product over its response."""
    log_weight = (learner - engine).detach()
    if objective.mismatch_level == "sequence":
        log_weight = _response_sums(log_weight, rows)
    return torch.exp(log_weight)


def _response_sums(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The sum over its response, at every token."""
    return values.new_zeros(int(rows[-1]) + 1).index_add(0, rows, values)[rows]


def _response_means(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return _response_sums(values, rows) / _response_sums(torch.ones_like(values), rows)


def token_weights(lengths: list[np.ndarray], reduction: str, longest: int = 1) -> list[np.ndarray]:
    """Weight of one token of each response, by group, over the whole batch.

    `lengths`: per group, int [responses], tokens of each response. Normalised over the whole batch and never per
    micro-batch or rank, so that cutting a batch differently changes nothing.

    prompt_mean: 1 / (prompts x tokens of the group): prompts count equally whatever their group's size.
    sequence_mean: 1 / (responses x tokens of the response).  token_mean: 1 / tokens of the batch.  In these three the
    weights of all tokens add up to 1.
    fixed_length: 1 / (responses x longest), `longest` the longest allowed response (Dr. GRPO).
    """
    responses = sum(len(group) for group in lengths)
    if reduction == "prompt_mean":
        return [np.full(len(group), 1 / (len(lengths) * group.sum())) for group in lengths]
    if reduction == "sequence_mean":
        return [1 / (responses * group) for group in lengths]
    total = responses * longest if reduction == "fixed_length" else sum(int(group.sum()) for group in lengths)
    return [np.full(len(group), 1 / total) for group in lengths]
