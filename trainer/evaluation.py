"""pass@1 and pass@k from graded samples. Pure."""

from collections.abc import Sequence
from math import comb

import numpy as np

from trainer.types import Group, Prompt


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is right, 1 - C(n-c, k) / C(n, k).

    arXiv 2107.03374, Eq. 1. Raises ValueError for k above the number of samples.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} cannot be estimated from {samples} samples")
    return 1 - comb(samples - correct, k) / comb(samples, k)


def summarize(groups: Sequence[Group], prompts: Sequence[Prompt], k: int) -> dict:
    """pass@1 (mean reward) and pass@k over all prompts and by family, with the standard error over prompts.

    A reward of 1 counts as right for pass@k."""
    by_family: dict[str, list[Group]] = {}
    for group in groups:
        by_family.setdefault(prompts[group.prompt].family, []).append(group)
    tokens = sum(int(group.lengths.sum()) for group in groups)
    return {
        **_scores(groups, k),
        "prompts": len(groups),
        "k": k,
        "response_tokens_mean": tokens / max(sum(len(group) for group in groups), 1),
        "families": {name: _scores(members, k) for name, members in sorted(by_family.items())},
    }


def _scores(groups: Sequence[Group], k: int) -> dict[str, float]:
    means = np.array([group.rewards.mean() for group in groups])
    right = [int((group.rewards >= 1).sum()) for group in groups]
    return {
        "pass@1": float(means.mean()),
        "pass@1_stderr": float(means.std(ddof=1) / len(means) ** 0.5) if len(means) > 1 else 0.0,
        "pass@k": float(np.mean([pass_at_k(len(group), c, k) for group, c in zip(groups, right, strict=True)])),
    }
