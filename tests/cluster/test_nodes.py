"""Runs outlive the loss of a node, and leave one in time that is about to go. `make chaos` runs all of this."""

import signal
import time
from importlib.machinery import SourceFileLoader
from pathlib import Path

import psutil
import pytest
from nodes import Nodes, events, finished, until
from test_survive import LIMITS, assert_same_end

from cluster.checkpoint import RunDirectory

leave = SourceFileLoader("leave", str(Path(__file__).parents[2] / "deploy" / "leave.py")).load_module()
pytestmark = [pytest.mark.stack, pytest.mark.chaos, pytest.mark.timeout(1500)]
PHASES = ("stage_started", "decided", "dispatched", "completed", "rolled_out", "published", "checkpoint")
"""Events of the journal after which a node is struck, each time the next one of its kind."""
EPOCHS = 600
"""Nodes are struck from another process, which needs seconds to find one."""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """Three nodes; a run takes two."""
    cluster = Nodes(tmp_path_factory.mktemp("ray"))
    for _ in range(3):
        cluster.add()
    yield cluster
    cluster.stop()


@pytest.fixture
def spec_data(small) -> dict:
    """One node has the learner, the allocator and a worker; another one has a worker."""
    small["learner"]["ranks"] = 1
    small["limits"] = {**LIMITS, "rollout_timeout_s": 200, "placement_timeout_s": 100}
    small["run"]["checkpoint_every_epochs"] = 10
    return of_epochs(small, EPOCHS)


def of_epochs(data: dict, epochs: int) -> dict:
    data["recipe"] = [{**stage, "epochs": epochs} if stage["stage"] == "rl" else stage for stage in data["recipe"]]
    data["allocator"]["budget_rollouts"] = epochs * 40
    return data


@pytest.fixture(scope="module")
def undisturbed() -> list[RunDirectory]:
    return []


def with_only_a_worker(nodes: Nodes) -> psutil.Process | None:
    """The raylet of the node that holds a rollout worker and nothing else of the run."""
    return next((raylet for raylet in nodes.raylets()[1:] if nodes.actors(raylet) & {"RolloutWorker", "LearnerRank"}
                 == {"RolloutWorker"}), None)  # fmt: skip


def idle(nodes: Nodes) -> list[psutil.Process]:
    return [raylet for raylet in nodes.raylets()[1:] if not nodes.actors(raylet)]


def whole_run(nodes: Nodes, spec: dict, directory: Path, undisturbed: list[RunDirectory]) -> RunDirectory:
    if not undisturbed:
        finished(nodes.run(spec, directory / "whole"), directory / "whole")
        undisturbed.append(RunDirectory(directory / "whole"))
    return undisturbed[0]


def returned(run_dir: Path) -> bool:
    """Whether every worker that was lost is back."""
    lost, joined = (
        {e["worker"]: e["time_s"] for e in events(run_dir, f"worker_{what}")} for what in ("lost", "joined")
    )
    return all(joined.get(worker, 0.0) > time_s for worker, time_s in lost.items())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
def test_a_run_outlives_the_loss_of_nodes_in_each_of_its_phases(nodes, spec_data, tmp_path, undisturbed, number):
    whole = whole_run(nodes, spec_data, tmp_path, undisturbed)
    run_dir = tmp_path / "struck"
    process = nodes.run(spec_data, run_dir)
    struck = []
    for phase in PHASES:
        seen = len(events(run_dir, phase))
        until(phase, lambda phase=phase, seen=seen: len(events(run_dir, phase)) > seen or process.poll() is not None)
        raylet = until("a node with only a worker", lambda: with_only_a_worker(nodes) or process.poll() is not None)
        assert process.poll() is None, "the run was over before it was struck in each phase"
        lost = len(events(run_dir, "worker_lost"))
        raylet.send_signal(number)
        struck.append(raylet)
        nodes.add()
        until(
            "the loss to be seen",
            lambda lost=lost: len(events(run_dir, "worker_lost")) > lost or process.poll() is not None,
        )
        until("the worker's return", lambda: returned(run_dir) or process.poll() is not None)
        if number == signal.SIGSTOP:  # or it would be left behind
            for left in [*raylet.children(recursive=True), raylet]:
                left.kill()
    summary = finished(process, run_dir)
    print(f"{number.name}: {len(struck)} nodes; {summary['workers']}")
    assert summary["workers"]["lost"] >= len(PHASES)
    assert summary["restarts"] == 0
    assert_same_end(RunDirectory(run_dir), whole)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
def test_a_run_whose_learner_loses_a_node_goes_back_to_its_checkpoint(nodes, spec_data, tmp_path, number):
    """The rank on the other node is in a collective with one that is gone, and fails with it."""
    of_epochs(spec_data, 60)["learner"]["ranks"] = 2
    finished(nodes.run(spec_data, tmp_path / "whole"), tmp_path / "whole")
    run_dir = tmp_path / "struck"
    process = nodes.run(spec_data, run_dir)
    until("a checkpoint in the middle", lambda: len(events(run_dir, "checkpoint")) > 2 or process.poll() is not None)
    of_learner = [raylet for raylet in nodes.raylets()[1:] if "LearnerRank" in nodes.actors(raylet)]
    assert len(of_learner) == 2
    seen = len(events(run_dir, "rolled_out"))
    until("an update", lambda: len(events(run_dir, "rolled_out")) > seen)
    of_learner[1].send_signal(number)
    until("the loss to be seen", lambda: events(run_dir, "restarted") or process.poll() is not None)
    for left in [*of_learner[1].children(recursive=True), of_learner[1]] if number == signal.SIGSTOP else []:
        left.kill()
    nodes.add()
    summary = finished(process, run_dir)
    print(f"{number.name}: {[event['reason'] for event in events(run_dir, 'restarted')]}")
    assert summary["restarts"] == 1
    assert_same_end(RunDirectory(run_dir), RunDirectory(tmp_path / "whole"))


def test_a_node_that_is_told_to_go_is_left_before_it_goes(nodes, spec_data, tmp_path):
    """What a spot instance gets: a notice, and a deadline."""
    spec_data["run"]["deterministic"] = False
    run_dir = tmp_path / "drained"
    process = nodes.run(spec_data, run_dir)
    until("rollouts", lambda: len(events(run_dir, "completed")) > 3)
    raylet = with_only_a_worker(nodes)
    node = next(word.partition("=")[2] for word in raylet.cmdline() if word.startswith("--node_id="))
    assert leave.has_actors(raylet)
    nodes.ray(*leave.drain(raylet.cmdline(), 60)[1:])
    (retired,) = until("the worker to be retired", lambda: events(run_dir, "worker_retired"))
    assert f"its node {node[:8]} is leaving" in retired["why"]
    until("the node to be empty", lambda: not leave.has_actors(raylet), 45)
    time.sleep(1)
    raylet.kill()
    nodes.add()
    until("the worker elsewhere", lambda: events(run_dir, "worker_joined"))
    summary = finished(process, run_dir)
    assert (summary["workers"]["lost"], summary["restarts"], summary["rollouts"]["lost"]) == (0, 0, 0)
    assert not events(run_dir, "reissued")
    assert summary["rollouts"]["spent"] == EPOCHS * 40
