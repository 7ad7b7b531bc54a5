"""A recipe on the real stack: pre-training with exports, SFT from one of them, parallel averaging; killed in each."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from cluster.checkpoint import RunDirectory
from cluster.display import Display
from cluster.launch import resume, train
from cluster.spec import parse_spec

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]
KILL_AT = Path(__file__).parent / "kill_at.py"
RECIPE = [
    {"stage": "pretrain", "steps": 6, "batch_examples": 16, "mixture": "easy", "checkpoint_tokens": [500, 900]},
    {"stage": "sft", "steps": 4, "batch_examples": 8, "learning_rate": 1e-3, "start": "models/tokens-900"},
    {"stage": "parallel", "epochs": 4, "sft": {"batch_examples": 8, "learning_rate": 1e-3}},
]


def model(run: RunDirectory, name: str) -> dict[str, np.ndarray]:
    return load_file(run.models / name / "model.safetensors")


def exported(run: RunDirectory) -> list[tuple[str, int]]:
    return [(event["model"], event["tokens"]) for event in run.events() if event["event"] == "exported"]


def test_a_recipe_killed_in_every_stage_and_resumed_equals_uninterrupted(ray_cluster, tmp_path, small):
    small["run"].update(checkpoint_every_epochs=2, checkpoint_every_steps=2)
    # Rollouts of one epoch beside the update of the one before, and a divergence from the policy of the stage's begin.
    small["learner"].update(stale_epochs=1, objective={"name": "grpo", "advantage": "leave_one_out"})
    small["task"]["mixtures"] = {"easy": {"add1": 3, "add3": 1}}
    small["recipe"] = RECIPE
    small["cluster"]["address"] = ray_cluster
    small["rollout"]["workers"] = 1
    small["learner"]["ranks"] = 1
    small["allocator"]["budget_rollouts"] = 160
    whole, run = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "killed")
    summary = train(parse_spec(small, "test"), whole.path, Display("whole"))
    assert summary["stages"] == ["pretrain", "sft", "parallel"]
    assert [row["stage"] for row in whole.metrics()] == ["parallel"] * 4
    # The first epoch is learned under the weights that sampled it, and so is the one after a checkpoint, which waits
    # for the learner. The others lag by one version.
    versions = {event["epoch"]: event["weight_version"] for event in whole.events() if event["event"] == "decided"}
    learned = [row["weight_version"] for row in whole.metrics()]
    assert [learned[epoch] - versions[epoch] for epoch in range(4)] == [1, 2, 1, 2]
    assert all(row["sft_loss"] > 0 and row["updates"] == 1 for row in whole.metrics())

    spec_file = tmp_path / "small.yaml"
    spec_file.write_text(yaml.safe_dump(small))
    resumed = ["resume", str(run.path)]
    kills = [
        ("learner: export", "learner: save", 1, ["train", str(spec_file), "--run-dir", str(run.path)]),
        ("learner: load_weights", "learner: teach", 2, resumed),
        ("allocator: decide", "learner: parallel", 3, resumed),
    ]
    for first, what, count, args in kills:
        command = [sys.executable, str(KILL_AT), first, what, str(count), *args]
        killed = subprocess.run(command, capture_output=True, timeout=300)
        assert killed.returncode == -9, (what, killed.stderr[-2000:])
    resume(run.path, Display("killed"))

    assert exported(run) == exported(whole)
    assert [name for name, _ in exported(run)] == ["tokens-500", "tokens-900"]
    assert [event["index"] for event in run.events() if event["event"] == "weights_loaded"] == [1]
    for name in ("tokens-500", "tokens-900", "policy"):
        ours, theirs = model(run, name), model(whole, name)
        assert all(np.array_equal(ours[key], theirs[key]) for key in theirs), name
