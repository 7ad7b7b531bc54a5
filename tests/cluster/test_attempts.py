"""A job of a run: the same command begins it and continues it, and crashes are counted."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cluster import attempts, life
from cluster.attempts import attempt, bring, check_version, command, differences, take_in, watch
from cluster.checkpoint import RunDirectory
from cluster.errors import RunFailed
from cluster.storage import Mirror
from trainer.types import BadInput


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "package"
    (path / "data").mkdir(parents=True)
    (path / "spec.yaml").write_text("run: {name: a}\nseed: 1\n")
    return path


def ends_with(monkeypatch: pytest.MonkeyPatch, codes: list[int]) -> list[list[str]]:
    """The run's process is not started: it ends with these codes, one after another; gives the commands."""
    seen: list[list[str]] = []
    monkeypatch.setattr(attempts.subprocess, "Popen", lambda words: seen.append(words[3:]))
    monkeypatch.setattr(attempts, "watch", lambda *_: codes[len(seen) - 1])
    monkeypatch.setattr(attempts, "LONGEST_PAUSE_S", 0.0)
    return seen


def test_a_run_begins_once_and_then_goes_on(tmp_path):
    assert command(tmp_path) == ["train", f"{tmp_path}/inputs/spec.yaml", "--run-dir", str(tmp_path)]
    (tmp_path / "spec.yaml").touch()
    assert command(tmp_path) == ["resume", str(tmp_path)]


@pytest.mark.parametrize(
    ("codes", "code", "started"),
    [([0], 0, 1), ([2], 2, 1), ([130], 130, 1), ([1, -9, 0], 0, 3), ([1, 1, 1, 1], 1, 3), ([-9, 2], 2, 2)],
)
def test_crashes_are_tried_again_and_nothing_else_is(codes, code, started, tmp_path, monkeypatch):
    seen = ends_with(monkeypatch, codes)
    assert attempt(tmp_path, 2, None, threading.Event()) == code
    assert len(seen) == started


def test_a_stop_ends_the_attempts(tmp_path, monkeypatch):
    seen, stop = ends_with(monkeypatch, [1, 0]), threading.Event()
    stop.set()
    assert attempt(tmp_path, 5, None, stop) == 130
    assert len(seen) == 1


def test_a_finished_run_is_not_started_again(tmp_path, monkeypatch):
    seen = ends_with(monkeypatch, [1])
    (tmp_path / "summary.json").touch()
    assert attempt(tmp_path, 5, None, threading.Event()) == 0
    assert seen == []


def test_inputs_belong_to_the_run_once_it_has_begun(job, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    take_in(job, run_dir)
    (job / "spec.yaml").write_text("run: {name: a}\nseed: 2\n")
    take_in(job, run_dir)  # a start that failed may be tried again with another spec
    (run_dir / "spec.yaml").touch()
    take_in(job, run_dir)
    (job / "spec.yaml").write_text("run: {name: a}\nseed: 3\n")
    with pytest.raises(BadInput, match=r"-seed: 2; \+seed: 3"):
        take_in(job, run_dir)


def test_a_run_that_was_not_submitted_is_left_alone(job, tmp_path):
    (tmp_path / "spec.yaml").touch()
    with pytest.raises(BadInput, match="was not submitted"):
        take_in(job, tmp_path)


def test_a_longer_wait_for_room_is_not_another_spec():
    old, new = (f"a: 1\nlimits:\n  queue_timeout_s: {seconds}\n" for seconds in (60, 900))
    assert differences(old, new) == ""


def test_two_versions_of_tailrace_do_not_work_together():
    check_version("0.1.0", "0.1.0")
    with pytest.raises(BadInput, match=r"0\.1\.0.*0\.2\.0"):
        check_version("0.1.0", "0.2.0")


class Unsteady(Mirror):
    """A store that refuses the first so many copies."""

    def __init__(self, uri: str, run_dir: Path, refusals: int) -> None:
        super().__init__(uri, run_dir)
        self.refusals, self.tried = refusals, 0

    def push(self) -> None:
        self.tried += 1
        if self.tried <= self.refusals:
            raise RunFailed(f"--storage {self.uri}: EndpointConnectionError")
        super().push()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    run = RunDirectory(tmp_path / "run")
    run.create()
    (run.path / "spec.yaml").write_text("run: {name: a}\n")
    run.journal("run_started")
    return run.path


def test_a_store_that_refuses_takes_no_attempt_away(run_dir, tmp_path, monkeypatch, capsys):
    seen, store = ends_with(monkeypatch, [-9, 1, 0]), Unsteady(f"file://{tmp_path}/store", run_dir, 2)
    assert attempt(run_dir, 2, store, threading.Event()) == 0
    assert len(seen) == 3
    assert "the next attempt tries again: --storage" in capsys.readouterr().out
    assert (tmp_path / "store" / "spec.yaml").is_file()


@pytest.mark.parametrize(("refusals", "kept"), [(2, True), (99, False)])
def test_a_finished_run_is_finished_whatever_its_store_says(refusals, kept, run_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(attempts, "STORE_PAUSES_S", (0.0, 0.0))
    (run_dir / "summary.json").write_text("{}")
    store = Unsteady(f"file://{tmp_path}/store", run_dir, refusals)
    assert attempt(run_dir, 3, store, threading.Event()) == 0
    assert (tmp_path / "store" / "summary.json").is_file() == kept
    assert (f"it is in {run_dir} only" in capsys.readouterr().out) == (not kept)


def test_a_job_that_is_to_stop_does_not_wait_for_its_store(run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(attempts, "STORE_PAUSES_S", (1e6,))
    stop = threading.Event()
    stop.set()
    (run_dir / "summary.json").write_text("{}")
    store = Unsteady(f"file://{tmp_path}/store", run_dir, 99)
    assert attempt(run_dir, 0, store, stop) == 130
    assert store.tried == 2


def test_another_jobs_run_is_not_brought_here(job, run_dir, tmp_path):
    (run_dir / "inputs").mkdir()
    (run_dir / "inputs" / "spec.yaml").write_text("run: {name: a}\nseed: 2\n")
    Mirror(f"file://{tmp_path}/store", run_dir).push()
    there = tmp_path / "there"
    store = Mirror(f"file://{tmp_path}/store", there)
    with pytest.raises(BadInput, match=r"--storage .*holds a run with another spec or other data: -seed: 2; \+seed: 1"):
        bring(store, job, there, threading.Event())
    assert not there.exists()
    (job / "spec.yaml").write_text("run: {name: a}\nseed: 2\n")
    bring(store, job, there, threading.Event())
    assert (there / "spec.yaml").is_file()


def test_a_run_stops_when_its_store_is_another_runs(run_dir, tmp_path):
    other = RunDirectory(tmp_path / "other")
    other.create()
    (other.path / "spec.yaml").write_text("run: {name: b}\n")
    Mirror(f"file://{tmp_path}/store", other.path).push()
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with pytest.raises(BadInput, match="another spec"):
        watch(process, run_dir, Mirror(f"file://{tmp_path}/store", run_dir))
    assert process.returncode == -signal.SIGTERM


def test_a_process_that_is_stopped_is_killed(run_dir, monkeypatch, capsys):
    monkeypatch.setattr(attempts, "POLL_S", 0.05)
    monkeypatch.setattr(life, "FROZEN_S", 0.5)
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    os.kill(process.pid, signal.SIGSTOP)
    assert watch(process, run_dir, None) == -signal.SIGKILL
    assert "took no processor time" in capsys.readouterr().out
