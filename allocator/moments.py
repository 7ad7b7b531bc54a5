"""Expectations over Beta beliefs by quadrature in the logit, where their density is smooth and has no poles."""

import numpy as np

from allocator.problem import Floats

NODES = 13
_GRID = np.linspace(-1, 1, NODES)
REACH_DEVIATIONS, REACH_LOGIT = 4.0, 9.0
"""The nodes span so many deviations around the mean, within logits at which p (1 - p) is next to nothing."""


def logit_nodes(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Nodes and weights, both [n, 13]: E[f(P)] is about `(f(nodes) * weights).sum(1)` for P ~ Beta(a, b), a and b [n].

    In x = logit(P) the density is p^a (1-p)^b up to a constant, with mean digamma(a) - digamma(b) and variance
    trigamma(a) + trigamma(b). The trapezoidal rule on an even grid is all but exact for it; the exponential tails
    beyond the grid, e^(a x) / a on the left, count with the outermost nodes.
    """
    mean, deviation = digamma(a) - digamma(b), np.sqrt(trigamma(a) + trigamma(b))
    low = np.clip(mean - REACH_DEVIATIONS * deviation, -REACH_LOGIT, REACH_LOGIT - 1)
    high = np.clip(mean + REACH_DEVIATIONS * deviation, low + 1e-3, REACH_LOGIT)
    step = (high - low) / (NODES - 1)
    x = (low + high)[:, None] / 2 + ((high - low) / 2)[:, None] * _GRID
    odds_against = np.exp(-x)
    log_p = -np.log1p(odds_against)
    log_density = (a + b)[:, None] * log_p - b[:, None] * x
    weight = np.exp(log_density - log_density.max(axis=1, keepdims=True))
    weight[:, 0] *= 0.5 + np.minimum(1 / (a * step), 1e9) * (low <= -REACH_LOGIT)
    weight[:, -1] *= 0.5 + np.minimum(1 / (b * step), 1e9) * (high >= REACH_LOGIT)
    weight /= weight.sum(axis=1, keepdims=True)
    return 1 / (1 + odds_against), weight


def digamma(x: Floats) -> Floats:
    """d/dx log Gamma(x) for x > 0, to 1e-8: recurrence to x + 6, then the asymptotic series (DLMF 5.11.2)."""
    shift = sum(1 / (x + i) for i in range(6))
    y = x + 6
    r = 1 / (y * y)
    return np.log(y) - 0.5 / y - r * (1 / 12 - r * (1 / 120 - r / 252)) - shift


def trigamma(x: Floats) -> Floats:
    """d^2/dx^2 log Gamma(x) for x > 0, to 1e-8 (DLMF 5.15.9)."""
    shift = sum(1 / (x + i) ** 2 for i in range(6))
    y = x + 6
    r = 1 / (y * y)
    return 1 / y + 0.5 * r + r / y * (1 / 6 - r * (1 / 30 - r / 42)) + shift
