"""What a run leaves on disk can be read back, however it was cut short."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.checkpoint import RunDirectory, load_state, save_state, write_atomically
from cluster.errors import RunFailed
from cluster.lines import LineFile, read_lines
from trainer.types import Group


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.create()
    return run


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 1 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def save(run: RunDirectory, number: int, keep: int = 2, text: str = "weights") -> None:
    def write(directory: Path) -> None:
        (directory / "learner").mkdir()
        (directory / "learner" / "rank0").write_text(f"{text} {number}")
        save_state(directory / "allocator.safetensors", {"epoch": number})

    run.save_checkpoint(number, keep, {"epoch": number}, write)


def listed(run: RunDirectory) -> list[str]:
    return sorted(os.listdir(run.checkpoints))


def epoch_of_newest(run: RunDirectory) -> int:
    found = run.newest_checkpoint()
    assert found is not None
    path, manifest = found
    assert (path / "learner" / "rank0").read_text() == f"weights {manifest['epoch']}"
    return manifest["epoch"]


def group_of(lengths: list[int], epoch: int, number: int) -> Group:
    rng = np.random.default_rng(number)
    n, tokens = len(lengths), sum(lengths)
    return Group(
        f"{epoch}/{number}", epoch, number * 7, 3, rng.integers(0, 2**31, tokens, np.int32),
        rng.normal(size=tokens).astype(np.float32), np.array(lengths, np.int32), rng.random(n), rng.random(n) < 0.5,
        rng.random(),
    )  # fmt: skip


def assert_same(ours: Group, theirs: Group) -> None:
    for name in Group.__slots__:
        a, b = getattr(ours, name), getattr(theirs, name)
        assert np.array_equal(a, b), name
        assert getattr(a, "dtype", None) == getattr(b, "dtype", None), name


# Rollouts.


@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=6), max_size=6))
def test_groups_come_back_as_they_were_saved(tmp_path_factory, sizes):
    run = RunDirectory(tmp_path_factory.getbasetemp() / "groups")
    run.create()
    groups = [group_of(lengths, 4, i) for i, lengths in enumerate(sizes)]
    extra = {"prompts": [g.prompt for g in groups], "rollout_s": 0.1}
    run.save_groups(4, groups, extra)
    found = run.load_groups(4)
    assert found is not None
    assert found[1] == extra
    assert len(found[0]) == len(groups)
    for ours, theirs in zip(groups, found[0], strict=True):
        assert_same(ours, theirs)


def test_an_epoch_without_groups_is_not_an_epoch_that_was_never_sampled(run):
    assert run.load_groups(0) is None
    run.save_groups(0, [], {"prompts": []})
    assert run.load_groups(0) == ([], {"prompts": []})


def test_saving_an_epoch_again_replaces_it_and_leaves_nothing_beside_it(run):
    run.save_groups(1, [group_of([2, 3], 1, 0)], {})
    run.save_groups(1, [group_of([1], 1, 5)], {})
    found = run.load_groups(1)
    assert found is not None
    assert [g.id for g in found[0]] == ["1/5"]
    assert os.listdir(run.rollouts) == ["000001.safetensors"]


def test_only_rollouts_before_the_given_epoch_are_dropped(run):
    for epoch in (0, 3, 11, 1_000_000):
        run.save_groups(epoch, [], {})
    run.drop_rollouts_before(11)
    assert [run.load_groups(epoch) is not None for epoch in (0, 3, 11, 1_000_000)] == [False, False, True, True]


# Lines.


@given(
    st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=10), max_size=3), min_size=1, max_size=5), st.data()
)
def test_a_torn_last_line_is_dropped_and_mended_wherever_it_was_cut(tmp_path_factory, records, data):
    run = RunDirectory(tmp_path_factory.getbasetemp() / "lines")
    run.create()
    path = run.path / "metrics.jsonl"
    path.unlink(missing_ok=True)
    records = [{**record, "epoch": epoch} for epoch, record in enumerate(records)]
    lines = LineFile(path)
    for record in records:
        lines.append(record)
    whole = path.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    path.write_bytes(whole[: len(whole) - data.draw(st.integers(1, last))])
    assert list(read_lines(path)) == records[:-1]
    run.mend_lines()
    run.add_metrics({"epoch": 9})
    assert run.metrics() == [*records[:-1], {"epoch": 9}]


def test_a_whole_file_of_lines_is_not_touched_by_mending(run):
    run.journal("run_started", name="x")
    before = os.stat(run.path / "journal.jsonl")
    run.mend_lines()
    assert os.stat(run.path / "journal.jsonl").st_ino == before.st_ino
    assert [event["name"] for event in run.events()] == ["x"]


def test_events_after_a_mending_follow_those_before_it(run):
    run.journal("run_started")
    with (run.path / "journal.jsonl").open("a") as file:
        file.write('{"event": "to')
    run.mend_lines()
    run.journal("restarted")
    assert [event["event"] for event in run.events()] == ["run_started", "restarted"]


def test_a_killed_process_loses_no_event_and_its_files_are_closed_with_the_claim(run):
    code = f"""
import os, pathlib, signal
from cluster.checkpoint import RunDirectory
run = RunDirectory(pathlib.Path({str(run.path)!r}))
opened = os.listdir("/proc/self/fd")
with run.claimed():
    run.journal("first")
assert os.listdir("/proc/self/fd") == opened
for _ in range(3):
    run.journal("next")
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == -signal.SIGKILL
    assert [event["event"] for event in run.events()] == ["first", "next", "next", "next"]


def test_a_full_disk_fails_by_the_journals_name_and_what_was_written_stays(small_disk):
    run = RunDirectory(small_disk)
    run.journal("run_started")
    with pytest.raises(RunFailed, match=r"journal.jsonl: cannot be written: .*No space left on device"):
        run.journal("decided", prompts="x" * 2**21)
    assert [event["event"] for event in run.events()] == ["run_started"]


def test_a_missing_file_has_no_lines(run):
    assert run.events() == run.metrics() == []


def test_rows_that_will_be_written_again_are_dropped(run):
    for epoch in range(5):
        run.add_metrics({"epoch": epoch})
    run.keep_metrics(lambda row: row["epoch"] < 3)
    assert [row["epoch"] for row in run.metrics()] == [0, 1, 2]


def test_a_write_that_fails_leaves_the_old_text(small_disk):
    path = small_disk / "summary.json"
    write_atomically(path, "old")
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new" * 2**20)
    assert path.read_text() == "old"


# Checkpoints.


def test_without_a_checkpoint_there_is_none(run):
    assert run.newest_checkpoint() is None
    assert run.oldest_manifest() is None


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_newest_checkpoints_are_kept(run, keep):
    for number in (0, 1, 2, 9, 10):
        save(run, number, keep)
    assert [int(name) for name in listed(run)] == [0, 1, 2, 9, 10][-keep:]
    assert epoch_of_newest(run) == 10
    assert run.oldest_manifest()["epoch"] == [0, 1, 2, 9, 10][-keep]


def test_a_checkpoint_written_again_replaces_the_old_one(run):
    save(run, 3, text="other")
    save(run, 3)
    assert epoch_of_newest(run) == 3
    assert listed(run) == ["00000003"]


FAILURES = [OSError(errno.ENOSPC, "No space left on device"), RunFailed("learner: save: No space left on device")]


@pytest.mark.parametrize("failure", FAILURES, ids=["here", "in an actor"])
def test_a_checkpoint_that_cannot_be_written_fails_by_name_and_leaves_the_older_ones(run, failure):
    save(run, 0)
    save(run, 1)

    def write(directory: Path) -> None:
        (directory / "half").write_text("half")
        raise failure

    with pytest.raises(RunFailed, match=r"00000002: the checkpoint cannot be written: .*No space left on device"):
        run.save_checkpoint(2, 1, {"epoch": 2}, write)
    assert listed(run) == ["00000000", "00000001"]
    assert epoch_of_newest(run) == 1


def test_what_a_kill_left_half_written_does_not_exist_for_us(run):
    save(run, 0)
    half = run.checkpoints / ".00000001.tmp"
    half.mkdir()
    (half / "learner").write_text("half")
    (run.checkpoints / "00000005").mkdir()  # no manifest
    assert epoch_of_newest(run) == 0
    save(run, 1)
    assert epoch_of_newest(run) == 1
    assert not half.exists()


@pytest.mark.parametrize("writer", ["bytes", "tensors"])
def test_a_full_disk_leaves_the_older_checkpoints_and_no_half_written_one(small_disk, writer):
    run = RunDirectory(small_disk)
    run.create()
    save(run, 0)

    def write(directory: Path) -> None:
        if writer == "bytes":
            (directory / "learner").write_bytes(bytes(2 * 2**20))
        else:
            save_state(directory / "allocator.safetensors", {"large": np.zeros(2**18)})

    for _ in range(2):  # the space is free again
        with pytest.raises(RunFailed, match=r"00000001: the checkpoint cannot be written: .*No space left on device"):
            run.save_checkpoint(1, 2, {"epoch": 1}, write)
        assert listed(run) == ["00000000"]
        assert epoch_of_newest(run) == 0
    save(run, 1)
    assert epoch_of_newest(run) == 1


@pytest.mark.parametrize("damage", ["flipped", "cut", "deleted", "manifest"])
def test_a_damaged_newest_checkpoint_is_passed_over(run, damage):
    for number in range(3):
        save(run, number, keep=3)
    newest = run.checkpoints / "00000002"
    file = newest / "learner" / "rank0"
    if damage == "flipped":
        content = file.read_bytes()
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "deleted":
        file.unlink()
    else:
        manifest = newest / "manifest.json"
        manifest.write_bytes(manifest.read_bytes()[:20])
    assert epoch_of_newest(run) == 1
    save(run, 2, keep=3)
    assert epoch_of_newest(run) == 2


def test_the_manifest_lists_every_file(run):
    save(run, 0)
    manifest = json.loads((run.checkpoints / "00000000" / "manifest.json").read_text())
    assert sorted(manifest["files"]) == ["allocator.safetensors", "learner/rank0"]
    assert manifest["epoch"] == 0


# States.

ARRAYS = {
    "doubles": np.array([0.1, -0.0, np.inf, np.nan, 5e-324]),
    "strided": np.arange(12, dtype=np.int64).reshape(3, 4)[:, ::2],
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "empty": np.zeros((0, 3), np.float32),
    "zero_dimensions": np.array(7, np.int32),
    "flags": np.array([True, False]),
    "words": np.array([2**64 - 1], np.uint64),
}
SCALARS = {"epoch": 3, "price": 0.1, "name": "x", "none": None, "on": True, "random": {"state": 2**127 + 1, "inc": 5}}


def test_a_state_comes_back_exactly(tmp_path):
    save_state(tmp_path / "state", ARRAYS | SCALARS)
    found = load_state(tmp_path / "state")
    assert found.keys() == ARRAYS.keys() | SCALARS.keys()
    assert {key: found[key] for key in SCALARS} == SCALARS
    for key, array in ARRAYS.items():
        assert found[key].dtype == array.dtype, key
        assert found[key].shape == array.shape, key
        assert found[key].tobytes() == array.tobytes(), key


def test_a_state_without_arrays_or_without_scalars_comes_back(tmp_path):
    for state in ({}, {"epoch": 1}, {"weights": np.ones(2)}):
        save_state(tmp_path / "state", state)
        found = load_state(tmp_path / "state")
        assert found.keys() == state.keys()
