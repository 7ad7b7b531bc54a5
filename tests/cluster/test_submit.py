"""Runs as jobs of a real Ray head of their own: submitted, refused, followed, stopped, moved, continued."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from small_spec import jsonl_source

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
SLACK_S = 300.0
"""Longest wait for a step of a test, on a machine that does other things too."""


def until(what: str, holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + SLACK_S
    while not holds():
        assert time.monotonic() < deadline, f"waited {SLACK_S:g} s for {what}"
        time.sleep(0.3)


class Head:
    """A Ray head with two cores and a token of its own, and `tailrace` as its user has it."""

    def __init__(self, directory: Path) -> None:
        with socket.socket() as first, socket.socket() as second:
            for free in (first, second):
                free.bind(("127.0.0.1", 0))
            dashboard, client = first.getsockname()[1], second.getsockname()[1]
        self.address = f"http://127.0.0.1:{dashboard}"
        binaries = Path(sys.executable).parent
        path = os.pathsep.join([str(binaries), os.environ["PATH"]])
        python_path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        self.env = kept | {
            "PATH": path, "PYTHONPATH": python_path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "7f" * 32,
        }  # fmt: skip
        words = [
            binaries / "ray", "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats", "--port=0",
            f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}", "--dashboard-agent-listen-port=0",
            "--min-worker-port=0", "--max-worker-port=0", f"--object-store-memory={2**29}", f"--temp-dir={directory}",
        ]  # fmt: skip
        self.log = open(directory / "head.log", "w")  # noqa: SIM115
        self.process = subprocess.Popen(words, env=self.env, stdout=self.log, stderr=self.log, cwd=directory)

    def ready(self) -> bool:
        assert self.process.poll() is None, Path(self.log.name).read_text()
        request = urllib.request.Request(f"{self.address}/nodes?view=summary")
        request.add_header("Authorization", f"Bearer {self.env['RAY_AUTH_TOKEN']}")
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return bool(json.load(answer)["data"]["summary"])
        except OSError:
            return False

    def tailrace(self, *words: object, code: int = 0, **env: str) -> str:
        """What the command prints; its exit code must be this one."""
        done = self.start(*words, **env)
        printed, _ = done.communicate(timeout=SLACK_S)
        assert done.returncode == code, printed
        return printed

    def start(self, *words: object, **env: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "cluster.cli", *map(str, words), "--address", self.address]
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, env=self.env | env, cwd=ROOT / "tests", **output)

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        self.log.close()


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    directory = Path("/tmp") / f"tr{os.getpid()}"  # Ray's sockets lie in it, and their paths may have 107 characters
    directory.mkdir()
    head = Head(directory)
    try:
        until("the head", head.ready)
        yield head
    finally:
        head.close()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def spec_path(small: dict, tmp_path: Path) -> Path:
    """A run that takes both cores, with a reward module and a JSONL file of the submitter's machine."""
    small["run"] |= {"directory": str(tmp_path / "runs"), "name": "a"}
    small["task"]["sources"] = [jsonl_source(tmp_path / "sums.jsonl")]
    small["recipe"] = [{"stage": "rl", "epochs": 1000}]
    small["allocator"] |= {"budget_rollouts": 8000, "max_rollouts_per_epoch": 8}
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(small))
    return path


def test_a_run_is_submitted_once_stopped_moved_and_continued_while_others_wait(head, spec_path, tmp_path):
    run_dir, store = tmp_path / "runs" / "a", tmp_path / "store"
    submit = ("submit", spec_path, "--storage", f"file://{store}")
    assert "submitted a;" in head.tailrace(*submit)
    followed = head.start("logs", "a", "--follow")
    assert "a is there on this cluster" in head.tailrace(*submit, code=2)
    assert "refuses the token" in head.tailrace("list", code=2, RAY_AUTH_TOKEN="00" * 32)

    until("a checkpoint in the store", lambda: list(store.glob("checkpoints/*/manifest.json")))
    for name in ("b", "c"):
        short = ("--set", f"run.name={name}", "--set", "recipe.0.epochs=4", "--set", "allocator.budget_rollouts=32")
        head.tailrace("submit", spec_path, *short)
    until("b to wait for room", lambda: "waits for room: 2 bundles" in head.tailrace("status", "b"))
    assert {row["run"] for row in json.loads(head.tailrace("list", "--json"))} == {"a", "b", "c"}
    assert "c: stopped" in head.tailrace("stop", "c")

    assert "a: stopped" in head.tailrace("stop", "a")
    printed, _ = followed.communicate(timeout=SLACK_S)
    assert followed.returncode == 130, printed
    assert "a: stopped" in printed
    assert happened(store)[-2:] == ["checkpoint", "interrupted"]
    assert "b: succeeded" in head.tailrace("logs", "b", "--follow")
    summary = json.loads((tmp_path / "runs" / "b" / "summary.json").read_text())
    assert (summary["status"], summary["rollouts"]["spent"], summary["rollouts"]["lost"]) == ("finished", 32, 0)
    assert "b has finished on this cluster" in head.tailrace("submit", spec_path, *short, "--set", "run.name=b", code=2)

    shutil.rmtree(run_dir)  # as on another machine
    assert "submitted a~2;" in head.tailrace(*submit)
    until(
        "the resumed run's checkpoint", lambda: "checkpoint" in happened(store)[happened(store).index("interrupted") :]
    )
    assert "a: stopped" in head.tailrace("stop", "a")
    events = happened(run_dir)
    assert (events.count("run_started"), events.count("run_resumed")) == (1, 1)
    assert events[-2:] == ["checkpoint", "interrupted"]


def happened(run_dir: Path) -> list[str]:
    """Names of the events in the journal, in order."""
    return [json.loads(line)["event"] for line in (run_dir / "journal.jsonl").read_text().splitlines()]
