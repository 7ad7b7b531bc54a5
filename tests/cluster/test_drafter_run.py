"""A whole run that speculates and trains its drafter, on the real stack."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from cluster.checkpoint import RunDirectory
from cluster.display import Display
from cluster.launch import resume, train
from cluster.metrics import Metrics
from cluster.spec import Spec, parse_spec
from cluster.speculation_plot import plot
from drafter.files import load_head

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]


def spec_of(address: str, **drafter) -> Spec:
    data = yaml.safe_load((Path(__file__).parents[1] / "small.yaml").read_text())
    data["run"]["deterministic"] = False
    data["cluster"]["address"] = address
    data["drafter"] = {"method": "eagle3", "max_draft_tokens": 3, **drafter}
    return parse_spec(data, "test")


def test_a_random_head_is_trained_published_and_written_for_vllm(speculating):
    summary = json.loads((speculating.path / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["bubbles"]["drafter_steps"] > 10
    assert summary["bubbles"]["critical_s"] > 2
    published = [event for event in speculating.events() if event["event"] == "drafter_published"]
    assert published
    assert speculating.metrics()[-1]["speculation"]["drafter_version"] == published[-1]["version"]
    assert load_head(speculating.models / "drafter").config.trained_steps == 3
    assert summary["speculation"]["accept_length"] > 1
    assert summary["speculation"]["accepted_tokens"] > 0


def test_the_learner_agrees_with_logprobs_of_speculated_tokens(speculating):
    """Every token's log-probability is the target's own, whoever proposed it."""
    gaps = [row["logprob_gap_max"] for row in speculating.metrics() if "logprob_gap_max" in row]
    assert len(gaps) >= 4
    assert max(gaps) < 1e-4


def test_its_checkpoint_holds_the_drafter_and_its_buffer(speculating):
    newest = sorted(speculating.checkpoints.iterdir())[-1]
    names = {path.name for path in newest.iterdir()}
    assert {"drafter.safetensors", "drafter-serving.safetensors", "features-0.safetensors"} <= names


def test_a_resumed_run_serves_the_same_drafter(speculating, ray_cluster, tmp_path):
    """Killed after its last checkpoint but before its end: it goes on with the published drafter."""
    import shutil

    again = tmp_path / "resumed"
    shutil.copytree(speculating.path, again)
    (again / "summary.json").unlink()
    shutil.rmtree(again / "models" / "drafter")
    resume(again, Display("resumed"))
    ours, theirs = (load_head(path / "models" / "drafter").state_dict() for path in (again, speculating.path))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_a_person_sees_of_it(speculating, tmp_path):
    figures = plot(speculating, tmp_path / "speculation.svg")
    assert figures["drafter_versions"] >= 1
    assert (tmp_path / "speculation.svg").stat().st_size > 1000
    metrics = Metrics()
    for row in speculating.metrics():
        metrics.observe_epoch(row)
    metrics.close()
    value = metrics.registry.get_sample_value
    assert value("tailrace_drafter_version") == figures["drafter_versions"]
    assert value("tailrace_drafter_steps_total") > 10
    assert value("tailrace_draft_acceptance_ratio", {"position": "1"}) > 0
    assert value("tailrace_idle_seconds_total", {"worker": "rollout-0"}) is not None


def test_a_frozen_head_speculates_from_the_first_step(speculating, ray_cluster, tmp_path):
    run = RunDirectory(tmp_path / "frozen")
    source = str(speculating.models / "drafter")
    train(spec_of(ray_cluster, source=source, train={"enabled": False}), run.path, Display("frozen"))
    assert run.metrics()[0]["speculation"]["drafter_version"] == 1
    assert json.loads((run.path / "summary.json").read_text())["bubbles"]["drafter_steps"] == 0
