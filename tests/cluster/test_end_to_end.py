"""The whole service on the real stack: Ray, vLLM, DeepSpeed, a model of some 100 k parameters."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from cluster.allocation import replayed
from cluster.checkpoint import RunDirectory
from cluster.display import Display
from cluster.errors import RunFailed
from cluster.evaluate import evaluate
from cluster.launch import resume, train
from cluster.spec import Spec, parse_spec
from trainer.evaluation import verdict
from trainer.types import BadInput

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]
KILL_AT = Path(__file__).parent / "kill_at.py"


def spec_of(data: dict, address: str, **run) -> Spec:
    data = {**data, "run": {**data["run"], **run}, "cluster": {**data["cluster"], "address": address}}
    return parse_spec(data, "test")


def without_times(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key not in ("time", "bubbles", "actors")} for row in rows]


def decisions(run: RunDirectory) -> dict[int, tuple]:
    """By epoch; a decision taken again after a kill replaces the first one, which must be the same."""
    found: dict[int, tuple] = {}
    for event in run.events():
        if event["event"] == "decided":
            decision = (event["prompts"], event["rollouts"], event["weight_version"])
            assert found.setdefault(event["epoch"], decision) == decision
    return found


def test_a_run_leaves_what_the_contract_lists(finished):
    summary = json.loads((finished.path / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["stages"] == ["pretrain", "evaluate", "rl", "evaluate"]
    assert {"pass@1", "pass@k"} <= summary["evaluation"]["before"].keys() & summary["evaluation"]["after"].keys()
    assert summary["rollouts"]["lost"] == 0
    assert "finished" in (finished.path / "report.html").read_text()
    assert {"ray", "torch", "vllm", "deepspeed", "tailrace"} <= summary["versions"].keys()
    assert all(summary["speed"][key] > 0 for key in ("wall_s", "rollout_s", "learn_s", "publish_s", "tokens_per_s"))
    assert (finished.path / "models" / "policy" / "model.safetensors").is_file()
    assert (finished.path / "models" / "policy" / "tokenizer.json").is_file()
    assert len(finished.metrics()) == summary["epochs"]


def test_no_file_of_a_run_holds_a_secret_of_the_environment(finished):
    secret = os.environ["CANARY_API_KEY"].encode()
    files = [path for path in finished.path.rglob("*") if path.is_file()]
    assert "a careless line: (hidden)" in (finished.logs / "rollout-0.log").read_text()
    assert not [path for path in files if secret in path.read_bytes()]


def test_everything_that_a_resume_would_unpickle_is_in_the_manifest(finished):
    path, manifest = finished.newest_checkpoint()
    pickles = {str(file.relative_to(path)) for file in path.rglob("*.pt")}
    assert len(pickles) > 1, "the model's state, and the optimizer's of each rank"
    assert pickles <= manifest["files"].keys()


def test_spent_rollouts_agree_between_ledger_journal_and_metrics(finished):
    events, rows = finished.events(), finished.metrics()
    decided = sum(sum(e["rollouts"]) for e in events if e["event"] == "decided")
    rolled_out = sum(e["rollouts"] for e in events if e["event"] == "rolled_out")
    assert decided == rolled_out == sum(row["rollouts"] for row in rows) == rows[-1]["spent_rollouts"] <= 240


def test_the_journal_replays_to_the_same_decisions(finished):
    taken = list(replayed(finished))
    assert len(taken) == len(finished.metrics())
    last, _ = taken[-1]
    assert last.metrics()["spent_tokens"] == finished.metrics()[-1]["spent_tokens"] > 0
    assert {p: n for p, n in finished.metrics()[-1]["posterior_prompts"].items() if n}


def test_what_the_actors_say_of_an_epoch_agrees_with_what_came_back(finished):
    rows = finished.metrics()
    tokens = rollouts = rollout_s = 0  # since a row had figures of the workers: where epochs are short, not every one
    for row in rows:
        actors = row["actors"]
        workers = actors["workers"]
        tokens, rollouts = tokens + row["tokens"], rollouts + row["rollouts"]
        rollout_s += row["time"]["rollout_s"]
        if not workers or not rollouts:
            continue
        assert workers["steps"].keys() == {"rollout-0", "rollout-1"}
        assert sum(workers["generated_tokens"].values()) == tokens
        assert sum(workers["prompt_tokens"].values()) == sum(workers["prefix_queries"].values()) > rollouts
        assert sum(workers["request_steps"].values()) >= tokens
        assert sum(workers["running"].values()) == sum(workers["waiting"].values()) == 0
        assert 0 < max(workers["kv_cache_peak"].values()) < 1
        assert 0 < max(workers["busy_s"].values()) <= rollout_s
        assert sum(workers["grading_s"].values()) > 0
        assert all(size > 50 * 2**20 for size in workers["resident_bytes"].values())
        assert actors["driver"]["resident_bytes"] > 50 * 2**20
        tokens = rollouts = rollout_s = 0
    assert tokens == 0, "the last epoch's figures are always there"
    # Nobody waits for the others: theirs may stand in a later row.
    learner = [row["actors"]["learner"] for row in finished.metrics()]
    for rank in ("0", "1"):
        own = [{name: by_rank[rank] for name, by_rank in f.items() if rank in by_rank} for f in learner]
        assert all(f["busy_s"] >= f["learning_s"] and f["resident_bytes"] > 50 * 2**20 for f in own if f)
        assert sum(f.get("tokens", 0) for f in own) > sum(row["tokens"] for row in rows) / 4
    assert sum(row["actors"]["allocator"].get("decide_s", 0) for row in finished.metrics()) > 0


def test_every_group_dispatched_comes_back_exactly_once(finished):
    sent = [group for e in finished.events() if e["event"] == "dispatched" for group in e["groups"]]
    back = [group for e in finished.events() if e["event"] == "completed" for group in e["groups"]]
    assert sorted(sent) == sorted(back)
    assert len(set(back)) == len(back)


def test_learner_and_engine_agree_on_logprobs_after_every_publish(finished):
    """Also for a tied output head, whose packed copy vLLM's reload leaves at the old version."""
    gaps = [row["logprob_gap_max"] for row in finished.metrics() if "logprob_gap_max" in row]
    assert finished.metrics()[-1]["weight_version"] >= 4
    assert len(gaps) >= 4
    assert max(gaps) < 1e-4


def test_rewards_come_from_the_users_function_and_rise(finished):
    rows = [row for row in finished.metrics() if row["groups"]]
    assert 0 < rows[0]["reward_mean"] < 1
    assert rows[0]["reward_mean"] not in (0.0, 1.0)
    before, after = (
        json.loads((finished.path / "summary.json").read_text())["evaluation"][k] for k in ("before", "after")
    )
    assert after["pass@1"] > before["pass@1"]


def test_evaluations_in_the_summary_are_those_in_the_journal_and_judged(finished):
    found = json.loads((finished.path / "summary.json").read_text())["evaluation"]
    events = [event for event in finished.events() if event["event"] == "evaluated"]
    assert [e["language_loss"] for e in found["all"]] == [e["language_loss"] for e in events]
    assert found["verdict"] == verdict(events[0], events[-1])
    assert found["verdict"]["paired"]
    assert len(events[0]["counts"]["right"]) == 16
    assert all(0.1 < e["entropy"] < np.log(99) for e in events), "of a model of 99 tokens"
    assert {"pass@1", "pass@1_stderr", "pass@2", "pass@k", "language_loss"} == found["after"]["families"]["add1"].keys()


def test_an_exported_policy_is_evaluated_as_in_its_run_and_beside_another_model(finished):
    after = json.loads((finished.path / "summary.json").read_text())["evaluation"]["after"]
    rows = evaluate(finished.path, [str(finished.path / "models" / "policy"), "tiny"], ["evaluation.k=[1,2]"], True)
    trained, untrained = rows
    assert trained["language_loss"] == pytest.approx(after["language_loss"], rel=1e-4)
    assert trained["pass@1"] == pytest.approx(after["pass@1"], abs=0.2)
    assert trained["language_loss"] < untrained["language_loss"]
    assert trained["verdict"] is None
    assert untrained["verdict"]["paired"]
    assert "counts" not in trained


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_killed_in_every_phase_and_resumed_equals_uninterrupted(finished, ray_cluster, tmp_path, small):
    """SIGKILL to the driver, in one phase after another."""
    spec_file, run_dir = tmp_path / "small.yaml", tmp_path / "killed"
    small["cluster"]["address"] = ray_cluster
    spec_file.write_text(yaml.safe_dump(small))
    resumed = ["resume", str(run_dir)]
    teach, decide = "learner: teach", "allocator: decide"
    kills = [
        (teach, teach, 2, ["train", str(spec_file), "--run-dir", str(run_dir)]),
        (teach, "workers: collect", 1, resumed),
        (decide, decide, 2, resumed),
        (decide, "workers: submit", 1, resumed),
        (decide, "workers: collect", 1, resumed),
        (decide, "allocator: observe", 1, resumed),
        (decide, "learner: update", 2, resumed),
        (decide, "weights of version", 2, resumed),
        (decide, "learner: save", 1, resumed),
    ]
    for first, what, count, args in kills:
        command = [sys.executable, str(KILL_AT), first, what, str(count), *args]
        killed = subprocess.run(command, capture_output=True, timeout=300)
        assert killed.returncode == -9, (what, killed.stderr[-2000:])
    resume(run_dir, Display("killed"))
    run = RunDirectory(run_dir)
    rolled_out = [(e["epoch"], e["reward_sums"]) for e in run.events() if e["event"] == "rolled_out"]
    assert rolled_out == [(e["epoch"], e["reward_sums"]) for e in finished.events() if e["event"] == "rolled_out"]
    assert without_times(run.metrics()) == without_times(finished.metrics())
    assert decisions(run) == decisions(finished)
    ours, theirs = (json.loads((r.path / "summary.json").read_text()) for r in (run, finished))
    assert ours["evaluation"] == theirs["evaluation"]
    assert ours["rollouts"]["spent"] == theirs["rollouts"]["spent"]
    assert ours["rollouts"]["lost"] > 0


def test_a_batch_is_filled_over_epochs_of_one_weight_version_under_a_token_budget(under_tokens):
    """DAPO's dynamic sampling: an update waits until enough groups teach something; tokens are the budget."""
    summary, rows = json.loads((under_tokens.path / "summary.json").read_text()), under_tokens.metrics()
    assert 0 < summary["rollouts"]["tokens"] == rows[-1]["spent_tokens"] <= 1200
    versions = [row["weight_version"] for row in rows]
    held = [row["updates"] == 0 for row in rows]
    assert any(held[:-1])
    assert not held[-1] or rows[-1]["effective_share"] == 0
    assert all(now == before for now, before, wait in zip(versions[1:], versions, held[1:], strict=False) if wait)
    assert len(list(replayed(under_tokens))) == len(rows)


def test_a_finished_or_foreign_run_directory_is_refused(finished, ray_cluster, small):
    with pytest.raises(BadInput, match="is finished"):
        resume(finished.path, Display("again"))
    with pytest.raises(BadInput, match="another spec"):
        train(spec_of(small, ray_cluster, seed=4), finished.path, Display("other"))


@pytest.mark.parametrize(("reward", "says"), [("broken", "KeyError"), ("not_a_number", "nan")])
def test_a_reward_that_raises_or_returns_nan_stops_the_run_and_is_named(ray_cluster, tmp_path, small, reward, says):
    small["task"]["reward"] = f"rewards:{reward}"
    small["recipe"] = [{"stage": "evaluate"}]
    small["rollout"]["workers"] = small["learner"]["ranks"] = 1
    with pytest.raises(RunFailed, match=f"rewards:{reward}.*{says}"):
        train(spec_of(small, ray_cluster), tmp_path / "run", Display("bad reward"))


def test_a_cluster_that_cannot_hold_the_bundles_says_what_is_asked_and_there(ray_cluster, tmp_path, small):
    small["rollout"]["workers"] = 7
    small["limits"] = {"placement_timeout_s": 1}
    with pytest.raises(RunFailed, match=r"asked CPU 7 in bundles of CPU 1.*has CPU 2"):
        train(spec_of(small, ray_cluster), tmp_path / "run", Display("too big"))
