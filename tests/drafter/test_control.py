"""What an engine decides and counts about speculation."""

from pathlib import Path

import pytest

from drafter.control import LEARNED, NGRAM, SpeculationControl


def test_n_grams_serve_until_a_drafter_is_published():
    control = SpeculationControl(4, seed=0, ready=False)
    assert control.proposer == NGRAM
    control.published([0.8, 0.6, 0.5, 0.4])
    assert control.proposer == LEARNED


def test_nothing_is_drafted_once_it_is_off():
    control = SpeculationControl(4, seed=0, ready=True)
    control.off = "the sampler is broken"
    assert {control.choose(n) for n in range(1, 65)} == {0}


def test_counts_by_position_and_by_response_length():
    control = SpeculationControl(3, seed=0, ready=True)
    control.observe(LEARNED, 3, 3, [3, 3, 2], [3, 1, 0], [5, 40, 33])
    control.observe(LEARNED, 3, 0, [], [], [])
    row = control.take_stats().row()
    assert row["accept_length"] == pytest.approx(1 + 4 / 3)
    assert row["draft_tokens"] == 8
    assert row["acceptance_by_position"] == pytest.approx([2 / 3, 1 / 3, 1 / 2])
    assert row["accept_length_by_response_tokens"] == {"4": 4.0, "32": 1.5}
    assert row["steps_by_running_and_draft_tokens"] == {"3": {"0": 1, "3": 1}}
    assert row["enabled_steps_fraction"] == 0.5
    assert control.take_stats().steps == 0


def test_figures_of_engines_add_up():
    first, second = (SpeculationControl(2, seed=s, ready=True) for s in (0, 1))
    first.observe(LEARNED, 1, 2, [2], [2], [8])
    second.observe(LEARNED, 1, 2, [2], [0], [8])
    stats = first.take_stats()
    stats.add(second.take_stats())
    assert stats.accept_length == 2.0
    assert stats.row()["acceptance_by_position"] == [0.5, 0.5]


@pytest.mark.parametrize("file", ["actors/scheduler.py", "drafter/control.py", "drafter/bandit.py"])
def test_deciding_and_counting_cannot_wait_for_a_device(file):
    """Gap 11: the released code's reward needs a device synchronisation per step; here no tensor is within reach."""
    assert "torch" not in (Path(__file__).parents[2] / file).read_text()
