"""Parallel averaging: two optimizers step from the same weights, and half of each update is taken.

    theta <- theta_0 + 1/2 (delta_RL + delta_SFT)

Both gradients at theta_0, each with Adam moments of its own, weight decay and gradient clipping inside each update
(Bansal et al., "RL Excursions during Pre-Training", arXiv 2606.04272, the algorithm of parallel averaging).
"""

from collections.abc import Sequence

import torch


def averaged(
    start: Sequence[torch.Tensor], first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """`start` plus the mean of the two updates that led from it to `first` and to `second`; all of the same shapes."""
    return [s + 0.5 * ((a - s) + (b - s)) for s, a, b in zip(start, first, second, strict=True)]
