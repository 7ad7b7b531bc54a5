"""A run whose processes are killed or stopped goes on by itself and ends as an undisturbed one does.

`make chaos` strikes each kind of process, with SIGKILL and with SIGSTOP, in each phase of a run: a run takes one blow
after the other. The suite does it with a few of them.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections import Counter

import numpy as np
import psutil
import pytest
from moments import watch
from safetensors.numpy import load_file

from cluster.checkpoint import RunDirectory
from cluster.display import Display
from cluster.errors import RunFailed
from cluster.launch import train
from cluster.spec import parse_spec

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1500)]
PHASES = {
    "pretrain": ("learner: teach", 2),
    "evaluate": ("workers: collect", 1),
    "decide": ("allocator: decide", 2),
    "dispatch": ("workers: submit", 1),
    "roll out": ("workers: collect", 2),
    "observe": ("allocator: observe", 1),
    "learn": ("learner: update", 1),
    "publish": ("weights of version", 1),
    "checkpoint": ("learner: save", 1),
}
"""Phase: the moment in which it is struck, and the how many-th since the blow before."""
KINDS = ("RolloutWorker", "LearnerRank", "AllocatorActor")
NAMES = {"Engine": "VLLM::Worker_TP"}
"""What a process is called, where it is not the actor class behind `ray::`."""
LIMITS = {
    "rollout_timeout_s": 60, "learn_timeout_s": 15, "publish_timeout_s": 60, "start_timeout_s": 200,
    "worker_timeout_s": 10, "worker_restarts": 40, "group_attempts": 20, "restarts": 20,
}  # fmt: skip
RECOVERY_S = 30
"""From the loss of a rollout worker to its return, on two cores that do nothing else."""
VOLATILE = ("time", "bubbles", "speculation", "workers", "actors")
"""Of a row of metrics: measured seconds and bytes."""

Blow = tuple[str, signal.Signals, str]


@pytest.fixture
def spec_data(ray_cluster, small) -> dict:
    small["cluster"]["address"] = ray_cluster
    small["limits"] = LIMITS
    return small


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Gives the run of a spec that nothing interrupted, carried out once for each name."""
    runs: dict[str, RunDirectory] = {}

    def run_of(name: str, data: dict) -> RunDirectory:
        if name not in runs:
            runs[name] = RunDirectory(tmp_path_factory.mktemp(name))
            train(parse_spec(data, "test"), runs[name].path, Display(name))
        return runs[name]

    return run_of


def pids(kind: str) -> list[int]:
    """Processes below this one of a kind, which is in their names: the machine may hold other runs."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):
            if process.cmdline()[0].startswith(NAMES.get(kind, f"ray::{kind}")):
                found.append(process.pid)
    return sorted(found)


def strike(monkeypatch, run: RunDirectory, blows: list[Blow]) -> list[tuple[str, str, int]]:
    """Send each signal to a process of its kind when its phase comes, the next one when the run has noticed the one
    before and every worker is back; gives the list that they are noted in, with the process."""
    struck: list[tuple[str, str, int]] = []
    waiting, passed = list(blows), 0

    def recovered() -> bool:
        seen = Counter(event["event"] for event in run.events())
        noticed = seen["worker_lost"] + seen["restarted"] + seen["drafter_lost"]
        return noticed >= len(struck) and seen["worker_joined"] >= seen["worker_lost"]

    def seen(what: str) -> None:
        nonlocal passed
        if not waiting or not recovered():
            return
        kind, number, phase = waiting[0]
        beginning, count = PHASES[phase]
        passed += what.startswith(beginning)
        there = sorted(set(pids(kind)).difference(pid for *_, pid in struck))
        if passed >= count and there and what.startswith(beginning):
            pid = there[len(struck) % len(there)]
            os.kill(pid, number)
            struck.append((kind, phase, pid))
            waiting.pop(0)
            passed = 0

    watch(seen, monkeypatch.setattr)
    return struck


def long_enough(data: dict) -> dict:
    """Epochs and checkpoints for a blow in each phase."""
    data["recipe"] = [{**stage, "epochs": 24} if stage["stage"] == "rl" else stage for stage in data["recipe"]]
    data["allocator"]["budget_rollouts"] = 24 * 40
    return data


def survives(spec_data, tmp_path, monkeypatch, whole: RunDirectory, blows) -> dict:
    """The run is struck and must end as the undisturbed one; gives its summary."""
    spec = parse_spec(spec_data, "test")
    run, began = RunDirectory(tmp_path / "run"), time.monotonic()
    struck = strike(monkeypatch, run, blows)
    summary = train(spec, run.path, Display("struck"))
    print(f"{len(struck)} blows in {time.monotonic() - began:.0f} s: {struck}; {summary['workers']}")
    assert [blow[:2] for blow in struck] == [(kind, phase) for kind, _, phase in blows], "a phase was never reached"
    living = {pid for kind in (*KINDS, *NAMES) for pid in pids(kind)}
    assert not living & {pid for *_, pid in struck}, "a process that was given up must not live on"
    assert_same_end(run, whole)
    return summary


def assert_same_end(run: RunDirectory, whole: RunDirectory) -> None:
    """Same ledger, same groups each learned once, same weights; every weight version in order."""
    ours, theirs = ([{k: v for k, v in row.items() if k not in VOLATILE} for row in r.metrics()] for r in (run, whole))
    assert ours == theirs
    rolled_out = [event["epoch"] for event in run.events() if event["event"] == "rolled_out"]
    assert sorted(rolled_out) == sorted(set(rolled_out)), "an epoch's rollouts were spent twice"
    policies = [load_file(r.models / "policy" / "model.safetensors") for r in (run, whole)]
    assert all(np.array_equal(policies[0][name], policies[1][name]) for name in policies[1])


def test_a_run_outlives_workers_and_an_allocator_and_ends_as_if_nothing_had_been(
    spec_data, tmp_path, monkeypatch, finished
):
    blows = [
        ("RolloutWorker", signal.SIGSTOP, "dispatch"),
        ("RolloutWorker", signal.SIGKILL, "roll out"),
        ("AllocatorActor", signal.SIGKILL, "observe"),
    ]
    summary = survives(spec_data, tmp_path, monkeypatch, finished, blows)
    assert summary["workers"]["lost"] == 2
    assert summary["restarts"] == 1, "only the allocator's loss goes back to a checkpoint"


@pytest.mark.chaos
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_outlives_a_blow_in_each_of_its_phases(spec_data, tmp_path, monkeypatch, undisturbed, kind, number):
    data = long_enough(spec_data)
    blows = [(kind, number, phase) for phase in PHASES]
    summary = survives(data, tmp_path, monkeypatch, undisturbed("undisturbed", data), blows)
    if kind == "RolloutWorker":
        assert (summary["workers"]["lost"], summary["restarts"]) == (len(PHASES), 0)
        assert summary["workers"]["longest_absence_s"] < RECOVERY_S
    else:
        assert (summary["workers"]["lost"], summary["restarts"]) == (0, len(PHASES))


@pytest.mark.chaos
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
def test_a_run_outlives_the_processes_of_an_engine(spec_data, tmp_path, monkeypatch, undisturbed, number):
    """A tensor-parallel engine has processes of its own; whichever is struck, its rollout worker is lost by it."""
    data = long_enough(spec_data)
    data["rollout"] |= {"workers": 1, "tensor_parallel": 2}
    data["learner"]["ranks"] = 1
    data["cluster"]["cpus_per_rollout_worker"] = 2
    blows = [("Engine", number, phase) for phase in PHASES]
    summary = survives(data, tmp_path, monkeypatch, undisturbed("tensor-parallel", data), blows)
    assert (summary["workers"]["lost"], summary["restarts"]) == (len(blows), 0)
    assert summary["workers"]["longest_absence_s"] < RECOVERY_S


@pytest.mark.chaos
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
def test_a_run_outlives_its_drafters_in_each_phase(spec_data, tmp_path, monkeypatch, number):
    """How much is drafted depends on measured times, so such a run is compared by its ledger."""
    data = long_enough(spec_data)
    data["run"]["deterministic"] = False
    # A drafter's death is seen in its next session; the cold start buys one after each of the first eight updates.
    train_spec = {"steps": 3, "micro_step_tokens": 128, "cold_start_s": 160}
    data["drafter"] = {"method": "eagle3", "max_draft_tokens": 3, "train": train_spec}
    phases = ("roll out", "learn", "publish", "checkpoint")
    run = RunDirectory(tmp_path / "run")
    struck = strike(monkeypatch, run, [("DrafterActor", number, phase) for phase in phases])
    summary = train(parse_spec(data, "test"), run.path, Display("struck"))
    print(f"{struck}; {summary['workers']}")
    assert len(struck) == len({pid for *_, pid in struck}) == len(phases)
    assert summary["workers"]["drafters_lost"] == len(phases)
    assert (summary["workers"]["lost"], summary["restarts"], summary["rollouts"]["lost"]) == (0, 0, 0)
    rolled_out = [event["epoch"] for event in run.events() if event["event"] == "rolled_out"]
    assert rolled_out == list(range(summary["epochs"]))
    assert summary["rollouts"]["spent"] == data["allocator"]["budget_rollouts"]


@pytest.mark.chaos
def test_a_driver_that_stands_still_for_longer_than_a_limit_blames_nobody(spec_data, tmp_path, monkeypatch, finished):
    pid, passed = os.getpid(), dict.fromkeys(PHASES, 0)
    stopped: list[str] = []

    def seen(what: str) -> None:
        for phase, (beginning, _) in PHASES.items():
            passed[phase] += what.startswith(beginning)
            if passed[phase] == 3 and phase not in stopped:
                stopped.append(phase)
                subprocess.Popen(["sh", "-c", f"sleep {1.5 * LIMITS['worker_timeout_s']}; kill -CONT {pid}"])
                os.kill(pid, signal.SIGSTOP)
                return

    watch(seen, monkeypatch.setattr)
    run = RunDirectory(tmp_path / "run")
    summary = train(parse_spec(spec_data, "test"), run.path, Display("stopped"))
    print(f"the driver stood still in {stopped}")
    assert len(stopped) >= 8
    assert (summary["workers"]["lost"], summary["restarts"]) == (0, 0)
    assert_same_end(run, finished)


@pytest.mark.chaos
def test_a_full_object_store_costs_time_and_nothing_else(spec_data, tmp_path):
    """What others hold fills the store twice over, so that Ray spills while weights and rollouts pass through it."""
    import ray

    held = [ray.put(np.full(2**26, i, np.uint8)) for i in range(32)]
    run = RunDirectory(tmp_path / "run")
    summary = train(parse_spec(spec_data, "test"), run.path, Display("crowded"))
    assert (summary["workers"]["lost"], summary["restarts"], summary["rollouts"]["lost"]) == (0, 0, 0)
    assert [int(ray.get(ref)[0]) for ref in held] == list(range(32))


@pytest.mark.chaos
def test_a_run_that_keeps_losing_processes_fails_with_the_reason_and_can_be_resumed(spec_data, tmp_path, monkeypatch):
    spec_data["limits"] = {**LIMITS, "restarts": 0}
    run = RunDirectory(tmp_path / "run")
    struck = strike(monkeypatch, run, [("LearnerRank", signal.SIGKILL, "pretrain")])
    with pytest.raises(RunFailed, match="learner: teach"):
        train(parse_spec(spec_data, "test"), run.path, Display("struck"))
    assert struck
    assert not [e for e in run.events() if e["event"] == "restarted"]


@pytest.mark.chaos
def test_a_run_without_a_worker_restart_left_fails_with_the_reason(spec_data, tmp_path, monkeypatch):
    spec_data["limits"] = {**LIMITS, "worker_restarts": 0}
    strike(monkeypatch, RunDirectory(tmp_path / "run"), [("RolloutWorker", signal.SIGKILL, "roll out")])
    with pytest.raises(RunFailed, match=r"rollout-\d is lost: ActorDiedError.*limits.worker_restarts = 0 are spent"):
        train(parse_spec(spec_data, "test"), tmp_path / "run", Display("struck"))
