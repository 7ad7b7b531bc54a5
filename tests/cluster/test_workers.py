"""What is done about workers that are lost, too few, too many, or on a node that leaves, with a hand-written crew."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
from small_spec import small

import cluster.workers
from cluster.errors import ActorLost, RunFailed
from cluster.placement import Actors
from cluster.scaling import NOTICE_S
from cluster.serving import Serving
from cluster.spec import parse_spec
from cluster.workers import Workers


class Crew:
    """Starts nobody: no worker has a place until a test gives it one."""

    replaces = True

    def __init__(self) -> None:
        self.leaving: dict[str, float] = {}
        self.places: dict[str, str] = {}
        self.ended: list[str] = []
        self.asked: list[str] = []

    def end(self, handle: str) -> None:
        self.ended.append(handle)

    def leaving_nodes(self) -> dict[str, float]:
        return self.leaving

    def node_of(self, name: str) -> str | None:
        return self.places.get(name)

    def rank_nodes(self) -> set[str]:
        return {"node-rollout-0"}

    def ask_place(self, name: str) -> None:
        self.asked.append(name)

    def give_back_place(self, name: str) -> None:
        self.asked.remove(name)


@pytest.fixture
def world(monkeypatch):
    """Makes workers, each on a node of its own, with their crew and their journal."""
    monkeypatch.setattr(cluster.workers, "PLACES_S", 0.0)
    monkeypatch.setattr(cluster.workers, "NODES_S", 0.0)

    def make(least: int, most: int, deterministic: bool = False, **limits: float) -> tuple[Workers, Crew, list[dict]]:
        data = small()
        data["run"]["deterministic"] = deterministic
        data["rollout"] |= {"workers": {"min": least, "max": most}, "max_running_requests": 10}
        data["learner"]["ranks"] = 1
        data["limits"] = limits
        crew, events = Crew(), []
        names = [f"rollout-{i}" for i in range(least)]
        crew.places = {name: f"node-{name}" for name in names}
        actors = Actors({name: f"handle-{name}" for name in names}, {}, [], None, {}, {}, None, crew)

        def journal(event: str, **fields: Any) -> None:
            events.append({"event": event, **fields})

        return Workers(parse_spec(data, "test"), actors, journal, lambda text: None), crew, events

    return make


def named(events: list[dict], name: str) -> list[str]:
    return [event["worker"] for event in events if event["event"] == name]


def away(crew: Crew, name: str) -> None:
    """Its node is gone, and there is no other."""
    crew.places[name] = None


def test_a_lost_worker_is_ended_and_its_loss_told_once(world):
    workers, crew, events = world(2, 2)
    away(crew, "rollout-1")
    workers.lose("rollout-1", "died")
    workers.lose("rollout-1", "died again")
    assert crew.ended == ["handle-rollout-1"]
    assert named(events, "worker_lost") == ["rollout-1"]
    assert (workers.take_lost(), workers.take_lost()) == (["rollout-1"], [])
    assert (workers.serving, workers.hope) == (["rollout-0"], True)
    workers.tick()
    assert workers.serving == ["rollout-0"], "the others go on while there is no place for it"


def test_each_loss_counts_when_it_happens_and_one_too_many_fails_the_run(world):
    workers, crew, _ = world(3, 3, worker_restarts=1)
    for name in workers.serving:
        away(crew, name)
    workers.lose("rollout-0", "died")
    with pytest.raises(RunFailed, match=r"rollout-1 is lost: died; limits.worker_restarts = 1 are spent"):
        workers.lose("rollout-1", "died")


def test_who_has_no_place_for_longer_than_the_limit_takes_a_run_back_that_cannot_do_without(world, monkeypatch):
    workers, crew, _ = world(1, 1, placement_timeout_s=0.2)
    away(crew, "rollout-0")
    time.sleep(0.3)  # somebody waited for long before the loss was seen
    workers.lose("rollout-0", "its node died")
    workers.tick()
    told: list[tuple] = []
    monkeypatch.setattr(cluster.workers, "on_stall", SimpleNamespace(get=lambda: lambda *stall: told.append(stall)))
    time.sleep(0.15)
    workers.tick()
    workers.tick()
    assert [(what, limit_s) for what, _, limit_s in told] == [("a place for rollout-0, each CPU 1", 0.2)], "once"
    time.sleep(0.15)
    with pytest.raises(
        ActorLost, match=r"waited limits.placement_timeout_s = 0.2 s for a place for rollout-0, each CPU 1"
    ):
        workers.tick()


def test_workers_are_asked_for_as_a_phase_needs_them_and_go_when_nothing_is_sampled(world):
    workers, crew, events = world(1, 3)
    workers.phase_begins(25)
    assert crew.asked == ["rollout-1", "rollout-2"]
    workers.phase_begins(25)
    assert crew.asked == ["rollout-1", "rollout-2"], "once"
    workers.pause()
    assert crew.asked == []
    assert named(events, "worker_retired") == ["rollout-2", "rollout-1"]
    assert workers.serving == ["rollout-0"]


def test_a_worker_on_a_node_that_leaves_finishes_what_it_has_and_another_is_asked_for_elsewhere(world):
    workers, crew, events = world(1, 1)
    workers.phase_begins(10)
    crew.leaving = {"node-rollout-0": time.time() + 600}
    workers.tick()
    assert workers.serving == []
    assert workers.hope, "it still has something to finish"
    assert crew.asked == ["rollout-1"]
    workers.release({"rollout-0"})
    assert "rollout-0" in workers.handles, "it is busy"
    workers.release(set())
    assert crew.ended == ["handle-rollout-0"]
    assert not named(events, "worker_lost")


def test_what_is_not_finished_shortly_before_the_node_goes_is_lost_and_costs_no_restart(world):
    workers, crew, events = world(2, 2, worker_restarts=0)
    crew.leaving = {"node-rollout-1": time.time() + 1}
    workers.tick()
    assert named(events, "worker_lost") == ["rollout-1"]
    assert workers.take_lost() == ["rollout-1"]
    assert workers.serving == ["rollout-0"]


def test_a_deadline_holds_also_when_the_notice_is_heard_no_more(world):
    workers, crew, events = world(2, 2)
    crew.leaving = {"node-rollout-1": time.time() + NOTICE_S + 0.3}
    workers.tick()
    assert not named(events, "worker_lost")
    crew.leaving = {}
    away(crew, "rollout-1")
    time.sleep(0.4)
    workers.tick()
    assert named(events, "worker_lost") == ["rollout-1"]


def test_a_group_of_engines_that_takes_in_no_new_one_loses_none_to_a_notice(world):
    workers, crew, events = world(2, 2)
    crew.replaces = False
    crew.leaving = {"node-rollout-1": time.time() + 600}
    workers.tick()
    assert workers.serving == ["rollout-0", "rollout-1"]
    assert not events
    with pytest.raises(ActorLost, match="rollout-1 is lost: died"):
        workers.lose("rollout-1", "died")


def test_a_notice_for_a_node_of_the_learner_is_told_once(world):
    workers, crew, _ = world(2, 2)
    crew.leaving = {"node-rollout-1": time.time() + 600}
    workers.tick()
    assert not workers.take_notice(), "no rank is there"
    crew.leaving |= {"node-rollout-0": time.time() + 600}
    workers.tick()
    assert workers.take_notice()
    workers.tick()
    assert not workers.take_notice()


class Publishing(Serving):
    """The driver between two phases."""

    def __init__(self, workers: Workers, deterministic: bool, stop: Any) -> None:
        data = small()
        data["run"]["deterministic"] = deterministic
        self.spec, self.workers, self._check_stop = parse_spec(data, "test"), workers, stop
        self.version, self.update = 0, None
        self.bubbles = type("Bubbles", (), {"publish": lambda _: None, "joined": lambda _, name: None})()


def test_a_deterministic_run_whose_worker_must_leave_goes_back_instead_of_waiting_for_it(world):
    workers, crew, _ = world(2, 2, deterministic=True, placement_timeout_s=0.2)
    crew.leaving = {"node-rollout-1": time.time() + 3600}
    deadline = time.monotonic() + 20

    def stop() -> None:
        assert time.monotonic() < deadline, "waited without end"

    with pytest.raises(ActorLost, match="for a place for rollout-1"):
        Publishing(workers, True, stop)._serve_current_weights()
    assert crew.ended == ["handle-rollout-1"]
