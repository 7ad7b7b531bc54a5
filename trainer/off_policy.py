"""How far the policy that learns is from the one that sampled, and what the objective's clips cut off.

Everything is over the response tokens that are learned from. delta = log pi_learner - log pi_engine of a sampled token,
w = e^delta; the learner is the policy as it is at the optimizer step.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch

from trainer.objective import ObjectiveSpec
from trainer.objectives import mismatch_ratio, policy_ratio

if TYPE_CHECKING:
    from trainer.batches import MicroBatch

COLUMNS = ("tokens", "gap", "kl", "weight", "weight_squared", "ratio_clipped", "mismatch_clipped")
GAP = COLUMNS.index("gap")


def drift(objective: ObjectiveSpec, on_policy: bool, logprobs: torch.Tensor, micro: "MicroBatch") -> torch.Tensor:
    """What `shares` is made of, for every token: float64 [columns, tokens], without gradient.

    1; |delta|; e^delta - 1 - delta, whose mean over sampled tokens is KL(pi_engine || pi_learner) without bias (k3,
    http://joschu.net/blog/kl-approx.html); w; w^2; whether the ratio's clip cuts its gradient (under `cispo` its
    weight); whether `mismatch` truncates or drops its weight.
    """
    new = logprobs.detach()
    old = new if on_policy else micro.old_logprobs
    delta = (new - micro.logprobs).double()
    weight = torch.exp(delta)
    never = torch.zeros_like(new, dtype=torch.bool)
    ratio_clipped = mismatch_clipped = never
    if objective.ratio != "none":
        ratio_clipped = clips(objective, policy_ratio(objective, new, old, micro.rows), micro.advantages)
    if objective.mismatch != "none":
        ratio = mismatch_ratio(objective, new if objective.ratio == "none" else old, micro.logprobs, micro.rows)
        mismatch_clipped = (ratio < objective.mismatch_low) | (ratio > objective.mismatch_high)
    columns = [
        torch.ones_like(delta), delta.abs(), torch.expm1(delta) - delta, weight, weight.square(), ratio_clipped,
        mismatch_clipped,
    ]  # fmt: skip
    return torch.stack([column.double() for column in columns])


def clips(objective: ObjectiveSpec, ratio: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """Of every token, whether the bounds on the ratio decide [tokens]: the clipped product is the smaller one, so that
    it has no gradient; under `cispo`, whether its weight is cut."""
    low, high = 1 - objective.clip_low, 1 + objective.clip_high
    if objective.ratio == "cispo":
        return (ratio < low) | (ratio > high)
    cut = ((advantages > 0) & (ratio > high)) | ((advantages < 0) & (ratio < low))
    if objective.ratio == "dual_clip":
        cut = cut | ((advantages < 0) & (ratio > objective.dual_clip))
    return cut


def shares(sums: np.ndarray) -> dict[str, float]:
    """Figures of a batch from the sums of `drift` over its tokens [columns].

    mismatch_kl: mean of k3, nats per token. effective_sample_share: (sum w)^2 / (tokens x sum w^2), the effective
    sample size as a share of the tokens, by weights that nothing truncates. The other two: share of tokens cut off.
    """
    of = dict(zip(COLUMNS, sums.tolist(), strict=True))
    tokens = max(of["tokens"], 1.0)
    return {
        "mismatch_kl": of["kl"] / tokens,
        "effective_sample_share": of["weight"] ** 2 / (tokens * of["weight_squared"]) if of["weight_squared"] else 0.0,
        "ratio_clipped_share": of["ratio_clipped"] / tokens,
        "mismatch_clipped_share": of["mismatch_clipped"] / tokens,
    }
