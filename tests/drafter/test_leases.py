"""Bubbles: who may train, when it ends, and what is counted, from hand-written events."""

import pytest

from drafter.leases import Leases


def idle(leases: Leases, now: float, *workers: str) -> list[str]:
    for worker in workers:
        leases.idle(worker, now)
    return leases.grant(now)


def test_an_idle_worker_gets_a_lease_while_another_generates():
    assert idle(Leases(["a", "b"]), 1.0, "a") == ["a"]


def test_no_lease_when_nobody_generates():
    assert idle(Leases(["a", "b"]), 1.0, "a", "b") == []


def test_completion_of_one_worker_does_not_end_the_training_of_another():
    """Gap 8: in the released code a worker that completes broadcasts STOP to all."""
    leases = Leases(["a", "b", "c"])
    idle(leases, 1.0, "a")
    assert idle(leases, 2.0, "b") == ["b"]
    assert leases.work(["c"], 2.5) == []
    assert leases.phase_over(5.0) == ["a", "b"]
    for worker in ("a", "b"):
        leases.returned(worker, 5.05, 3.0)
    assert leases.take_stats().harvested_s == pytest.approx(2.95 * 2)


def test_training_goes_on_until_the_last_worker_is_done():
    leases = Leases(["a", "b"])
    idle(leases, 1.0, "a")
    for now in (2.0, 3.0, 50.0):
        assert leases.work(["b"], now) == []
        assert idle(leases, now, "a") == []  # it holds its lease already
    assert leases.phase_over(60.0) == ["a"]


def test_work_ends_the_lease_of_its_worker_at_once_and_of_no_other():
    leases = Leases(["a", "b", "c"])
    idle(leases, 1.0, "a", "b")
    assert leases.work(["a", "c"], 2.0) == ["a"]
    assert leases.phase_over(4.0) == ["b"]


def test_a_worker_is_leased_again_only_after_its_lease_came_back():
    leases = Leases(["a", "b"])
    idle(leases, 1.0, "a")
    leases.work(["a"], 2.0)
    assert idle(leases, 3.0, "a") == []
    leases.returned("a", 2.03, 0.9)
    assert idle(leases, 3.1, "a") == ["a"]


def test_harvested_time_is_training_within_the_stretch_and_give_back_is_counted_beyond():
    leases = Leases(["a", "b"])
    idle(leases, 10.0, "a")
    leases.phase_over(14.0)
    leases.returned("a", 14.05, 3.95)
    stats = leases.take_stats()
    assert stats.idle_s == 4.0
    assert stats.harvested_s == pytest.approx(3.9)
    assert stats.give_back_s == pytest.approx([0.05])
    assert stats.late_s == pytest.approx(0.05)
    assert stats.stretches == [("a", 10.0, 14.0, pytest.approx(3.9))]


def test_short_stretches_are_idle_time_but_not_judged():
    leases = Leases(["a", "b"])
    idle(leases, 0.0, "a")
    leases.phase_over(0.5)
    leases.returned("a", 0.52, 0.4)
    stats = leases.take_stats()
    assert stats.idle_s == 0.5
    assert stats.counted_idle_s == 0.0


def test_a_holder_that_hangs_is_overdue_and_one_that_is_lost_gets_no_lease():
    leases = Leases(["a", "b"])
    idle(leases, 0.0, "a")
    leases.phase_over(1.0)
    assert leases.overdue(2.0, limit_s=10.0) == []
    assert leases.overdue(12.0, limit_s=10.0) == ["a"]
    leases.lose("a", 12.0)
    assert idle(leases, 13.0, "a") == []
    assert leases.overdue(99.0, limit_s=10.0) == []


def test_a_session_that_ends_by_itself_has_nothing_to_train_on_until_the_next_bubble():
    leases = Leases(["a", "b"])
    idle(leases, 0.0, "a")
    leases.returned("a", 2.0, 1.8)
    assert idle(leases, 2.5, "a") == []
    leases.phase_over(4.0)
    assert leases.take_stats().harvested_s == pytest.approx(1.8)
    assert idle(leases, 9.0, "a") == ["a"]
