"""How many workers a run has use for."""

from cluster.scaling import PATIENCE_PHASES, Scale


def test_as_many_workers_as_a_phase_fills_within_the_limits():
    assert [Scale(1, 3, 64).phase(n) for n in (1, 64, 65, 128, 1000)] == [1, 1, 2, 2, 3]
    assert Scale(2, 3, 64).phase(1) == 2


def test_a_small_phase_between_large_ones_sends_nobody_away():
    scale = Scale(1, 3, 64)
    sizes = [192, 10, 192, *[10] * PATIENCE_PHASES]
    assert [scale.phase(n) for n in sizes] == [3] * (len(sizes) - 1) + [1]


def test_while_nothing_is_sampled_only_the_least_stay():
    scale = Scale(1, 3, 64)
    scale.phase(192)
    assert scale.pause() == 1
    assert scale.phase(10) == 1
