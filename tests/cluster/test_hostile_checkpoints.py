"""Damaged checkpoints and stored states: what is read back is what was written, or it is refused by name.

A checkpoint's files are unpickled by DeepSpeed, so the property that counts is that `newest_checkpoint` gives nothing
but what was written, byte by byte, whatever was done to the directory.
"""

import json
import os
import pickle
from pathlib import Path
from random import Random

import pytest
from hostile import Bomb, assert_names, damaged, dumped, mutated, untouched
from test_checkpoint import assert_same

from cluster.checkpoint import load_state
from cluster.errors import RunFailed


def damage_checkpoint(directory: Path, rng: Random, mark: Path) -> None:
    """Anything that a disk, a hand or a stranger could do to it."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    path, manifest = rng.choice(files), directory / "manifest.json"
    kind = rng.choice(
        ("bytes", "bytes", "pickle", "extra", "gone", "link", "links", "fields", "names", "directory", "pipe")
    )
    if kind == "bytes":
        path.write_bytes(damaged(path.read_bytes(), rng))
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb(mark)))
    elif kind == "extra":
        names = (
            "learner/zero_pp_rank_1_mp_rank_00_optim_states.pt",
            "second-adam-0.pt",
            "latest",
            ".hidden",
            "learner/x",
        )
        (directory / rng.choice(names)).write_bytes(pickle.dumps(Bomb(mark)))
    elif kind == "gone":
        path.unlink()
    elif kind == "link":
        path.rename(directory.parent.parent / "moved")
        path.symlink_to(directory.parent.parent / "moved")
    elif kind == "links":
        (directory / "learner" / "more").symlink_to(directory.parent, target_is_directory=True)
    elif kind == "directory":
        path.unlink()
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(directory / "learner" / "pipe")
    else:
        data = json.loads(manifest.read_text())
        if kind == "fields":
            data = mutated(data, rng)
        else:
            odd = (
                "../../../outside/precious",
                "/etc/passwd",
                "learner/../learner/x",
                "",
                ".",
                "learner",
                "a\0b",
                "manifest.json",
            )
            data["files"][rng.choice(odd)] = rng.choice(list(data["files"].values()))
        manifest.write_text(dumped(data))


def content(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_a_checkpoint_is_what_was_written_or_is_not_read(whole_run, copy, tmp_path):
    """Damage to the newest checkpoint, or to both: what `newest_checkpoint` gives is one that is whole, and its files
    alone are unpickled, as DeepSpeed would."""
    rng, outcomes, mark = Random(15), [], tmp_path / "ran"
    written = {name: content(whole_run / "checkpoints" / name) for name in ("00000001", "00000002")}
    assert len(written["00000002"]) == 6
    with untouched(tmp_path / "outside"):
        for _ in range(300):
            run = copy()
            for name in ("00000002", "00000001")[: rng.choice((1, 1, 2))]:
                damage_checkpoint(run.checkpoints / name, rng, mark)
            try:
                found = run.newest_checkpoint()
            except RunFailed as error:
                outcomes.append("refused")
                assert_names(str(error), "no checkpoint is as it was written: 0000000")
                continue
            assert found is not None
            path, manifest = found
            outcomes.append(path.name)
            files = content(path)
            facts = json.loads(files.pop("manifest.json"))
            assert {**files, "manifest.json": written[path.name]["manifest.json"]} == written[path.name]
            assert {**manifest, "digest": facts["digest"]} == json.loads(written[path.name]["manifest.json"])
            for file in path.rglob("*.pt"):
                pickle.loads(file.read_bytes())
            load_state(path / "allocator.safetensors")
    assert len(outcomes) == 300
    assert not mark.exists()
    assert min(outcomes.count(name) for name in ("refused", "00000001")) > 30


def test_the_bomb_goes_off_where_it_is_unpickled(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "ran")))
    assert (tmp_path / "ran").is_dir()


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(copy):
    """It would spend its budget a second time, and drop its metrics."""
    run = copy()
    for path in run.checkpoints.glob("*/learner/mp*"):
        path.write_bytes(b"")
    with pytest.raises(RunFailed, match=r"00000002: learner/mp_rank_\S+ is not as it was written; 00000001"):
        run.newest_checkpoint()


def test_stored_rollouts_come_back_as_they_were_written_or_not_at_all(copy):
    rng, outcomes, run = Random(16), [], copy()
    path = run.rollouts / "000001.safetensors"
    whole = path.read_bytes()
    groups, extra = run.load_groups(1)
    for _ in range(200):
        path.write_bytes(rng.choice((damaged(whole, rng), pickle.dumps([1]), b"", whole[::-1])))
        try:
            found, said = run.load_groups(1)
        except RunFailed as error:
            outcomes.append("refused")
            assert_names(str(error), "000001.safetensors")
            continue
        outcomes.append("read")
        assert said == extra
        for ours, theirs in zip(groups, found, strict=True):
            assert_same(ours, theirs)
    assert len(outcomes) == 200
    assert outcomes.count("refused") > 150


def test_states_come_back_or_are_refused_by_name(copy):
    rng, count, run = Random(17), 0, copy()
    path = run.checkpoints / "00000001" / "allocator.safetensors"
    whole = path.read_bytes()
    for _ in range(150):
        count += 1
        path.write_bytes(damaged(whole, rng))
        try:
            assert isinstance(load_state(path), dict)
        except RunFailed as error:
            assert_names(str(error), "allocator.safetensors")
    assert count == 150
