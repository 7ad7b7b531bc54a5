"""The copy of a run in a store: whole at every moment, and enough to go on from."""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import fsspec
import pytest

from cluster.checkpoint import RunDirectory
from cluster.errors import RunFailed
from cluster.storage import Mirror, take_snapshot
from trainer.types import BadInput


@pytest.fixture(params=["file", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/store/a" if request.param == "file" else f"memory://{tmp_path.name}/a"


def a_run(path: Path) -> RunDirectory:
    run = RunDirectory(path)
    run.create()
    (path / "spec.yaml").write_text("run: {name: a}\n")
    (path / ".lock").touch()
    (path / "inputs").mkdir()
    (path / "inputs" / "spec.yaml").write_text("x")
    run.journal("run_started")
    return run


def checkpoint(run: RunDirectory, number: int) -> None:
    (run.rollouts / f"{number:06d}.safetensors").write_text(f"rollouts {number}")
    run.journal("rolled_out", epoch=number)
    run.save_checkpoint(number, 2, {"epoch": number}, lambda path: (path / "w").write_text("w" * number))


def content(path: Path) -> dict[str, bytes]:
    files = (p for p in path.rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


def test_what_was_pushed_comes_back_with_its_newest_checkpoint(uri, tmp_path):
    run = a_run(tmp_path / "a")
    mirror = Mirror(uri, run.path)
    for number in (1, 2, 3):
        checkpoint(run, number)
        mirror.push()
    shutil.rmtree(run.checkpoints / "00000002")  # the store keeps the newest only
    before = content(run.path)
    shutil.rmtree(run.path)
    assert Mirror(uri, run.path).pull()
    assert content(run.path) == before
    assert run.newest_checkpoint()[1]["epoch"] == 3


def test_a_push_that_breaks_off_leaves_the_checkpoint_before(uri, tmp_path, monkeypatch):
    run = a_run(tmp_path / "a")
    mirror = Mirror(uri, run.path)
    checkpoint(run, 1)
    mirror.push()
    checkpoint(run, 2)
    total = len(content(run.path))
    for allowed in range(total):
        left = [allowed]

        def upload(name, path, real=mirror._upload, left=left):
            if left[0] == 0:
                raise OSError("the line is cut")
            left[0] -= 1
            real(name, path)

        with monkeypatch.context() as patch, suppress(RunFailed):
            patch.setattr(mirror, "_upload", upload)
            mirror.push()
        there = tmp_path / f"there{allowed}"
        assert Mirror(uri, there).pull()
        found = RunDirectory(there).newest_checkpoint()
        assert found is not None
        rolled_out = {event["epoch"] for event in RunDirectory(there).events() if event["event"] == "rolled_out"}
        assert rolled_out >= set(range(1, found[1]["epoch"] + 1))
    assert found[1]["epoch"] == 2


def test_the_further_copy_wins(uri, tmp_path):
    run = a_run(tmp_path / "a")
    checkpoint(run, 1)
    Mirror(uri, run.path).push()
    assert not Mirror(uri, run.path).pull(), "both are as far"
    checkpoint(run, 2)
    assert not Mirror(uri, run.path).pull(), "this machine is further"
    Mirror(uri, run.path).push()
    shutil.rmtree(run.checkpoints / "00000002")
    assert Mirror(uri, run.path).pull()
    assert run.newest_checkpoint()[1]["epoch"] == 2


def test_another_runs_store_is_refused(uri, tmp_path):
    run, other = a_run(tmp_path / "a"), a_run(tmp_path / "b")
    Mirror(uri, run.path).push()
    (other.path / "spec.yaml").write_text("run: {name: b}\n")
    with pytest.raises(BadInput, match="another spec"):
        Mirror(uri, other.path).pull()


def store_of(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    return fsspec.core.url_to_fs(uri)


def test_a_store_that_holds_anything_else_is_left_as_it_is(uri, tmp_path):
    run = a_run(tmp_path / "a")
    store, root = store_of(uri)
    kept = {f"{root}/thesis/chapter1.tex": b"years of work", f"{root}/b/spec.yaml": b"another run"}
    for path, data in kept.items():
        store.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        store.pipe_file(path, data)
    for use in (Mirror(uri, run.path).pull, Mirror(uri, run.path).push):
        with pytest.raises(BadInput, match=r"--storage .*: holds files of no run"):
            use()
    assert {path: store.cat_file(path) for path in store.find(root)} == kept


def test_of_two_runs_at_one_empty_store_the_second_is_refused(uri, tmp_path):
    run, other = a_run(tmp_path / "a"), a_run(tmp_path / "b")
    (other.path / "spec.yaml").write_text("run: {name: b}\n")
    first, second = Mirror(uri, run.path), Mirror(uri, other.path)
    assert not first.pull()
    assert not second.pull()
    checkpoint(run, 1)
    first.push()
    checkpoint(other, 7)
    with pytest.raises(BadInput, match="another spec"):
        second.push()
    assert first.newest() == "00000001"


def test_of_two_runs_that_begin_at_the_same_moment_one_has_the_store(uri, tmp_path, monkeypatch):
    run, other = a_run(tmp_path / "a"), a_run(tmp_path / "b")
    (other.path / "spec.yaml").write_text("run: {name: b}\n")
    checkpoint(run, 1)
    checkpoint(other, 7)
    first, second = Mirror(uri, run.path), Mirror(uri, other.path)
    real, begun = first._upload, []

    def upload(name, path):
        if not begun:  # the other has seen an empty store too
            begun.append(name)
            second.push()
            second.push = lambda: None
        real(name, path)

    monkeypatch.setattr(first, "_upload", upload)
    first.push()
    with pytest.raises(BadInput, match="another spec"):
        Mirror(uri, other.path).push()
    assert first.newest() == "00000001"
    assert Mirror(uri, tmp_path / "there").pull()
    assert content(tmp_path / "there") == content(run.path)


def test_only_what_a_run_itself_deletes_is_deleted_in_the_store(uri, tmp_path):
    run = a_run(tmp_path / "a")
    mirror = Mirror(uri, run.path)
    checkpoint(run, 1)
    mirror.push()
    store, root = store_of(uri)
    store.pipe_file(f"{root}/notes.txt", b"mine")
    store.makedirs(f"{root}/rollouts", exist_ok=True)
    store.pipe_file(f"{root}/rollouts/read-me.txt", b"mine")
    (run.rollouts / "000001.safetensors").unlink()
    checkpoint(run, 2)
    mirror.push()
    names = {path.removeprefix(root).lstrip("/") for path in store.find(root)}
    assert {"notes.txt", "rollouts/read-me.txt", "checkpoints/00000002/manifest.json"} <= names
    assert "rollouts/000001.safetensors" not in names
    assert not any(name.startswith("checkpoints/00000001") for name in names)


def test_a_first_copy_that_broke_off_is_this_runs_and_holds_no_run(uri, tmp_path, monkeypatch):
    run = a_run(tmp_path / "a")
    mirror = Mirror(uri, run.path)
    real = mirror._upload

    def upload(name, path):
        if name != "spec.yaml":
            raise OSError("the line is cut")
        real(name, path)

    with monkeypatch.context() as patch:
        patch.setattr(mirror, "_upload", upload)
        with pytest.raises(RunFailed, match="the line is cut"):
            mirror.push()
    assert not Mirror(uri, tmp_path / "there").pull()
    mirror.push()
    assert Mirror(uri, tmp_path / "there").pull()


@pytest.mark.parametrize("names", [["my-notes.txt"], ["models/mine.bin"], [".lock", "inputs/spec.yaml", "paper/a.tex"]])
def test_a_directory_that_is_no_run_is_not_replaced(names, uri, tmp_path):
    run = a_run(tmp_path / "a")
    Mirror(uri, run.path).push()
    there = tmp_path / "there"
    for name in names:
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_text("mine")
    with pytest.raises(BadInput, match=f"{there}: holds {names[-1].split('/')[0]} and is no run directory"):
        Mirror(uri, there).pull()
    assert all((there / name).read_text() == "mine" for name in names)


def test_a_directory_of_a_start_that_failed_is_replaced(uri, tmp_path):
    run = a_run(tmp_path / "a")
    Mirror(uri, run.path).push()
    there = a_run(tmp_path / "there").path
    for name in ("spec.yaml", "journal.jsonl"):
        (there / name).unlink()
    assert Mirror(uri, there).pull()
    assert (there / "spec.yaml").is_file()


def test_logs_go_to_the_store_without_secrets(uri, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    run = a_run(tmp_path / "a")
    said = b"loads\nkey 0123456789abcdef, Authorization: Bearer abcdefghijkl\n\xff ends"
    (run.logs / "rollout-0.log").write_bytes(said)
    Mirror(uri, run.path).push()
    assert (run.logs / "rollout-0.log").read_bytes() == said
    store, root = store_of(uri)
    kept = store.cat_file(f"{root}/logs/rollout-0.log").decode()
    assert kept.startswith("loads\nkey (hidden), ")
    assert "abcdefghijkl" not in kept
    assert kept.endswith(" ends")


def test_an_empty_store_gives_nothing(uri, tmp_path):
    assert not Mirror(uri, tmp_path / "a").pull()
    assert not (tmp_path / "a").exists()


def test_a_snapshot_is_whole_although_the_run_goes_on(tmp_path, monkeypatch):
    run = a_run(tmp_path / "a")
    checkpoint(run, 1)
    numbers = iter([2, 3, 4])
    real = os.link

    def link(source, target):
        if (number := next(numbers, None)) is not None:
            checkpoint(run, number)  # drops the one that is being held
        real(source, target)

    monkeypatch.setattr("cluster.storage.os.link", link)
    take_snapshot(run, run.path / ".snapshot")
    [held] = (run.path / ".snapshot" / "checkpoints").iterdir()
    names = json.loads((held / "manifest.json").read_text())["files"]
    assert {path.name for path in held.iterdir()} == {*names, "manifest.json"}


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ("s3://key:secret@bucket/x", "credentials"),
        ("abfs://x/y?sig=secret", "credentials"),
        ("runs/x", "absolute"),
        ("nope://x/y", "nope"),
    ],
)
def test_addresses_that_cannot_be_used_are_refused_and_secrets_not_repeated(bad, named, tmp_path):
    with pytest.raises(BadInput, match=named) as refusal:
        Mirror(bad, tmp_path)
    assert "secret" not in str(refusal.value)


def test_a_store_that_refuses_is_named(tmp_path, monkeypatch):
    run = a_run(tmp_path / "a")
    mirror = Mirror("memory://refusing", run.path)

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError("read only")

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "_open", refuse)
    with pytest.raises(RunFailed, match="memory://refusing: PermissionError: read only"):
        mirror.push()
    assert not (run.path / ".snapshot").exists()


def test_a_store_cannot_write_outside_the_run(tmp_path):
    run = a_run(tmp_path / "a")
    checkpoint(run, 1)
    uri = f"memory://{tmp_path.name}/out"
    Mirror(uri, run.path).push()
    fsspec.filesystem("memory").pipe(f"/{tmp_path.name}/out/x/../../../evil", b"evil")
    with pytest.raises(BadInput, match=r"holds x/../../../evil, which leads out of the run directory"):
        Mirror(uri, tmp_path / "there").pull()
    assert not (tmp_path / "there").exists()
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("damage", ["file", "manifest"])
def test_a_damaged_checkpoint_is_not_waited_for(tmp_path, damage):
    """It lacks a file for good, not for the moment in which two newer ones are written."""
    run = a_run(tmp_path / "a")
    checkpoint(run, 1)
    path = run.checkpoints / "00000001"
    (path / "w").unlink() if damage == "file" else (path / "manifest.json").write_text("{}")
    with pytest.raises(RunFailed, match="the newest checkpoint is not whole"):
        Mirror(f"file://{tmp_path}/store", run.path).push()
    assert not (run.path / ".snapshot").exists()
