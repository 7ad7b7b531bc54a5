"""Odd words after every command: help, an answer or a message; nothing is written but where a command says so."""

import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import typer
import yaml
from hostile import answered, starts, tree, untouched
from small_spec import small

from cluster.cli import app
from cluster.evaluate import show

WORDS = (
    "", " ", ".", "..", "/", "~", "-", "--", "-h", "--json", "--set", "=", "a=b", "\0", "a\0b", "\n", "\udcff",
    "é\u202e", "[/red]", "{0}", "%s", "$(touch pwned)", "`touch pwned`", ";touch pwned", "x" * 5000, "../../etc/passwd",
    "/dev/zero", "/dev/null", "/proc/self/environ", "NaN", "-1", "0", "1e999", "9" * 400, "s3://b/c", "file:///etc/x",
    "http://", "http://[", "http://[::1", "http://127.0.0.1:1", "http://127.0.0.1:99999", "http://127.0.0.1:x",
    "http://\udcff:1", "https://127.0.0.1:1", "http://127.0.0.1:0", "ray://127.0.0.1:1", "javascript:1",
    "http://" + "a" * 300 + ":1", "http://a..b:1", "auto", "None", "run", "run/spec.yaml", "run/journal.jsonl",
)  # fmt: skip
OPTIONS = {
    "train": ["--set", "--run-dir"],
    "resume": [],
    "plan": ["--set", "--json"],
    "evaluate": ["--model", "--set", "--json"],
    "allocation": ["--out", "--json"],
    "speculation": ["--out", "--json"],
    "report": ["--out", "--json"],
    "simulate": ["--seeds", "--policies", "--quick", "--replay", "--plots"],
    "submit": ["--address", "--storage", "--code", "--retries", "--queue-s", "--set", "--follow"],
    "status": ["--address", "--json"],
    "logs": ["--address", "--follow"],
    "stop": ["--address"],
    "list": ["--address", "--json"],
}
"""`doctor` looks at the machine whatever it is told; the odd options of `simulate` end it before it works."""


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    """A directory with a run in it that has not got far, and `outside` beside it."""
    import cluster.launch

    monkeypatch.setattr(cluster.launch, "Cluster", starts)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_text("keep")
    monkeypatch.setenv("HOME", str(tmp_path.parent))  # where libraries keep caches
    work = tmp_path / "outside" / "work"
    (work / "run").mkdir(parents=True)
    (work / "run" / "spec.yaml").write_text(yaml.safe_dump(small()))
    (work / "run" / "journal.jsonl").write_text('{"event": "run_started", "time_s": 1.0}\n')
    monkeypatch.chdir(work)
    return work


def test_every_command_is_tried():
    assert set(typer.main.get_command(app).commands) == {*OPTIONS, "doctor"}


TARGETS = {"train": "run/spec.yaml", "plan": "run/spec.yaml", "submit": "run/spec.yaml", "list": ""}


def words_for(command: str, rng: Random) -> list[str]:
    words = [rng.choice(WORDS) for _ in range(rng.choice((0, 1, 1, 1, 2)))]
    if rng.random() < 0.5:
        words = [TARGETS.get(command, "run")]
    for option in rng.sample(OPTIONS[command], rng.randint(0, min(3, len(OPTIONS[command])))):
        words += [option] if rng.random() < 0.2 else [option, rng.choice(WORDS)]
    if command == "simulate":
        words.append("--no-such-experiment")  # with good ones it would work for minutes
    return list(filter(None, words)) if command == "list" else words


@pytest.mark.parametrize("command", OPTIONS)
def test_odd_words(work, tmp_path, command):
    rng, codes = Random(f"words {command}"), []
    for _ in range(25):
        words = words_for(command, rng)
        before = tree(tmp_path)
        codes.append(answered(command, *words).exit_code)
        made = {name for name, facts in tree(tmp_path).items() if before.get(name) != facts}
        named = {"outside/work/run", *(word.removeprefix("./") for word in words if word)}
        assert not {name for name in made if not any(word in name for word in named)}, (words, made)
        assert not [name for name in made if name.endswith(".tmp")]
        assert tree(tmp_path).keys() >= before.keys()
    assert len(codes) == 25
    assert (0 in codes) == (command in ("plan", "report"))
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("replay", ["run", "run/spec.yaml", "/dev/null", "pickle.npz", "no/such", "zip.npz", "."])
def test_recordings_that_are_none(work, tmp_path, replay):
    import numpy as np

    (work / "zip.npz").write_bytes(b"PK\x03\x04" + bytes(100))
    np.savez(work / "pickle.npz", success_rate=np.array([{"a": 1}], dtype=object))
    with untouched(tmp_path):
        assert answered("simulate", "--replay", replay, "--quick").exit_code == 2


@pytest.mark.parametrize("name", ["[/red]", "[bold]x", "a[/]b", "\\[", "é\u202e"])
def test_names_of_models_are_no_markup(name, capsys):
    """After minutes of evaluation, a bracket in a path must not take the table away."""
    row = {
        "model": name, "pass@1": 0.5, "ci": None, "response_tokens_mean": 1.0, "truncated_share": 0.0, "entropy": None,
        "distinct_correct_mean": None, "language_loss": None, "verdict": None,
    }  # fmt: skip
    show([row])
    assert name in capsys.readouterr().out


def test_bytes_that_are_no_text_on_a_real_command_line(work):
    """The interpreter hands them on as half characters, which no stream takes."""
    command = [sys.executable, "-m", "cluster.cli", b"report", b"\xff\xfe"]
    done = subprocess.run(command, capture_output=True, timeout=120)
    assert done.returncode == 2
    assert b"not a run directory" in done.stderr
    assert b"Traceback" not in done.stderr
