"""A run whose processes are killed or stopped goes on by itself and ends as an undisturbed one does.

`make chaos` runs every case: each kind of process, killed (SIGKILL) and hung (SIGSTOP), in each phase. The suite runs
one of them.
"""

import contextlib
import itertools
import os
import signal

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

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]
PHASES = {
    "pretrain": ("learner: teach", 3),
    "evaluate": ("workers: collect", 1),
    "decide": ("allocator: decide", 3),
    "dispatch": ("workers: submit", 4),
    "roll out": ("workers: collect", 4),
    "observe": ("allocator: observe", 4),
    "learn": ("learner: update", 3),
    "publish": ("weights of version", 4),
    "checkpoint": ("learner: save", 3),
}
"""Phase: the wait in which it is struck, by the beginning of what is waited for, and the how many-th."""
KINDS = ("RolloutWorker", "LearnerRank", "AllocatorActor")
SIGNALS = (signal.SIGKILL, signal.SIGSTOP)
SAMPLE = [
    ("RolloutWorker", signal.SIGKILL, "roll out"),
]
CASES = [
    pytest.param(*case, marks=[] if case in SAMPLE else pytest.mark.chaos, id=f"{case[0]}-{case[1].name}-{case[2]}")
    for case in itertools.product(KINDS, SIGNALS, PHASES)
]


@pytest.fixture
def spec_data(ray_cluster, small) -> dict:
    small["cluster"]["address"] = ray_cluster
    small["limits"] = {
        "rollout_timeout_s": 15, "learn_timeout_s": 15, "publish_timeout_s": 15, "start_timeout_s": 200, "restarts": 1,
    }  # fmt: skip
    return small


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, RunDirectory]:
    return {}


def pids(kind: str) -> list[int]:
    """Processes below this one that Ray has given the name of an actor class: the machine may hold other runs."""
    below = psutil.Process().children(recursive=True)
    found = []
    for process in below:
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):
            if process.cmdline()[0].startswith(f"ray::{kind}"):
                found.append(process.pid)
    return sorted(found)


def strike(monkeypatch, kind: str, number: signal.Signals, phase: str) -> list[int]:
    """Send a signal to one process of the kind when the phase comes; gives the list that it is noted in."""
    what_to_strike, count = PHASES[phase]
    struck: list[int] = []
    moments = itertools.count(1)

    def seen(what: str) -> None:
        if what.startswith(what_to_strike) and next(moments) == count:
            struck.append(pids(kind)[0])
            os.kill(struck[0], number)

    watch(seen, monkeypatch.setattr)
    return struck


@pytest.mark.parametrize(("kind", "number", "phase"), CASES)
def test_a_run_outlives_its_processes_and_ends_as_if_nothing_had_been(
    spec_data, tmp_path, tmp_path_factory, monkeypatch, undisturbed, kind, number, phase
):
    spec = parse_spec(spec_data, "test")
    if not undisturbed:
        whole = RunDirectory(tmp_path_factory.mktemp("undisturbed"))
        train(spec, whole.path, Display("undisturbed"))
        undisturbed["run"] = whole
    struck = strike(monkeypatch, kind, number, phase)
    run = RunDirectory(tmp_path / "run")
    summary = train(spec, run.path, Display("struck"))
    assert struck, "the phase was never reached"
    assert struck[0] not in pids(kind), "a process that was given up must not live on"
    assert summary["restarts"] == 1
    assert_same_end(run, undisturbed["run"])


def assert_same_end(run: RunDirectory, whole: RunDirectory) -> None:
    """Same ledger, same groups each learned once, same weights."""
    ours, theirs = ([{k: v for k, v in row.items() if k not in VOLATILE} for row in r.metrics()] for r in (run, whole))
    assert ours == theirs
    rolled_out = [event["epoch"] for event in run.events() if event["event"] == "rolled_out"]
    assert sorted(rolled_out) == sorted(set(rolled_out)), "an epoch's rollouts were spent twice"
    policies = [load_file(r.models / "policy" / "model.safetensors") for r in (run, whole)]
    assert all(np.array_equal(policies[0][name], policies[1][name]) for name in policies[1])


VOLATILE = ("time", "bubbles", "speculation")
"""Of a row of metrics: measured seconds."""


@pytest.mark.chaos
def test_a_run_that_keeps_losing_processes_fails_with_the_reason_and_can_be_resumed(spec_data, tmp_path, monkeypatch):
    spec_data["limits"]["restarts"] = 0
    struck = strike(monkeypatch, "LearnerRank", signal.SIGKILL, "pretrain")
    with pytest.raises(RunFailed, match="learner: teach"):
        train(parse_spec(spec_data, "test"), tmp_path / "run", Display("struck"))
    assert struck
    assert not [e for e in RunDirectory(tmp_path / "run").events() if e["event"] == "restarted"]
