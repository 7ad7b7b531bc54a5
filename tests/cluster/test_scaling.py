"""How many workers a run has use for, and which, told from hand-written events."""

import math

from cluster.fleet import Fleet
from cluster.scaling import NOTICE_S, PATIENCE_PHASES, RESPITE_S, Roster, Scale


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


def world(least: int, most: int, fixed: bool = False) -> tuple[Fleet, Roster]:
    """At 0 s, all workers of the beginning in service; each engine decodes ten responses together."""
    fleet = Fleet(8.0, 10)
    base = [f"rollout-{i}" for i in range(least)]
    for name in base:
        serves(fleet, name)
    return fleet, Roster(fleet, Scale(least, most, 10), base, fixed, now=0)


def serves(fleet: Fleet, name: str) -> None:
    fleet.starts(name, 0)
    fleet.ready(name, 0)
    fleet.refitted(name, 0, 0)


def test_further_workers_are_named_once_and_those_of_the_beginning_are_never_spare():
    fleet, roster = world(1, 3)
    roster.phase(25)
    assert roster.changes() == (["rollout-1", "rollout-2"], [])
    assert roster.changes() == ([], [])
    assert roster.to_start(0) == ["rollout-1", "rollout-2"]
    roster.starts("rollout-1")
    serves(fleet, "rollout-1")
    roster.pause()
    assert roster.changes() == ([], ["rollout-2", "rollout-1"])


def test_of_more_than_ten_workers_the_newest_go_first():
    fleet, roster = world(1, 12)
    roster.phase(120)
    for name in roster.changes()[0]:
        roster.starts(name)
        serves(fleet, name)
    for _ in range(PATIENCE_PHASES):
        roster.phase(100)
    assert roster.changes() == ([], ["rollout-11", "rollout-10"])


def test_one_without_a_process_goes_before_one_that_works():
    fleet, roster = world(1, 3)
    roster.phase(30)
    for name in roster.changes()[0]:
        roster.starts(name)
        serves(fleet, name)
    fleet.lost("rollout-1", 1)
    roster.want("rollout-1", 1)
    for _ in range(PATIENCE_PHASES):
        roster.phase(20)
    assert roster.changes() == ([], ["rollout-1"])


def test_a_fixed_number_of_workers_is_never_changed():
    fleet, roster = world(2, 2, fixed=True)
    roster.phase(100)
    fleet.retire("rollout-1")
    assert roster.changes() == ([], [])


def test_a_lost_worker_is_started_after_a_respite_and_a_further_one_at_once():
    fleet, roster = world(1, 2)
    roster.phase(20)
    roster.changes()
    fleet.lost("rollout-0", 5)
    roster.want("rollout-0", 5)
    assert roster.to_start(5 + RESPITE_S / 2) == ["rollout-1"]
    assert roster.to_start(5 + RESPITE_S) == ["rollout-0", "rollout-1"]


def test_a_run_is_stuck_from_when_it_missed_what_it_needs_while_nobody_serves_and_nobody_comes():
    fleet, roster = world(1, 2)
    assert roster.stuck_s(False, 50) == 0
    fleet.lost("rollout-0", 60)
    roster.want("rollout-0", 60)
    assert roster.stuck_s(False, 100) == 40
    assert roster.stuck_s(True, 110) == 0
    assert roster.stuck_s(False, 120) == 10
    serves(fleet, "rollout-1")
    assert roster.stuck_s(False, 130) == 0


def test_a_run_of_a_fixed_number_is_stuck_with_all_but_one():
    fleet, roster = world(2, 2, fixed=True)
    fleet.lost("rollout-1", 10)
    roster.want("rollout-1", 10)
    assert roster.stuck_s(False, 30) == 20


def test_workers_of_a_node_that_leaves_are_replaced_and_overdue_shortly_before_its_time():
    fleet, roster = world(2, 2)
    nodes = {"rollout-0": "a", "rollout-1": "b"}
    assert roster.leave(nodes, {"b": 1000.0, "c": 0.0}) == ["rollout-1"]
    fleet.retire("rollout-1")
    assert roster.changes() == (["rollout-2"], [])
    assert roster.overdue(1000 - NOTICE_S) == []
    assert roster.overdue(1000.1 - NOTICE_S) == ["rollout-1"]
    fleet.gone("rollout-1")
    assert roster.gone("rollout-1", 7), "one of the beginning comes back"
    assert roster.overdue(math.inf) == []
    assert roster.changes() == ([], ["rollout-2"])
    assert not roster.gone("rollout-2", 8)
    assert roster.wanted == {"rollout-1"}


def test_a_notice_without_a_time_is_never_overdue():
    _, roster = world(1, 1)
    roster.leave({"rollout-0": "a"}, {"a": 0.0})
    assert roster.overdue(1e12) == []
