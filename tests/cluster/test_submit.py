"""Runs as jobs of a real Ray head of their own: submitted, refused, followed, stopped, moved, continued."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from small_spec import jsonl_source

from benchmarks.ray_head import ray_head

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
SLACK_S = 300.0
"""Longest wait for a step of a test, on a machine that does other things too."""


def until(what: str, holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + SLACK_S
    while not holds():
        assert time.monotonic() < deadline, f"waited {SLACK_S:g} s for {what}"
        time.sleep(0.3)


@dataclass
class Head:
    """A Ray head with two cores, and `tailrace` as its user has it."""

    address: str
    env: dict[str, str]

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


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head() as (address, env):
        yield Head(address, env)


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
