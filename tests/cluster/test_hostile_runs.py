"""Damaged run directories: every command answers or refuses with one message, and what is damaged is never read on.

A checkpoint's files are unpickled by DeepSpeed, so the property that counts is that `newest_checkpoint` gives nothing
but what was written, byte by byte, whatever was done to the directory.
"""

import json
import os
import pickle
import shutil
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import yaml
from hostile import STARTS, answered, assert_names, damaged, dumped, mutated, starts, tree, untouched
from matplotlib.figure import Figure
from small_spec import small
from test_checkpoint import assert_same, group_of
from test_report import POOL, metrics_row

from allocator import Allocator
from cluster.allocation import allocator_arguments, opening
from cluster.checkpoint import RunDirectory, load_state, save_state
from cluster.cli import app  # noqa: F401 (imported before anything is timed)
from cluster.errors import RunFailed
from cluster.spec import dump_spec, load_spec
from trainer.types import BadInput


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run of three epochs with two checkpoints, and the model that it starts from."""
    import cluster.launch

    base = tmp_path_factory.mktemp("hostile")
    data = small()
    data["run"]["directory"] = str(base)
    data["task"]["sources"][0] |= {"train_prompts": 48, "heldout_prompts": 4}
    data["recipe"] = [{"stage": "evaluate"}, {"stage": "rl", "epochs": 6}]
    (base / "given.yaml").write_text(yaml.safe_dump(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster.launch, "Cluster", starts)
        assert STARTS in answered("train", base / "given.yaml").stderr
    spec, run = load_spec(base / "given.yaml"), RunDirectory(base / "small")
    (run.path / "spec.yaml").write_text(dump_spec(spec))
    run.journal("run_started", name="small", seed=3)
    run.journal("allocator", **opening(spec, POOL))
    run.journal("stage_started", index=0, stage="evaluate", done=0)
    run.journal("stage_finished", index=0)
    run.journal("stage_started", index=1, stage="rl", done=0)
    allocator = Allocator(**allocator_arguments(spec, POOL))
    for epoch in range(3):
        group = allocator.decide(epoch)
        won = group.rollouts * (group.prompts % 2 == 0).astype(float)
        ids = [POOL[p].id for p in group.prompts]
        run.journal("decided", epoch=epoch, prompts=ids, rollouts=group.rollouts.tolist())
        figures = {"rollouts": int(group.rollouts.sum()), "reward_sums": won.tolist()}
        run.journal("rolled_out", epoch=epoch, **figures, tokens=(group.rollouts * 3).tolist())
        allocator.observe(epoch, group.prompts, won, group.rollouts - won, group.rollouts * 3)
        run.save_groups(epoch, [group_of([2, 3], epoch, 0)], {"prompts": [0], "rollouts": [2], "rollout_s": 1.0})
        row = metrics_row(epoch, 40 * epoch + 40)
        more = {
            "critical_s": 0.0,
            "long_idle_s": 0.5,
            "long_harvested_s": 0.2,
            "give_back_s": [],
            "training_ended": None,
        }
        run.add_metrics({**row, "bubbles": {**row["bubbles"], **more}})
        if epoch:
            save(run, epoch, allocator)
    return run.path


def save(run: RunDirectory, number: int, allocator: Allocator) -> None:
    def write(directory: Path) -> None:
        (directory / "learner").mkdir()
        for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
            (directory / "learner" / name).write_bytes(pickle.dumps({"step": number, "weights": [0.5] * 50}))
        save_state(directory / "allocator.safetensors", allocator.state_dict())
        save_state(directory / "features-0.safetensors", {"epoch": number, "hidden": np.ones((4, 4), np.float32)})
        (directory / "drafter.json").write_text(json.dumps({"updates": number}))

    run.save_checkpoint(number, 2, {"epoch": number, "held_from": number, "stage_index": 1}, write)


@pytest.fixture
def copy(whole, tmp_path, monkeypatch) -> Any:
    """Gives a fresh copy of the whole run, in a directory beside `outside`."""
    import cluster.launch

    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_text("keep")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(cluster.launch, "Cluster", starts)

    def fresh() -> RunDirectory:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return RunDirectory(shutil.copytree(whole, tmp_path / "run", symlinks=True))

    return fresh


def damage_lines(path: Path, rng: Random) -> None:
    """Bytes, or the records of one line."""
    if rng.random() < 0.5:
        path.write_bytes(damaged(path.read_bytes(), rng))
        return
    lines = path.read_text().splitlines()
    at = rng.randrange(len(lines))
    lines[at] = dumped(mutated(json.loads(lines[at]), rng))
    path.write_text("\n".join(lines) + "\n")


LINES = ("journal.jsonl", "metrics.jsonl")


def test_a_resume_with_damaged_lines_goes_on_or_names_the_line(copy, tmp_path):
    rng, codes = Random(11), []
    with untouched(tmp_path / "outside"), untouched(tmp_path / "work"):
        for _ in range(12):
            run, name = copy(), rng.choice(LINES)
            damage_lines(run.path / name, rng)
            result = answered("resume", run.path)
            codes.append(result.exit_code)
            assert STARTS in result.stderr or f"{name}:" in result.stderr, result.stderr
    assert len(codes) == 12
    assert {1, 2} == set(codes)


def test_lines_are_read_back_as_they_were_written_or_refused(copy):
    """What `resume` and the driver read, without what else a resume takes."""
    rng, outcomes, run = Random(12), [], copy()
    whole = {name: (run.path / name).read_bytes() for name in LINES}
    for _ in range(300):
        name = rng.choice(LINES)
        damage_lines(run.path / name, rng)
        try:
            run.mend_lines()
            run.keep_metrics(lambda row: row["epoch"] < 2)
            done = {event["index"] for event in run.events() if event["event"] == "stage_finished"}
            sampled = sum(sum(event["rollouts"]) for event in run.events() if event["event"] == "decided")
            outcomes.append(f"read {len(done)} {sampled}")
        except BadInput as error:
            outcomes.append("refused")
            assert_names(str(error), f"{name}:")
        (run.path / name).write_bytes(whole[name])
        (run.path / "metrics.jsonl").write_bytes(whole["metrics.jsonl"])
    assert len(outcomes) == 300
    assert outcomes.count("refused") > 100
    assert len(set(outcomes)) > 1


def damage_records(run: RunDirectory, rng: Random) -> str:
    """One of the files that the commands that look at a run read; gives its name."""
    name = rng.choice(("journal.jsonl", "metrics.jsonl", "spec.yaml", "summary.json"))
    if name == "summary.json":
        (run.path / name).write_text(dumped(mutated({"status": "finished", "speed": {"wall_s": 1.0}}, rng)))
    elif name == "spec.yaml":
        (run.path / name).write_bytes(damaged((run.path / name).read_bytes(), rng))
    else:
        damage_lines(run.path / name, rng)
    return name


@pytest.mark.parametrize(("command", "cases"), [("report", 15), ("allocation", 15), ("speculation", 15)])
def test_looking_at_damaged_records(copy, tmp_path, monkeypatch, command, cases):
    """Everything is drawn; the pictures are not turned into files, which would take most of the time."""
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **_: hasattr(file, "write") and file.write("<svg></svg>"))
    rng, codes, run = Random(13), [], copy()
    before = {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    with untouched(tmp_path / "outside"), untouched(tmp_path / "work"):
        for _ in range(cases):
            damage_records(run, rng)
            result = answered(command, run.path)
            codes.append(result.exit_code)
            assert result.exit_code in (0, 2)
            if result.exit_code:
                assert str(run.path) in result.stderr, result.stderr
            (run.path / "summary.json").unlink(missing_ok=True)
            for name, content in before.items():
                (run.path / name).write_bytes(content)
    assert len(codes) == cases
    assert {0, 2} == set(codes)


@pytest.mark.parametrize("command", ["report", "allocation", "speculation"])
def test_looking_at_damaged_records_with_the_pictures(copy, command):
    rng = Random(14)
    for _ in range(2):
        run = copy()
        damage_records(run, rng)
        assert answered(command, run.path).exit_code in (0, 2)


# Checkpoints.


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


def test_a_checkpoint_is_what_was_written_or_is_not_read(whole, copy, tmp_path):
    """Damage to the newest checkpoint, or to both: what `newest_checkpoint` gives is one that is whole, and its files
    alone are unpickled, as DeepSpeed would."""
    rng, outcomes, mark = Random(15), [], tmp_path / "ran"
    written = {name: content(whole / "checkpoints" / name) for name in ("00000001", "00000002")}
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


# Links out of the directory, and things that are no files.


@pytest.mark.parametrize(
    "name", [".lock", "journal.jsonl", "metrics.jsonl", "checkpoints", "rollouts", "models", "logs", "logs/driver.log"]
)
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_run_writes_inside_its_own_directory_only(copy, tmp_path, name, kind):
    run, target = copy(), tmp_path / "outside" / "precious"
    path = run.path / name
    if path.is_dir():
        path.rename(tmp_path / "aside")
        target = tmp_path / "aside"
    path.unlink(missing_ok=True)
    path.symlink_to(target) if kind == "link" else os.mkfifo(path)
    before = tree(target) if target.is_dir() else target.read_text()
    for command in ("resume", "train"):
        words = [tmp_path / "run" / "spec.yaml", "--run-dir", run.path] if command == "train" else [run.path]
        result = answered(command, *words)
        assert result.exit_code == 2
        if command == "resume":
            assert_names(result.stderr, str(path))
    assert before == (tree(target) if target.is_dir() else target.read_text())


@pytest.mark.parametrize("name", ["spec.yaml", "journal.jsonl", "metrics.jsonl", "summary.json"])
@pytest.mark.parametrize("kind", ["directory", "pipe", "dangling", "zero"])
def test_other_things_where_a_file_should_be(copy, name, kind):
    run = copy()
    path = run.path / name
    path.unlink(missing_ok=True)
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "zero" else "nowhere")
    for command in ("report", "resume") if name == "spec.yaml" else ("allocation", "speculation"):
        assert answered(command, run.path).exit_code in (0, 2)
