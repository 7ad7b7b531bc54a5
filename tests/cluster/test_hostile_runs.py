"""Damaged run directories: every command answers or refuses with one message, and what is damaged is never read on."""

import json
import os
from pathlib import Path
from random import Random

import pytest
from hostile import STARTS, answered, assert_names, damaged, dumped, mutated, tree, untouched
from matplotlib.figure import Figure

from cluster.checkpoint import RunDirectory
from trainer.types import BadInput


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
