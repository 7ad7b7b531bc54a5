"""How workers are, told from hand-written events."""

import pytest

from cluster.fleet import Fleet

LIMIT_S = 8.0


def fleet_of(*names: str, restarts: int = 10) -> Fleet:
    """All in service at 0 s with weights of version 3."""
    fleet = Fleet(LIMIT_S, restarts)
    for name in names:
        fleet.starts(name, 0)
        fleet.ready(name, 0)
        fleet.refitted(name, 3, 0)
    return fleet


def seen(fleet: Fleet) -> Fleet:
    """Somebody has looked at it at 0 s."""
    fleet.look((), 0)
    return fleet


def looks(fleet: Fleet, asked: str, until_s: float, now: float = 0, every_s: float = 0.5) -> list[tuple]:
    """What looking again and again gives, with its time, where it gives anything."""
    found = []
    while now < until_s:
        now += every_s
        suspects, silent = fleet.look(asked, now)
        if suspects or silent:
            found.append((now, *suspects, *(f"{name}!" for name in silent)))
    return found


def test_a_worker_started_again_is_stale_until_it_was_given_the_weights():
    fleet = fleet_of("a", "b")
    fleet.lost("a", 1)
    assert (fleet.serving, fleet.outdated(3)) == (["b"], [])
    fleet.starts("a", 2)
    assert (fleet.serving, fleet.outdated(3)) == (["b"], [])
    fleet.ready("a", 9)
    assert (fleet.serving, fleet.outdated(3)) == (["b"], ["a"])
    fleet.refitted("a", 3, 11)
    assert (sorted(fleet.serving), fleet.outdated(3)) == (["a", "b"], [])


def test_a_new_version_makes_all_outdated_until_each_has_it():
    fleet = fleet_of("a", "b")
    assert sorted(fleet.outdated(4)) == ["a", "b"]
    fleet.refitted("a", 4, 1)
    assert fleet.outdated(4) == ["b"]
    assert sorted(fleet.serving) == ["a", "b"], "who may be given work of version 4 is decided by whoever publishes"


def test_silence_makes_suspect_at_half_of_the_limit_and_lost_at_all_of_it():
    assert looks(seen(fleet_of("a")), "a", 10) == [(4.5, "a"), *((t / 2, "a!") for t in range(17, 21))]


def test_a_suspect_that_makes_progress_is_healthy_again():
    fleet = seen(fleet_of("a"))
    assert looks(fleet, "a", 6) == [(4.5, "a")]
    fleet.heard("a", 6)
    fleet.look("a", 6)
    assert fleet.names("healthy") == ["a"]
    assert looks(fleet, "a", 15, now=6) == [(10.5, "a"), (14.5, "a!"), (15.0, "a!")]


def test_a_worker_that_answers_out_of_an_endless_step_is_lost_too():
    """Each answer says when the step began, and that is the last progress."""
    fleet = fleet_of("a")
    for now in range(1, 9):
        fleet.heard("a", 0.5)
        assert fleet.look("a", now) == ((["a"], []) if now == 5 else ([], []))
    fleet.heard("a", 0.5)
    assert fleet.look("a", 9) == ([], ["a"])


def test_time_before_the_first_look_is_nobodys_silence():
    fleet = fleet_of("a")
    assert fleet.look("a", 100) == ([], [])
    assert looks(fleet, "a", 109, now=100)[-1] == (109.0, "a!")


def test_nobody_is_silent_who_was_not_asked():
    fleet = seen(fleet_of("a", "b"))
    assert looks(fleet, "b", 7.5) == [(4.5, "b")]
    fleet.heard("b", 7.5)
    assert looks(fleet, "ab", 12, now=7.5) == [(12.0, "a", "b")], "silence begins with the first question"


def test_a_driver_that_was_stopped_blames_nobody_for_it():
    fleet = fleet_of("a")
    fleet.look("a", 1)
    assert fleet.look("a", 1000) == ([], [])
    assert looks(fleet, "a", 1010, now=1000)[-1] == (1010.0, "a!"), "who stays silent afterwards is found all the same"


def test_no_more_workers_are_started_again_than_may():
    fleet = fleet_of("a", "b", restarts=1)
    assert fleet.lost("a", 1)
    assert not fleet.lost("b", 1)
    assert fleet.losses == 2


def test_silence_is_known_only_while_somebody_looks():
    fleet = fleet_of("a")
    assert fleet.silence_s("a", 5) == 0
    looks(seen(fleet), "a", 3)
    assert fleet.silence_s("a", 3.5) == 3.5
    assert fleet.silence_s("a", 60) == 0


def test_a_retired_worker_is_watched_while_it_finishes_and_then_leaves():
    fleet = fleet_of("a", "b")
    assert fleet.retire("a")
    assert fleet.serving == ["b"]
    assert ("a!") in looks(fleet, "a", 10)[-1]
    fleet.gone("a")
    assert list(fleet.members) == ["b"]


def test_one_that_was_not_in_service_has_nothing_to_finish():
    fleet = fleet_of("a")
    fleet.starts("b", 0)
    assert not fleet.retire("b")


def test_a_worker_that_was_not_started_cannot_become_ready():
    fleet = fleet_of("a")
    with pytest.raises(ValueError, match="a is healthy, not restarting"):
        fleet.ready("a", 1)
