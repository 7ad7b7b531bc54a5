"""What actors count of themselves adds up."""

import time
from dataclasses import fields

import pytest

from actors.figures import (
    MOMENTS,
    LearnerFigures,
    WorkerFigures,
    peak_resident_bytes,
    resident_bytes,
    timed,
)
from drafter.control import SpeculationStats


def test_answers_add_up_but_for_peaks_and_moments():
    numbers = set(WorkerFigures().row())
    peaks = {"running_peak", "waiting_peak", "kv_cache_peak", "ungraded_peak"}
    assert numbers | {"speculation", "speculation_off"} == {f.name for f in fields(WorkerFigures)}
    first = WorkerFigures(**dict.fromkeys(numbers, 5), speculation=SpeculationStats(steps=2), speculation_off="why")
    first.add(WorkerFigures(**dict.fromkeys(numbers, 3), speculation=SpeculationStats(steps=1)))
    assert {name for name in numbers if getattr(first, name) == 3} == MOMENTS
    assert {name for name in numbers if getattr(first, name) == 5} == peaks
    assert {name for name in numbers if getattr(first, name) == 8} == numbers - MOMENTS - peaks
    assert first.speculation.steps == 3
    assert first.speculation_off is None
    rank = LearnerFigures(1, 7, 2.0, 1.0, 10)
    rank.add(LearnerFigures(2, 6, 3.0, 1.5, 20))
    assert rank == LearnerFigures(2, 7, 5.0, 2.5, 30)


class Actor:
    def __init__(self) -> None:
        self._figures, self._inside = LearnerFigures(), False

    @timed("busy_s", "learning_s")
    def outer(self) -> str:
        """Says something."""
        time.sleep(0.01)
        return self.inner()

    @timed("busy_s")
    def inner(self) -> str:
        time.sleep(0.01)
        return "done"

    @timed("busy_s")
    def fails(self) -> None:
        raise ValueError("no")


def test_a_call_within_a_call_is_timed_once():
    actor = Actor()
    assert actor.outer() == "done"
    assert actor._figures.busy_s == actor._figures.learning_s >= 0.02
    actor.inner()
    assert actor._figures.busy_s >= actor._figures.learning_s + 0.01
    assert Actor.outer.__doc__ == "Says something."


def test_a_call_that_fails_is_timed_too_and_the_next_one_as_well():
    actor = Actor()
    with pytest.raises(ValueError, match="no"):
        actor.fails()
    before = actor._figures.busy_s
    assert before > 0
    actor.inner()
    assert actor._figures.busy_s > before


def test_memory_is_in_bytes_and_its_peak_no_less_than_what_is_held():
    before = resident_bytes()
    held = b"x" * 2**26
    assert resident_bytes() - before > 2**25
    assert peak_resident_bytes() >= resident_bytes() - 2**22  # the kernel counts the two at different moments
    assert len(held) == 2**26
