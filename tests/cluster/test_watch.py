"""Figures are gathered from real actors, of which one may be dead and one may hang, and nothing waits for them."""

import contextlib
import time

import pytest
from sayer import Sayer
from test_metrics import served

from actors.figures import AllocatorFigures, LearnerFigures, WorkerFigures
from cluster import watch as module
from cluster.metrics import Metrics
from cluster.placement import Actors
from cluster.watch import Watch
from drafter.control import SpeculationStats

pytestmark = [pytest.mark.stack, pytest.mark.timeout(120)]


WORKER = WorkerFigures(steps=4, generated_tokens=30, running=2, speculation=SpeculationStats(steps=4))


def start(says: object):
    import ray

    return ray.remote(Sayer).options(num_cpus=0).remote(says)


def rows_until(watch: Watch, *kinds: str) -> dict:
    """The rows together, up to the one with which all of these have answered."""
    row: dict = {}
    deadline = time.monotonic() + 30
    while not all(row.get(kind) for kind in kinds) and time.monotonic() < deadline:
        row |= {kind: figures for kind, figures in watch.row().items() if figures}
        time.sleep(0.01)
    return row


@pytest.fixture(scope="module")
def handles(ray_cluster):
    """Of two workers, a rank and an allocator."""
    import ray

    found = [start(says) for says in (WORKER, WORKER, LearnerFigures(tokens=70), AllocatorFigures(decide_s=0.5))]
    yield found
    for handle in found:
        ray.kill(handle)


@pytest.fixture
def world(handles):
    first, second, rank, allocator = handles
    actors = Actors({"rollout-0": first, "rollout-1": second}, {}, [rank], allocator, {}, {}, None)
    with contextlib.closing(Metrics(0)) as metrics:
        yield actors, Watch(actors, metrics), metrics


def test_an_epochs_figures_stand_by_kind_and_name(world):
    _, watch, metrics = world
    watch.ask(last=True)
    assert {name: figures.speculation.steps for name, figures in watch.workers().items()} == {
        "rollout-0": 4,
        "rollout-1": 4,
    }
    row = rows_until(watch, "learner", "allocator")
    assert row["workers"]["generated_tokens"] == {"rollout-0": 30, "rollout-1": 30}
    assert "speculation" not in row["workers"]
    assert row["learner"]["tokens"] == {"0": 70}
    assert row["allocator"]["decide_s"] == 0.5
    assert row["driver"]["resident_bytes"] > 2**20
    assert served(metrics)['tailrace_worker_steps_total{worker="rollout-1"}'] == 4


def test_within_a_long_phase_workers_are_asked_now_and_then_and_the_row_has_the_sum(world, monkeypatch):
    _, watch, metrics = world
    monkeypatch.setattr(module, "ASK_EVERY_S", 0.2)
    deadline = time.monotonic() + 30
    shown = 0.0
    while shown < 8 and time.monotonic() < deadline:
        watch.look()
        time.sleep(0.05)
        shown = served(metrics).get('tailrace_worker_steps_total{worker="rollout-0"}', 0)
    assert shown >= 8
    watch.ask(last=True)
    steps = watch.workers()["rollout-0"].steps
    assert steps > shown
    assert watch.row()["workers"]["steps"]["rollout-0"] == steps
    assert served(metrics)['tailrace_worker_steps_total{worker="rollout-0"}'] == steps
    watch.ask(last=True)
    assert watch.workers()["rollout-0"].steps == 4, "starts afresh"


def test_in_short_epochs_actors_are_asked_in_the_first_and_the_last_and_now_and_then(world, monkeypatch):
    actors, _, metrics = world
    monkeypatch.setattr(module, "ASK_AT_MOST_EVERY_S", 3600)
    watch = Watch(actors, metrics)
    watch.ask(last=False)
    assert watch.workers()["rollout-0"].steps == 4, "the first one"
    watch.ask(last=False)
    assert watch.workers() == {}
    watch.ask(last=True)
    assert watch.workers()["rollout-0"].steps == 4
    row = watch.row()
    assert row["workers"]["steps"] == {"rollout-0": 4, "rollout-1": 4}
    assert row["learner"]["tokens"]["0"] == 140, "of the last epoch it is waited for"
    deciding = Watch(actors, every_epoch=True)
    deciding.ask(last=False)
    assert deciding.workers()["rollout-0"].steps == 4


def test_what_is_forgotten_stands_in_no_row_but_on_the_endpoint(world):
    _, watch, metrics = world
    watch.forget()
    assert served(metrics)['tailrace_worker_steps_total{worker="rollout-0"}'] == 4
    watch.ask(last=True)
    watch.workers()
    assert watch.row()["workers"]["steps"]["rollout-0"] == 4


def test_a_dead_worker_says_nothing_and_one_that_left_is_shown_no_more(world):
    import ray

    actors, watch, metrics = world
    worker, rank = start(WORKER), start(LearnerFigures(tokens=80))
    actors.workers["rollout-2"] = worker
    actors.ranks.append(rank)
    watch.ask(last=True)
    assert watch.workers().keys() == {"rollout-0", "rollout-1", "rollout-2"}
    assert watch.row()["learner"]["tokens"] == {"0": 70, "1": 80}
    ray.kill(worker)
    ray.kill(rank)
    watch.ask(last=True)
    assert watch.workers().keys() == {"rollout-0", "rollout-1"}
    assert rows_until(watch, "learner")["learner"]["tokens"] == {"0": 70}
    del actors.workers["rollout-2"]
    watch.ask(last=True)
    watch.workers()
    assert not [name for name in served(metrics) if "rollout-2" in name]


def test_a_worker_that_hangs_owes_an_answer_until_it_gives_it(world, monkeypatch):
    actors, watch, metrics = world
    monkeypatch.setattr(module, "ANSWER_S", 0.5)
    actors.workers["rollout-0"].sleep.remote(3)
    watch.ask(last=True)
    assert watch.workers().keys() == {"rollout-1"}
    assert served(metrics)['tailrace_worker_unanswered_seconds{worker="rollout-0"}'] >= 0.4
    assert served(metrics)['tailrace_worker_unanswered_seconds{worker="rollout-1"}'] == 0
    monkeypatch.setattr(module, "ANSWER_S", 30)
    watch.ask(last=True)
    assert watch.workers()["rollout-0"].steps == 8
    assert served(metrics)['tailrace_worker_unanswered_seconds{worker="rollout-0"}'] == 0
