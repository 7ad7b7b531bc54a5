"""Expectations over Beta beliefs by quadrature in the logit, where a Beta variable is close to normal."""

import numpy as np

from allocator.problem import Floats

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(7)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


def logit_nodes(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Nodes [n, 7] and weights [7]: E[f(P)] is about `f(nodes) @ weights` for P ~ Beta(a, b), a and b [n].

    logit(P) has mean digamma(a) - digamma(b) and variance trigamma(a) + trigamma(b), exactly.
    """
    mean, deviation = digamma(a) - digamma(b), np.sqrt(trigamma(a) + trigamma(b))
    logit = mean[:, None] + deviation[:, None] * _NODES
    # Beyond 30 a probability rounds to 0 or 1, and its logarithm would not be finite.
    return 1 / (1 + np.exp(-np.clip(logit, -30, 30))), _WEIGHTS


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
