"""A job of a run: the same command begins it and continues it, and crashes are counted."""

import threading
from pathlib import Path

import pytest

from cluster import attempts
from cluster.attempts import attempt, check_version, command, differences, take_in
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
    old, new = (f"a: 1\nlimits:\n  placement_timeout_s: {seconds}\n" for seconds in (60, 900))
    assert differences(old, new) == ""


def test_two_versions_of_tailrace_do_not_work_together():
    check_version("0.1.0", "0.1.0")
    with pytest.raises(BadInput, match=r"0\.1\.0.*0\.2\.0"):
        check_version("0.1.0", "0.2.0")
