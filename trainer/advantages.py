"""Group-relative advantages, for groups of any size. Each function takes the rewards of one group."""

from collections.abc import Callable

import numpy as np


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


def _deviations(rewards: np.ndarray) -> np.ndarray:
    """r_i - mean [n]; exactly zero where all rewards are equal, although their mean may be rounded."""
    return rewards - rewards.mean() if np.ptp(rewards) else np.zeros(len(rewards))


ESTIMATORS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "leave_one_out": leave_one_out,
    "group_mean": group_mean,
    "z_score": z_score,
}
