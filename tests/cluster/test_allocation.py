"""A run's decisions, from its journal: replayed, drawn, and refused where there is none."""

import json

import numpy as np
import pytest
from small_spec import small
from typer.testing import CliRunner

from allocator import Allocator
from cluster.allocation import allocator_arguments, opening, replayed
from cluster.checkpoint import RunDirectory
from cluster.cli import app
from cluster.spec import parse_spec
from trainer.types import BadInput, Prompt

POOL = [Prompt(f"id{i}", ("easy", "hard")[i % 2], f"{i}", "1", (1,), 0) for i in range(48)]


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    """The journal of six epochs in which easy prompts always succeed and hard ones never."""
    spec = parse_spec(small(), "small")
    run = RunDirectory(tmp_path / "run")
    run.create()
    run.journal("allocator", **opening(spec, POOL))
    allocator = Allocator(**allocator_arguments(spec, POOL))
    for epoch in range(6):
        group = allocator.decide(epoch)
        won = group.rollouts * (group.prompts % 2 == 0).astype(float)
        tokens = group.rollouts * 3
        ids = [POOL[p].id for p in group.prompts]
        run.journal("decided", epoch=epoch, prompts=ids, rollouts=group.rollouts.tolist())
        run.journal("rolled_out", epoch=epoch, reward_sums=won.tolist(), tokens=tokens.tolist())
        allocator.observe(epoch, group.prompts, won, group.rollouts - won, tokens)
    return run


def test_the_journal_leads_to_the_beliefs_that_the_run_ended_with(run):
    allocators = [allocator for allocator, _ in replayed(run)]
    assert len(allocators) == 6
    seen = allocators[-1].pool.exposure > 0
    assert allocators[-1].posterior_mean[::2][seen[::2]].min() > allocators[-1].posterior_mean[1::2][seen[1::2]].max()
    assert allocators[-1].metrics()["spent_tokens"] == 3 * allocators[-1].metrics()["spent_rollouts"]


def test_the_command_draws_and_counts_by_family(run):
    result = CliRunner().invoke(app, ["allocation", str(run.path), "--json"])
    assert result.exit_code == 0, result.output
    families = json.loads(result.stdout)
    assert families["easy"]["prompts"] == families["hard"]["prompts"] == 24
    assert families["easy"]["rollouts"] + families["hard"]["rollouts"] == 240
    assert families["easy"]["believed_last"] > families["hard"]["believed_last"]
    assert (run.path / "allocation.svg").read_text().startswith("<?xml")


def test_a_directory_without_an_rl_stage_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no journal of an rl stage"):
        replayed(RunDirectory(tmp_path))
    assert CliRunner().invoke(app, ["allocation", str(tmp_path)]).exit_code == 2


@pytest.mark.parametrize("name", ["picture.foo", "nowhere/picture.svg"])
def test_a_file_that_cannot_be_drawn_is_refused_by_name(run, name):
    result = CliRunner().invoke(app, ["allocation", str(run.path), "--out", str(run.path / name)])
    assert result.exit_code == 2
    assert "--out" in result.output


def test_other_prompts_or_another_order_is_another_set():
    spec = parse_spec(small(), "small")
    sets = {allocator_arguments(spec, pool)["prompt_set"] for pool in (POOL, POOL[::-1], POOL[:-1])}
    assert len(sets) == 3
    assert allocator_arguments(spec, POOL)["families"] == np.resize(["easy", "hard"], 48).tolist()
