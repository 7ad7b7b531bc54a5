"""The real driver over many sleeping workers, in virtual time: nothing is lost, more workers do more, nothing grows."""

import gc
import json
import random
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.pacing import spec_of
from benchmarks.sleeping import Pace
from benchmarks.virtual import Simulation
from benchmarks.virtual_ray import Costs
from cluster.sinks import Sinks

SHORT = Pace(slots=32, median_tokens=16, max_tokens=64, prompt_tokens=8)
COSTS = Costs(call_s=1e-4, wait_s=1e-4, get_s=1e-4, group_s=1e-4)


def events(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "journal.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("workers", [1, 3, 16, 64])
def test_every_group_is_spent_exactly_once_whatever_workers_are_lost(workers, tmp_path):
    groups, epochs, blows = 8 * workers, 2, random.Random(workers)
    limits = {"worker_restarts": 1000, "group_attempts": 1000, "worker_timeout_s": 2.0}
    spec = spec_of(workers, groups, epochs, group_rollouts=4, limits=limits)
    simulation = Simulation(spec, SHORT, 2 * groups, tmp_path, COSTS, learn_s=0.1, start_s=0.5)

    def strike() -> None:
        if handles := sorted(simulation.workers.items()):
            _, worker = blows.choice(handles)
            worker.dies() if blows.random() < 0.5 else worker.hang()

    for blow in range(6):
        simulation.clock.at(0.05 + 0.3 * blow, strike)
    summary = simulation.carry_out()

    happened = events(tmp_path)
    completed = Counter(group for event in happened if event["event"] == "completed" for group in event["groups"])
    decided = [f"{e['epoch']}/{p}" for e in happened if e["event"] == "decided" for p in e["prompts"]]
    assert completed == Counter(decided)
    assert len(decided) == groups * epochs
    assert (summary["rollouts"]["spent"], summary["rollouts"]["lost"]) == (4 * groups * epochs, 0)
    assert summary["workers"]["lost"] >= min(workers, 2)
    assert any(event["event"] == "reissued" for event in happened)


def test_throughput_rises_with_the_workers(tmp_path):
    rates = []
    for workers in (1, 4, 16, 64):
        groups = 24 * workers
        simulation = Simulation(spec_of(workers, groups, 1), SHORT, groups, tmp_path / str(workers), COSTS)
        rates.append(simulation.carry_out()["speed"]["tokens_per_s"] / workers)
    assert min(rates) > 0.7 * max(rates)


def test_a_driver_whose_messages_are_dear_still_has_time_in_the_tail(tmp_path):
    """Workers become idle one after another; each time all of them could be asked what they have."""
    slow, workers = Costs(call_s=5e-3, wait_s=1e-4), 64
    tail = Pace(slots=32, median_tokens=100, max_tokens=1024, prompt_tokens=8)
    simulation = Simulation(spec_of(workers, 2 * workers, 1), tail, 2 * workers, tmp_path, slow)
    rollout_s = simulation.carry_out()["speed"]["rollout_s"]
    assert simulation.ray.driver_s < 0.7 * rollout_s


def test_the_driver_holds_no_more_after_300_epochs_than_after_100(tmp_path):
    held: dict[int, int] = {}

    class Look(Sinks):
        def epoch(self, row: dict) -> None:
            if row["epoch"] in (100, 290):
                gc.collect()
                held[row["epoch"]] = tracemalloc.get_traced_memory()[0]
            if row["epoch"] % 20 == 10:
                next(iter(simulation.workers.values())).dies()

    limits = {"worker_restarts": 1000}
    spec = spec_of(2, 4, 300, group_rollouts=2, limits=limits)
    gc.freeze()
    tracemalloc.start()
    try:
        simulation = Simulation(spec, SHORT, 16, tmp_path, Costs(), learn_s=0.1)
        simulation.driver.sinks = Look([], simulation.run, "look")
        simulation.carry_out()
    finally:
        tracemalloc.stop()
        gc.unfreeze()
    assert held[290] - held[100] < 50_000  # a group kept per epoch would be six times that
