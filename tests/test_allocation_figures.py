"""The figures of the allocation benchmark, on curves made by hand: [rollouts, tokens, accuracy]."""

import numpy as np
import pytest

from benchmarks.allocation_figures import area, compare, interval, monotone, reached


def run(policy: str, seed: int, accuracy: list[float], tokens: int = 10) -> dict:
    curve = [[100 * i, tokens * 100 * i, value] for i, value in enumerate(accuracy)]
    return {"policy": policy, "seed": seed, "curve": curve, "effective_share": 0.5}


def test_the_closest_rising_sequence_pools_what_falls():
    np.testing.assert_allclose(monotone(np.array([1.0, 3.0, 2.0, 4.0])), [1, 2.5, 2.5, 4])


def test_spending_is_read_between_two_evaluations():
    spent, accuracy = np.array([0.0, 100.0, 200.0]), np.array([0.2, 0.4, 0.6])
    assert reached(spent, accuracy, 0.5) == pytest.approx(150)
    assert reached(spent, accuracy, 0.7) == float("inf")


def test_area_counts_what_is_unspent_with_the_last_value():
    assert area([[0, 0, 0.0], [100, 0, 1.0]], 200) == pytest.approx(0.75, abs=0.01)


def test_the_interval_is_students():
    mean, low, high = interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert high - mean == mean - low == pytest.approx(4.303 / 3**0.5)


def test_a_policy_twice_as_fast_takes_half_of_the_rollouts_and_its_own_share_of_tokens():
    slow, fast = [0.0, 0.1, 0.2, 0.3, 0.4], [0.0, 0.2, 0.4, 0.4, 0.4]
    runs = [run("uniform", s, slow) for s in (0, 1)] + [run("ours", s, fast, tokens=12) for s in (0, 1)]
    against = compare(runs)["ours"]["against_uniform"]
    assert against["to_reference"]["rollouts"]["share"] == pytest.approx(0.5, abs=0.02)
    assert against["to_reference"]["tokens"]["share"] == pytest.approx(0.6, abs=0.02)
    assert against["area"][0] > 0
    assert against["final"][0] == 0


def test_what_is_never_reached_is_said_so():
    runs = [run("uniform", s, [0.0, 0.5, 1.0]) for s in (0, 1)] + [run("ours", s, [0.0, 0.1, 0.2]) for s in (0, 1)]
    assert compare(runs)["ours"]["against_uniform"]["to_reference"]["rollouts"]["share"] is None


def test_a_reference_that_does_not_rise_gives_no_share():
    runs = [run("uniform", s, [0.5, 0.45, 0.4]) for s in (0, 1)] + [run("ours", s, [0.5, 0.6, 0.7]) for s in (0, 1)]
    assert compare(runs)["ours"]["against_uniform"]["to_reference"]["tokens"]["share"] is None
