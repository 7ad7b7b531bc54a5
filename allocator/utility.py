"""The saturating value of sampling a prompt (CERO eq. (3)) and its conjugate (eq. (9)).

`rate` is c = 4 lambda q / R, the slope of the utility at zero exposure: lambda is the saturation, q in [0, 1/4] the
value of the prompt, R = B / M the exposure in units that every prompt would have under equal shares.
"""

from collections.abc import Iterator

import numpy as np

from allocator.problem import Floats


def saturation_rate(value: Floats, saturation: float, equal_share_units: float) -> Floats:
    """c = 4 lambda q / R, elementwise in `value` [M]; per unit of exposure."""
    return value * (4 * saturation / equal_share_units)


def utility(rate: Floats, exposure_units: Floats) -> Floats:
    """Eq. (3), U = 1 - exp(-c z), elementwise, in [0, 1)."""
    return -np.expm1(-rate * exposure_units)


def conjugate_maximiser(slope: Floats, rate: Floats, max_exposure_units: float) -> Floats:
    """Eq. (9): the exposure z*(theta; c) in [0, Z] at which the utility's slope is `slope` [M] >= 0, elementwise.

    The three cases of the paper in one: clip(log(c / theta) / c, 0, Z), with 0 where c = 0, and Z where theta = 0 < c.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        exposure = rate / slope
        np.log(exposure, out=exposure)
        exposure /= rate
    exposure[rate == 0] = 0
    return np.clip(exposure, 0, max_exposure_units, out=exposure)


BLOCK_PROMPTS = 16_384
"""Prompts that are worked on together: their dozen temporary arrays stay in a core's cache."""


def blocks(prompts: int) -> Iterator[slice]:
    """Slices that cover the pool."""
    return (slice(start, start + BLOCK_PROMPTS) for start in range(0, prompts, BLOCK_PROMPTS))
