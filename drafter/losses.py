"""What a draft step is worth, position by position, and how steps are weighed.

p is the target's distribution, restricted to the draft vocabulary and renormalised; q is the head's.

soft_cross_entropy   -sum p log q. Its gradient in q's logits is q - p, that of the forward KL divergence
                     (EAGLE, arXiv 2401.15077, section 4.2; EAGLE-3, arXiv 2503.01840).
total_variation      1 - sum min(p, q), one minus the acceptance probability of a draft *sampled* from q (Leviathan et
                     al. 2023, arXiv 2211.17192, corollary 3.6). A greedy one is accepted with probability p(argmax q).
hybrid               w CE + (1 - w) TV with w = exp(-3 sum min(p, q)), not differentiated: cross-entropy while the two
                     are far apart, where total variation hardly has a gradient (in the spirit of `lk_hybrid` of
                     speculators, whose weights may differ).
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

HYBRID_RATE = 3.0
EAGLE_TOKEN_WEIGHT = 0.1
"""EAGLE-1's weight of the token loss beside SmoothL1 on the hidden state, of weight 1 (arXiv 2401.15077, 4.2)."""


def soft_cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """[positions] from logits and target probabilities [positions, draft_vocab_size]."""
    return -(target * logits.log_softmax(-1)).sum(-1)


def total_variation(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """[positions], in [0, 1]."""
    return 1 - torch.minimum(logits.softmax(-1), target).sum(-1)


def hybrid(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """[positions]."""
    variation = total_variation(logits, target)
    weight = (-HYBRID_RATE * (1 - variation.detach())).exp()
    return weight * soft_cross_entropy(logits, target) + (1 - weight) * variation


LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "soft_cross_entropy": soft_cross_entropy,
    "total_variation": total_variation,
    "hybrid": hybrid,
}


def hidden_loss(hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """[positions], SmoothL1 averaged over the hidden dimensions: the eagle form also regresses the next feature."""
    return F.smooth_l1_loss(hidden, target, reduction="none").mean(-1)


def target_distribution(last: torch.Tensor, target_head: torch.Tensor, temperature: float) -> torch.Tensor:
    """softmax(last @ target_head^T / temperature), [positions, draft_vocab_size], over the draft vocabulary only.

    `target_head` [draft_vocab_size, hidden] holds the rows of the draft vocabulary.
    """
    return F.linear(last, target_head).div_(temperature).softmax(-1)
