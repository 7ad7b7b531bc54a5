"""The endpoint serves what the rows say, under the documented names."""

import contextlib
import json
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from small_spec import small

from actors.figures import WorkerFigures
from allocator import AllocatorSpec
from cluster.errors import RunFailed
from cluster.fleet import Fleet, State
from cluster.launch import _metrics
from cluster.metrics import METRICS, Metrics, announced, table
from cluster.spec import parse_spec
from trainer.types import BadInput

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
WORKER = WorkerFigures(
    resident_bytes=7 * 10**8, steps=40, busy_s=1.75, request_steps=320, running=3, waiting=1, running_peak=16,
    waiting_peak=5, kv_cache_peak=0.375, prompt_tokens=200, generated_tokens=480, prefix_queries=190, prefix_hits=160,
    preemptions=2, grading_s=0.25, ungraded_peak=4,
)  # fmt: skip
ROW = {
    "stage": "rl",
    "epoch": 2,
    "groups": 3,
    "rollouts": 12,
    "tokens": 480,
    "spent_rollouts": 24,
    "reward_mean": 0.25,
    "effective_share": 0.5,
    "response_tokens_mean": 40.0,
    "truncated_share": 0.125,
    "updates": 1,
    "skipped": 1,
    "dropped": 1,
    "loss": -0.5,
    "grad_norm": 1.5,
    "learning_rate": 1e-4,
    "entropy": 0.75,
    "logprob_gap_mean": 0.001,
    "logprob_gap_max": 0.01,
    "mismatch_kl": 0.002,
    "effective_sample_share": 0.9,
    "ratio_clipped_share": 0.125,
    "mismatch_clipped_share": 0.0625,
    "spent_tokens": 960.0,
    "sampled_share": 0.25,
    "posterior_mean": 0.4,
    "posterior_prompts": {"0.1": 3, "1.0": 1},
    "price": 0.4,
    "weight_version": 5,
    "families": {"gcd": 0.5, "chain_sum": 0.0},
    "speculation": {
        "accept_length": 2.5,
        "draft_tokens": 60,
        "accepted_tokens": 30,
        "acceptance_by_position": [0.75, 0.5],
        "draft_tokens_by_running": {"1": 4.0, "8": 1.5},
        "enabled_steps_fraction": 0.9,
        "drafter_version": 3,
        "is_off": 1,
    },
    "bubbles": {
        "idle_by_worker": {"rollout-0": 1.5},
        "harvested_by_worker": {"rollout-0": 1.25},
        "drafter_steps": 12,
        "critical_s": 0.5,
        "drafter_loss": 0.7,
        "resident_by_worker": {"rollout-0": 3e8},
    },
    "workers": {
        "unanswered_s": {"rollout-0": 12.5, "rollout-1": 0.0},
        **{name: {"rollout-0": value, "rollout-1": 2 * value} for name, value in WORKER.row().items()},
    },
    "actors": {
        "learner": {
            "resident_bytes": {"0": 5e8},
            "peak_bytes": {"0": 6e8},
            "busy_s": {"0": 2.5},
            "learning_s": {"0": 1.5},
            "tokens": {"0": 900},
        },
        "allocator": {"resident_bytes": 1e8, "decide_s": 0.25},
        "driver": {"resident_bytes": 4e8},
    },
    "time": {
        "decide_s": 0.5,
        "rollout_s": 2.0,
        "learn_s": 1.0,
        "publish_s": 0.25,
        "other_s": 0.0,
        "tokens_per_s": 240.0,
    },
}


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    metrics = Metrics(0, AllocatorSpec(budget_rollouts=100, max_rollouts_per_epoch=8))
    yield metrics
    metrics.close()


def served(metrics: Metrics) -> dict[str, float]:
    """Samples by name and labels, as a scraper sees them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics.port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def test_a_row_is_served(metrics):
    metrics.observe_epoch(ROW)
    samples = served(metrics)
    assert samples['tailrace_stage_info{stage="rl"}'] == 1
    assert samples["tailrace_rollouts_total"] == 12
    assert samples["tailrace_tokens_total"] == 480
    assert samples["tailrace_budget_rollouts"] == 100
    assert samples["tailrace_spent_rollouts"] == 24
    assert samples["tailrace_reward_mean"] == 0.25
    assert samples['tailrace_family_reward_mean{family="gcd"}'] == 0.5
    assert samples["tailrace_effective_group_ratio"] == 0.5
    assert samples["tailrace_loss"] == -0.5
    assert samples["tailrace_logprob_gap_mean_nats"] == 0.001
    assert samples["tailrace_effective_sample_ratio"] == 0.9
    assert samples["tailrace_weight_version"] == 5
    assert samples['tailrace_phase_seconds_total{phase="rollout"}'] == 2
    assert samples["tailrace_tokens_per_second"] == 240


def test_counters_add_up_gauges_do_not(metrics):
    metrics.observe_epoch(ROW)
    metrics.observe_epoch({**ROW, "epoch": 3, "stage": "evaluate"})
    samples = served(metrics)
    assert samples["tailrace_rollouts_total"] == 24
    assert samples['tailrace_phase_seconds_total{phase="learn"}'] == 2
    assert samples["tailrace_epoch"] == 3
    assert samples['tailrace_stage_info{stage="evaluate"}'] == 1
    assert 'tailrace_stage_info{stage="rl"}' not in samples


def test_what_a_row_does_not_say_stays(metrics):
    metrics.observe_epoch(ROW)
    metrics.observe_epoch({"epoch": 3, "loss": None, "groups": 0})
    samples = served(metrics)
    assert samples["tailrace_epoch"] == 3
    assert samples["tailrace_loss"] == -0.5
    assert samples["tailrace_reward_mean"] == 0.25


def test_parts_of_a_row_and_their_labels_are_fed(metrics):
    metrics.observe_epoch(ROW)
    metrics.observe_epoch(ROW)
    samples = served(metrics)
    assert samples["tailrace_draft_tokens_total"] == 120
    assert samples['tailrace_draft_acceptance_ratio{position="2"}'] == 0.5
    assert samples['tailrace_draft_tokens_chosen_mean{running="8"}'] == 1.5
    assert samples['tailrace_harvested_seconds_total{worker="rollout-0"}'] == 2.5
    metrics.observe_epoch({"speculation": {"accept_length": None}, "bubbles": {}})
    assert served(metrics)["tailrace_accept_length"] == 2.5


def test_what_actors_say_of_themselves_is_served_and_that_of_workers_that_are_gone_no_more(metrics):
    metrics.observe_epoch(ROW)
    metrics.observe_epoch(ROW)
    samples = served(metrics)
    assert samples['tailrace_worker_steps_total{worker="rollout-1"}'] == 160
    assert samples['tailrace_worker_kv_cache_peak_ratio{worker="rollout-0"}'] == 0.375
    assert samples['tailrace_worker_unanswered_seconds{worker="rollout-0"}'] == 12.5
    assert samples['tailrace_learner_learning_seconds_total{rank="0"}'] == 3
    assert samples["tailrace_allocator_decide_seconds_total"] == 0.5
    assert samples["tailrace_driver_resident_memory_bytes"] == 4e8
    metrics.keep_workers({"rollout-1"})
    left = served(metrics)
    assert not [name for name in left if "rollout-0" in name]
    assert left.keys() == {name for name in samples if "rollout-0" not in name}


def test_the_stage_is_told_outside_epochs_too(metrics):
    metrics.stage("pretrain")
    metrics.stage("evaluate")
    samples = served(metrics)
    assert samples['tailrace_stage_info{stage="evaluate"}'] == 1
    assert 'tailrace_stage_info{stage="pretrain"}' not in samples


def workers_of(metrics: Metrics) -> dict[str, float]:
    """Rollout workers by state, those states left out in which none is."""
    found = re.findall(r'tailrace_workers{state="(\w+)"}', "\n".join(served(metrics)))
    by_state = {state: served(metrics)[f'tailrace_workers{{state="{state}"}}'] for state in found}
    assert by_state.keys() == set(get_args(State))
    return {state: number for state, number in by_state.items() if number}


def fleet_of(*names: str) -> Fleet:
    """Workers in service."""
    fleet = Fleet(8.0, 10)
    for name in names:
        fleet.starts(name, 0)
        fleet.ready(name, 0)
        fleet.refitted(name, 0, 0)
    return fleet


def test_every_scrape_says_how_the_workers_are_at_that_moment(metrics):
    """Within a phase nobody tells the endpoint anything."""
    fleet = fleet_of("rollout-0", "rollout-1")
    metrics.follow(fleet)
    fleet.look(["rollout-0", "rollout-1"], 1)
    for now in (2, 3, 4, 5, 6):
        fleet.heard("rollout-0", now)
        fleet.look(["rollout-0", "rollout-1"], now)
    assert workers_of(metrics) == {"healthy": 1, "suspect": 1}
    fleet.lost("rollout-1", 7)
    assert workers_of(metrics) == {"healthy": 1, "dead": 1}
    assert served(metrics)["tailrace_workers_lost_total"] == 1
    fleet.starts("rollout-1", 8)
    assert workers_of(metrics) == {"healthy": 1, "restarting": 1}
    assert served(metrics)["tailrace_workers_lost_total"] == 1


def test_a_loss_that_takes_the_run_back_to_its_checkpoint_is_counted_once(metrics):
    for losses in (1, 2):
        fleet = fleet_of("rollout-0")
        metrics.follow(fleet)
        fleet.lost("rollout-0", 1)
        metrics.restarted()
        assert served(metrics)["tailrace_workers_lost_total"] == losses
        assert workers_of(metrics) == {}, "until there are new ones"
    metrics.follow(fleet_of("rollout-0"))
    assert served(metrics)["tailrace_workers_lost_total"] == 2
    assert workers_of(metrics) == {"healthy": 1}


def test_every_metric_is_fed(metrics):
    before = set(served(metrics).items())
    metrics.observe_epoch(ROW)
    metrics.restarted()
    metrics.stalled()
    fleet = fleet_of("rollout-0")
    metrics.follow(fleet)
    fleet.lost("rollout-0", 1)
    changed = {re.split(r"[{ ]", name)[0] for name, _ in set(served(metrics).items()) - before}
    assert {metric.name for metric in METRICS} - changed == {"tailrace_budget_rollouts", "tailrace_budget_tokens"}


def test_names_follow_the_conventions():
    for metric in METRICS:
        assert re.fullmatch(r"tailrace_[a-z0-9_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind.__name__ == "Counter")
    assert {metric.label for metric in METRICS} <= {
        None, "stage", "phase", "family", "success", "position", "running", "worker", "rank", "state",
    }  # fmt: skip


def test_docs_list_exactly_these_metrics(metrics):
    assert DOCS.read_text().endswith(table() + "\n"), "python -m cluster.metrics prints the table of docs/metrics.md"
    documented = set(re.findall(r"^\| `(\w+)`", DOCS.read_text(), re.MULTILINE))
    metrics.observe_epoch(ROW)
    assert documented == {re.split(r"[{ ]", name)[0] for name in served(metrics)}


def test_close_frees_the_port_and_may_be_repeated():
    metrics = Metrics(0)
    metrics.close()
    metrics.close()
    with pytest.raises(urllib.error.URLError):
        served(metrics)
    again = Metrics(metrics.port)
    assert again.port == metrics.port
    again.close()


def test_a_taken_port_is_an_os_error():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="in use"):
            Metrics(taken.getsockname()[1])


@pytest.mark.parametrize(("host", "asked"), [("127.0.0.2", "127.0.0.2"), ("localhost", "127.0.0.1")])
def test_it_listens_where_it_is_told_to(host, asked):
    with contextlib.closing(Metrics(host=host)) as metrics:
        assert metrics.url == f"http://{host}:{metrics.port}/metrics"
        with urllib.request.urlopen(f"http://{asked}:{metrics.port}/metrics", timeout=10) as answer:
            assert b"tailrace_epoch" in answer.read()


@pytest.mark.parametrize("host", ["192.0.2.1", "a..b", "no.such.host.invalid"])
def test_a_host_that_is_not_this_machine_is_bad_input_by_its_field(host):
    spec = parse_spec(small() | {"cluster": {"metrics_host": host}}, "small")
    with pytest.raises(BadInput, match=rf"cluster\.metrics_host = {re.escape(host)}, cluster\.metrics_port = 0: "):
        _metrics(spec)


@pytest.mark.parametrize("host", ["", "http://x", "a b", "-x", "x" * 300])
def test_a_host_that_cannot_be_one_is_refused(host):
    with pytest.raises(BadInput, match=r"cluster\.metrics_host"):
        parse_spec(small() | {"cluster": {"metrics_host": host}}, "small")


def test_prometheus_is_told_of_a_run_until_it_ends_and_of_one_that_failed_until_it_is_resumed(tmp_path, monkeypatch):
    monkeypatch.setenv("TAILRACE_TARGETS", str(tmp_path))
    entry = tmp_path / "a.json"
    with pytest.raises(RunFailed, match="no more"), announced("a", "http://127.0.0.1:9108/metrics"):
        raise RunFailed("no more")
    assert json.loads(entry.read_text()) == [{"targets": ["127.0.0.1:9108"], "labels": {"run": "a"}}]
    with announced("a", "http://[::1]:9109/metrics"):
        assert json.loads(entry.read_text())[0]["targets"] == ["[::1]:9109"]
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt), announced("a", "http://[::1]:9109/metrics"):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("TAILRACE_TARGETS", str(tmp_path / "missing"))
    with (
        pytest.raises(RunFailed, match=r"missing/a.json: cannot be written"),
        announced("a", "http://[::1]:9109/metrics"),
    ):
        pass
