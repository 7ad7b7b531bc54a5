"""The run that the suites of damaged run directories damage."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import yaml
from hostile import STARTS, answered, starts
from small_spec import small
from test_checkpoint import group_of
from test_report import POOL, metrics_row, roll_out

import cluster.launch
from allocator import Allocator
from cluster.allocation import allocator_arguments, opening
from cluster.checkpoint import RunDirectory, save_state
from cluster.spec import dump_spec, load_spec


def write_run(base: Path) -> Path:
    """A run of three epochs with two checkpoints, and the model that it starts from; its directory."""
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
        roll_out(run, allocator, epoch)
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
