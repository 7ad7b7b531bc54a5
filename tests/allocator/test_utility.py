import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allocator.utility import conjugate_maximiser, saturation_rate, utility


def maximiser(slope: float, rate: float, limit: float) -> float:
    return float(conjugate_maximiser(np.array([slope]), np.array([rate]), limit)[0])


@given(slope=st.floats(0, 2), rate=st.floats(1e-3, 2), limit=st.floats(0.1, 200))
def test_maximiser_minimises_the_line_minus_the_utility(slope, rate, limit):
    """The definition that eq. (9) solves: theta s - U(s) over 0 <= s <= Z."""
    grid = np.linspace(0, limit, 4001)
    objective = slope * grid - utility(np.full_like(grid, rate), grid)
    best = maximiser(slope, rate, limit)
    assert 0 <= best <= limit
    assert slope * best - utility(np.array([rate]), np.array([best]))[0] <= objective.min() + 1e-12


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("slope", "rate", "expected"),
    [(0.3, 0.0, 0), (0.0, 0.0, 0), (0.0, 0.2, 50), (0.2, 0.2, 0), (0.9, 0.2, 0), (0.2 * np.exp(-10.0), 0.2, 50)],
)
def test_corner_cases_of_equation_9(slope, rate, expected):
    assert maximiser(slope, rate, 50.0) == pytest.approx(expected)


def test_utility_of_a_coin_at_equal_share_is_one_minus_exp_of_minus_saturation():
    rate = saturation_rate(np.array([0.25]), saturation=3.0, equal_share_units=7.0)
    assert utility(rate, np.array([7.0]))[0] == pytest.approx(1 - np.exp(-3))
