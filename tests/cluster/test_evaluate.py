"""`tailrace evaluate` before anything is started: what it refuses, and what it prints."""

from pathlib import Path

import pytest
import yaml
from small_spec import small
from test_cli import tailrace

from cluster.evaluate import show

ROW = {
    "model": "runs/a/models/policy",
    "pass@1": 0.25,
    "pass@1_stderr": 0.01,
    "pass@8": 0.5,
    "pass@k": 0.5,
    "k": 8,
    "ci": {"pass@1": [0.2, 0.3], "pass@8": [0.4, 0.6], "pass@k": [0.4, 0.6]},
    "response_tokens_mean": 4.25,
    "truncated_share": 0.125,
    "entropy": None,
    "distinct_correct_mean": 1.5,
    "language_loss": 0.75,
    "verdict": None,
}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(small()))
    return tmp_path


def test_a_model_that_is_not_there_is_refused_and_named(run_dir):
    result = tailrace("evaluate", run_dir)
    assert result.exit_code == 2
    assert result.stderr == f"model.source: {run_dir}/models/policy: no such directory\n"
    (run_dir / "odd").mkdir()
    result = tailrace("evaluate", run_dir / "spec.yaml", "--model", "tiny", "--model", run_dir / "odd", "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{run_dir}/odd lacks config.json, weights (*.safetensors)" in result.stderr


def test_a_directory_without_a_run_and_a_spec_that_is_not_there_are_refused(tmp_path):
    assert tailrace("evaluate", tmp_path).stderr == f"{tmp_path}: not a run directory, it has no spec.yaml\n"
    assert tailrace("evaluate", tmp_path / "no.yaml").stderr == f"{tmp_path}/no.yaml: no such file\n"


@pytest.mark.parametrize("override", ["model.source=tiny", "recipe.0.steps=1", "drafter.method=eagle3"])
def test_an_override_of_what_an_evaluation_sets_itself_is_refused(run_dir, override):
    result = tailrace("evaluate", run_dir, "--set", override)
    assert result.exit_code == 2
    assert f"--set {override}: an evaluation has one stage" in result.stderr


def test_a_k_above_the_samples_is_refused(run_dir):
    result = tailrace("evaluate", run_dir, "--set", "evaluation.k=[1, 32]")
    assert result.exit_code == 2
    assert "k = 32 needs at least that many samples_per_prompt, not 4" in result.stderr


def test_the_table_has_a_row_per_model_with_intervals_and_verdict(capsys):
    show([ROW, {**ROW, "model": "other", "ci": None, "verdict": {"verdict": "sharpening"}}])
    header, first, second = capsys.readouterr().out.splitlines()
    assert "pass@8" in header
    assert "pass@k" not in header
    assert "25.0% ± 5.0%" in first
    assert "–" in first
    assert second.rstrip().endswith("sharpening")
