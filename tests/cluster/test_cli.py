"""The command line's contract: exit codes, messages without tracebacks, and where the work is handed on."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from small_spec import small
from typer.testing import CliRunner, Result

from cluster.cli import app
from cluster.errors import RunFailed
from trainer.types import BadInput


@pytest.fixture
def spec_path(tmp_path: Path) -> Path:
    data = small()
    data["run"]["directory"] = str(tmp_path / "runs")
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Stands in for cluster.launch, which would start Ray: notes its calls, does what a test sets as `outcome`."""
    module: Any = ModuleType("cluster.launch")
    module.calls = []
    module.outcome = lambda: {"status": "finished", "updates": 3}

    def train(spec: Any, run_dir: Path, display: Any) -> dict:
        run_dir.mkdir(parents=True)
        (run_dir / "spec.yaml").touch()
        module.calls.append(("train", spec.run.seed, run_dir))
        return module.outcome()

    def resume(run_dir: Path, display: Any) -> dict:
        module.calls.append(("resume", run_dir))
        return module.outcome()

    module.train, module.resume = train, resume
    monkeypatch.setitem(sys.modules, "cluster.launch", module)
    return module


def tailrace(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def raising(error: BaseException) -> Any:
    def outcome() -> dict:
        raise error

    return outcome


def test_train_hands_the_spec_on_and_shows_the_summary(spec_path, launch, tmp_path):
    result = tailrace("train", spec_path, "--set", "run.seed=9", "--set", "run.name=other")
    assert result.exit_code == 0
    assert launch.calls == [("train", 9, tmp_path / "runs" / "other")]
    assert "tailrace other finished" in result.stdout


def test_run_dir_is_taken_as_given(spec_path, launch, tmp_path):
    assert tailrace("train", spec_path, "--run-dir", tmp_path / "here").exit_code == 0
    assert launch.calls == [("train", 3, tmp_path / "here")]


def test_resume_reads_the_spec_of_the_run(spec_path, launch, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    spec_path.rename(run_dir / "spec.yaml")
    result = tailrace("resume", run_dir)
    assert result.exit_code == 0
    assert launch.calls == [("resume", run_dir)]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (BadInput("task.sources.0: no"), 2, "task.sources.0: no\n"),
        (RunFailed("engine 1 died; the run was left in runs/x"), 1, "engine 1 died; the run was left in runs/x\n"),
        (ZeroDivisionError("oh\nno"), 1, "ZeroDivisionError: oh (use tailrace --debug for the traceback)\n"),
    ],
)
def test_exit_codes(spec_path, launch, error, code, message):
    launch.outcome = raising(error)
    result = tailrace("train", spec_path)
    assert result.exit_code == code
    assert result.stderr.startswith(message)
    assert ("tailrace resume" in result.stderr) == isinstance(error, RunFailed)
    assert "Traceback" not in result.output


def test_interrupt_says_how_to_go_on(spec_path, launch, tmp_path):
    launch.outcome = raising(KeyboardInterrupt())
    result = tailrace("train", spec_path)
    assert result.exit_code == 130
    assert result.stderr == f"interrupted; go on with: tailrace resume {tmp_path}/runs/small\n"


def test_debug_lets_the_traceback_through(spec_path, launch):
    launch.outcome = raising(ZeroDivisionError("oh"))
    result = tailrace("--debug", "train", spec_path)
    assert isinstance(result.exception, ZeroDivisionError)


def test_bad_spec_names_file_and_field(spec_path):
    for command in ("train", "plan"):
        result = tailrace(command, spec_path, "--set", "run.seed=-1")
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith(f"{spec_path}: run.seed: ")


def test_resume_of_something_else(tmp_path):
    result = tailrace("resume", tmp_path)
    assert result.exit_code == 2
    assert result.stderr == f"{tmp_path}: not a run directory, it has no spec.yaml\n"


@pytest.mark.parametrize("arguments", [["train"], ["plan", "a", "b"], ["fly"], ["plan", "--jsn", "x"]])
def test_usage_errors(arguments):
    result = tailrace(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_plan_prints_for_people_and_programs(spec_path):
    assert "240 rollouts / 6 epochs" in tailrace("plan", spec_path).stdout
    result = tailrace("plan", spec_path, "--json")
    assert result.exit_code == 0
    assert yaml.safe_load(result.stdout)["budget"]["rollouts"] == 240


def test_a_lack_is_no_failure(spec_path):
    result = tailrace("plan", spec_path, "--set", "rollout.workers=4096")
    assert result.exit_code == 0
    assert "✗ lacking CPUs: the run asks for 4096" in result.stdout


def test_help_is_quick_because_it_imports_little():
    code = "import sys, cluster.cli; sys.exit(bool({'torch', 'ray', 'rich', 'numpy', 'pydantic'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    shown = subprocess.run([sys.executable, "-m", "cluster.cli", "--help"], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0
    assert all(command in shown.stdout for command in ("train", "resume", "plan"))
