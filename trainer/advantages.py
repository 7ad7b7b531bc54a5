"""Advantages of responses, for groups of any size. Pure.

An estimator of one group takes its rewards [n]; estimators of a batch take the rewards of all groups. What either does
to the expected gradient of a prompt is `prompt_weight`.
"""

from collections.abc import Callable, Sequence
from math import comb

import numpy as np

from trainer.objective import ObjectiveSpec


def leave_one_out(rewards: np.ndarray) -> np.ndarray:
    """A_i = r_i - mean of the others = n/(n-1) (r_i - mean) [n]; zero for a group of one.

    RLOO, arXiv 2402.14740. Its expected gradient weight is 1 for every group size n >= 2, so an allocator that varies n
    changes the variance only.
    """
    n = len(rewards)
    return _deviations(rewards) * (n / (n - 1)) if n > 1 else np.zeros(n)


def group_mean(rewards: np.ndarray) -> np.ndarray:
    """A_i = r_i - mean [n] (Dr. GRPO, arXiv 2503.20783). Weights a prompt by (n-1)/n in expectation."""
    return _deviations(rewards)


def z_score(rewards: np.ndarray) -> np.ndarray:
    """A_i = (r_i - mean) / (std + 1e-6), std with n-1 [n] (GRPO, arXiv 2402.03300); zero for a group of one.

    Weights a prompt by about 1/sqrt(p(1-p)), growing with n.
    """
    if len(rewards) < 2:
        return np.zeros(len(rewards))
    return _deviations(rewards) / (rewards.std(ddof=1) + 1e-6)


def maxrl(rewards: np.ndarray) -> np.ndarray:
    """A_i = (r_i - mean) / mean [n], zero where the mean is (MaxRL, arXiv 2602.02710).

    Weights a prompt by (1 - (1-p)^(n-1)) / p, which tends to 1/p: the gradient of log p.
    """
    deviations = _deviations(rewards)
    return deviations / rewards.mean() if deviations.any() else deviations


def raw(rewards: np.ndarray) -> np.ndarray:
    """A_i = r_i [n]: REINFORCE without a baseline."""
    return np.array(rewards, float)


def best(rewards: np.ndarray) -> np.ndarray:
    """1 for the first of the group's best responses if it was rewarded at all, 0 for the others [n]: RAFT, of which the
    objective is the plain likelihood of what is kept."""
    kept = np.zeros(len(rewards))
    if rewards.max() > 0:
        kept[rewards.argmax()] = 1.0
    return kept


def pass_at_k(rewards: np.ndarray, k: int) -> np.ndarray:
    """Advantages under the group's pass@k [n] (arXiv 2508.10751); a reward of 1 counts as right.

    With R = 1 - C(wrong, k) / C(n, k) and s = sqrt(R (1 - R)): (1 - R) / s for right responses and
    (1 - R - C(wrong - 1, k - 1) / C(n - 1, k - 1)) / s for wrong ones. Zero where s is, and in groups below k.
    """
    n, right = len(rewards), rewards >= 1
    wrong = int(n - right.sum())
    if n < k:
        return np.zeros(n)
    pass_rate = 1 - comb(wrong, k) / comb(n, k)
    scale = (pass_rate * (1 - pass_rate)) ** 0.5
    if not scale:
        return np.zeros(n)
    of_wrong = 1 - pass_rate - comb(wrong - 1, k - 1) / comb(n - 1, k - 1) if wrong else 0.0
    return np.where(right, 1 - pass_rate, of_wrong) / scale


def batch_z(groups: Sequence[np.ndarray]) -> list[np.ndarray]:
    """A_i = (r_i - group mean) / (std of all rewards of the batch + 1e-6) (Lite-PPO, arXiv 2508.08221)."""
    scale = np.concatenate(groups).std() + 1e-6
    return [_deviations(rewards) / scale for rewards in groups]


def history(groups: Sequence[np.ndarray], believed: Sequence[float]) -> list[np.ndarray]:
    """A_i = r_i - the success rate believed of the prompt before these rewards: unbiased for every n >= 1."""
    return [rewards - belief for rewards, belief in zip(groups, believed, strict=True)]


def shrinkage(groups: Sequence[np.ndarray]) -> list[np.ndarray]:
    """A_i = r_i - (w x mean of the siblings + (1 - w) x mean over the other prompts), after arXiv 2511.03710.

    w = between / (between + within / (n - 1)) (James-Stein) with the variances of prompts' means and of rewards within
    prompts taken from the other prompts only. So nothing that is subtracted depends on r_i, and the gradient stays
    unbiased. A batch of one group falls back to leave-one-out, and a group of one to the other prompts' mean.
    """
    if len(groups) == 1:
        return [leave_one_out(groups[0])]
    n = np.array([len(rewards) for rewards in groups])
    means = np.array([rewards.mean() for rewards in groups])
    squares = np.array([((rewards - rewards.mean()) ** 2).sum() for rewards in groups])
    result = []
    for q, rewards in enumerate(groups):
        others = np.arange(len(groups)) != q
        mean = means[others].mean()
        within = squares[others].sum() / max((n[others] - 1).sum(), 1)
        # The spread of means holds within / n of each prompt beside what really lies between prompts.
        between = max(means[others].var() - within * np.mean(1 / n[others]), 0.0)
        if n[q] == 1:
            result.append(rewards - mean)
            continue
        siblings = (rewards.sum() - rewards) / (n[q] - 1)
        noise = within / (n[q] - 1)
        w = between / (between + noise) if between + noise else 1.0
        result.append(rewards - (w * siblings + (1 - w) * mean))
    return result


def _deviations(rewards: np.ndarray) -> np.ndarray:
    """r_i - mean [n]; exactly zero where all rewards are equal, although their mean may be rounded."""
    return rewards - rewards.mean() if np.ptp(rewards) else np.zeros(len(rewards))


ESTIMATORS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "leave_one_out": leave_one_out,
    "group_mean": group_mean,
    "z_score": z_score,
    "maxrl": maxrl,
    "raw": raw,
    "best": best,
}
"""Of one group, without a parameter."""


def advantages(objective: ObjectiveSpec, groups: Sequence[np.ndarray], believed: Sequence[float]) -> list[np.ndarray]:
    """Advantages by group; `groups` are rewards [n] each, `believed` the prompts' success rates believed before.

    Clipped and filtered by sign as the objective says.
    """
    name = objective.advantage
    if name == "batch_z":
        found = batch_z(groups)
    elif name == "history":
        found = history(groups, believed)
    elif name == "shrinkage":
        found = shrinkage(groups)
    elif name == "pass_at_k":
        found = [pass_at_k(rewards, objective.pass_k) for rewards in groups]
    else:
        found = [ESTIMATORS[name](rewards) for rewards in groups]
    low = 0.0 if objective.sign == "positive" else -(objective.advantage_clip or np.inf)
    return [np.clip(a, low, objective.advantage_clip or np.inf) for a in found]


def shaped(rewards: np.ndarray, lengths: np.ndarray, objective: ObjectiveSpec, longest: int) -> np.ndarray:
    """Rewards [n] less what overlong responses cost: max(length - (longest - buffer), 0) / buffer x penalty.

    DAPO, arXiv 2503.14476, Eq. 13; `buffer` is overlong_share of the longest allowed response.
    """
    if not objective.overlong_share:
        return rewards
    buffer = objective.overlong_share * longest
    return rewards - np.maximum(lengths - (longest - buffer), 0) / buffer * objective.overlong_penalty


def prompt_weight(objective: ObjectiveSpec, n: int, p: float) -> float:
    """c(n, p): with a group of n, a prompt solved with probability p enters the expected gradient as c x grad p.

    E over K right of n of (K A_right / p - (n - K) A_wrong / (1 - p)) / n, since a right response's score function is
    grad p / p and a wrong one's -grad p / (1 - p). `history` and `shrinkage` have 1; `batch_z` up to a factor that all
    prompts share.
    """
    if objective.advantage in ("history", "shrinkage"):
        return 1.0
    alone = objective.model_copy(update={"advantage": "group_mean"}) if objective.advantage == "batch_z" else objective
    total = 0.0
    for right in range(n + 1):
        rewards = np.concatenate([np.ones(right), np.zeros(n - right)])
        (found,) = advantages(alone, [rewards], [p])
        chance = comb(n, right) * p**right * (1 - p) ** (n - right)
        total += chance * (found[:right].sum() / p - found[right:].sum() / (1 - p)) / n
    return total
