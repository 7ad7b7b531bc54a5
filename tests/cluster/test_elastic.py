"""Workers come with nodes that Ray's autoscaler adds, and go when they are not needed, and so do the nodes."""

import itertools
from statistics import median

import pytest
from nodes import Nodes, events, finished, until

from cluster.checkpoint import RunDirectory

pytestmark = [pytest.mark.stack, pytest.mark.chaos, pytest.mark.timeout(900)]
EPOCHS, ROLLOUTS = 400, 48
ENOUGH_EPOCHS = 20
"""For a median: two workers may come within one epoch."""
AUTOSCALING = {
    "cluster_name": "elastic",
    "max_workers": 3,
    "upscaling_speed": 10.0,
    "idle_timeout_minutes": 0.1,
    "auth": {},
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "cpu": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 3},
    },
    "head_node_type": "ray.head.default",
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    "rsync_exclude": [],
    "rsync_filter": [],
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
    "docker": {},
}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    cluster = Nodes(tmp_path_factory.mktemp("ray"), AUTOSCALING)
    yield cluster
    cluster.stop()


def test_workers_join_and_leave_with_the_autoscaler_and_nothing_is_lost(nodes, small, tmp_path):
    small["run"] |= {"deterministic": False, "checkpoint_every_epochs": 100}
    small["learner"]["ranks"] = 1
    small["rollout"] |= {"workers": {"min": 1, "max": 3}, "max_running_requests": 16}
    small["allocator"] |= {"budget_rollouts": EPOCHS * ROLLOUTS, "max_units_per_prompt": 2, "policy": "uniform"}
    small["recipe"] = [
        {"stage": "pretrain", "steps": 12, "batch_examples": 32, "learning_rate": 1e-3},
        {"stage": "rl", "epochs": EPOCHS},
        {"stage": "sft", "steps": 1500, "batch_examples": 8, "learning_rate": 1e-5},
    ]
    small["limits"] = {"placement_timeout_s": 200}
    run_dir = tmp_path / "elastic"
    process = nodes.run(small, run_dir)
    until("three workers", lambda: len(events(run_dir, "worker_joined")) >= 2 or process.poll() is not None)
    most = len(nodes.raylets()) - 1
    until("two workers to go", lambda: len(events(run_dir, "worker_retired")) >= 2 or process.poll() is not None)
    until("two nodes to go", lambda: len(nodes.raylets()) - 1 <= 1, 120)
    summary = finished(process, run_dir)
    assert most == 3
    assert (summary["workers"]["lost"], summary["restarts"], summary["rollouts"]["lost"]) == (0, 0, 0)
    rolled_out = [event["epoch"] for event in events(run_dir, "rolled_out")]
    assert rolled_out == list(range(summary["epochs"]))
    assert sum(event["rollouts"] for event in events(run_dir, "rolled_out")) == summary["rollouts"]["spent"]
    by_workers = throughput(run_dir)
    print({n: f"{median(rates):.0f} rollouts/s over {len(rates)} epochs" for n, rates in by_workers.items()})
    rates = [median(by_workers[n]) for n in (1, 2, 3) if len(by_workers.get(n, ())) >= ENOUGH_EPOCHS]
    assert len(rates) > 1
    assert all(later > earlier for earlier, later in itertools.pairwise(rates)), rates


def throughput(run_dir) -> dict[int, list[float]]:
    """Rollouts per second of each epoch, by the number of workers that it had from its beginning to its end."""
    run = RunDirectory(run_dir)
    workers, at_start, rates = 1, 1, {}
    seconds = {row["epoch"]: row["time"]["rollout_s"] for row in run.metrics()}
    for event in run.events():
        workers += (event["event"] == "worker_joined") - (event["event"] in ("worker_retired", "worker_lost"))
        if event["event"] == "decided":
            at_start = workers
        elif event["event"] == "rolled_out" and workers == at_start:
            rates.setdefault(workers, []).append(event["rollouts"] / seconds[event["epoch"]])
    return rates
