"""How far one driver reaches: `python benchmarks/pacing.py {scale,limit,ray,memory,store}`: results/pacing.json.

The driver is the real one, over workers whose engines sleep (benchmarks/sleeping.py). `scale`: what a message costs
the driver on Ray here, and with that 1 to 2,048 workers in virtual time (benchmarks/virtual.py), against a driver that
takes no time; `limit`: the same where each worker needs the driver four times as often. `ray`: 1 to 64 workers on Ray,
and what the simulation says of them. `memory`: what the driver's process holds over 10,000 epochs in virtual time, a
worker lost now and then. `store`: the object store over 480 epochs on Ray, as many as epochs of a minute are in 8
hours, weights published after each.
"""

import dataclasses
import gc
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
import tracemalloc
from array import array
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "token")  # read when ray is imported
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import yaml

from actors.figures import resident_bytes
from benchmarks.overhead import cpu_name
from benchmarks.pacing_ray import local_ray, measured_costs, sleeping_run
from benchmarks.sleeping import Pace
from benchmarks.virtual import Simulation
from benchmarks.virtual_ray import Costs
from cluster.checkpoint import RunDirectory
from cluster.lines import write_atomically
from cluster.sinks import Sinks
from cluster.spec import Spec, parse_spec

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "pacing.json"
GROUPS_PER_WORKER = 16
"""Of 8 responses: twice what an engine has slots for."""
ON_RAY, VIRTUAL, BEYOND = (1, 4, 16, 64), (1, 4, 16, 64, 256, 512, 1024, 2048), (256, 512, 1024, 2048)


def spec_of(workers: int, groups: int, epochs: int, group_rollouts: int = 8, **sections: dict[str, Any]) -> Spec:
    data = yaml.safe_load((HERE / "pacing.yaml").read_text())
    data["recipe"][0]["epochs"] = epochs
    size = group_rollouts * groups
    data["allocator"] |= {
        "unit_rollouts": group_rollouts, "budget_rollouts": size * epochs, "max_rollouts_per_epoch": size
    }  # fmt: skip
    data["rollout"]["workers"] = workers
    for name, fields in sections.items():
        data[name] = data.get(name, {}) | fields
    return parse_spec(data, "pacing.yaml")


# Scale.


def scale() -> dict[str, Any]:
    pace = Pace()
    with local_ray():
        costs, table = measured_costs(tokens=211)
    print(json.dumps(table), flush=True)
    # The driver is charged in processor time, so that simulations may run beside each other.
    with ProcessPoolExecutor(4, multiprocessing.get_context("spawn")) as pool:
        ideal = pool.submit(virtual_with, 64, pace, Costs())
        charged = [pool.submit(virtual_with, workers, pace, costs) for workers in reversed(VIRTUAL)]
        each = ideal.result()["groups_per_s"] / 64
        rows = [told(compared(run.result(), each)) for run in reversed(charged)]
    return {
        "pace": dataclasses.asdict(pace),
        "groups_per_worker": GROUPS_PER_WORKER,
        "message_costs_s": table,
        "ideal_groups_per_s_per_worker": each,
        "rows": rows,
    }


def limit() -> dict[str, Any]:
    """Engines that give four tokens a step, so that every worker needs the driver four times as often."""
    pace = Pace(tokens_per_step=4)
    with local_ray():
        costs, table = measured_costs(tokens=211)
    with ProcessPoolExecutor(4, multiprocessing.get_context("spawn")) as pool:
        pairs = [[pool.submit(virtual_with, workers, pace, these) for these in (costs, Costs())] for workers in BEYOND]
        rows = []
        for charged, ideal in pairs:
            run, free = charged.result(), ideal.result()
            share = {
                "share_of_ideal": run["groups_per_s"] / free["groups_per_s"],
                "share_of_ideal_phase": free["rollout_s"] / run["rollout_s"],
            }
            rows.append(told(run | share))
    return {
        "pace": dataclasses.asdict(pace), "groups_per_worker": GROUPS_PER_WORKER, "message_costs_s": table, "rows": rows
    }  # fmt: skip


def on_ray() -> dict[str, Any]:
    pace = Pace(tokens_per_step=4)
    with local_ray(1024):
        costs, table = measured_costs(tokens=211)
        print(json.dumps(table), flush=True)
        rows = [told(on_ray_with(workers, pace, costs)) for workers in ON_RAY]
    return {
        "pace": dataclasses.asdict(pace), "groups_per_worker": GROUPS_PER_WORKER, "message_costs_s": table, "rows": rows
    }  # fmt: skip


def told(row: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(row), flush=True)
    return row


def on_ray_with(workers: int, pace: Pace, costs: Costs) -> dict[str, Any]:
    """The second of two epochs, and what the simulation says of it."""
    groups = GROUPS_PER_WORKER * workers
    spec = spec_of(workers, groups, 2)
    with sleeping_run(spec, pace, 2 * groups) as driver:
        main_s, process_s = time.thread_time(), time.process_time()
        driver.run_stages()
        main_s, process_s = time.thread_time() - main_s, time.process_time() - process_s
        row = driver.run.metrics()[-1]
        rate = came_back(driver.run, groups, 1)
    with tempfile.TemporaryDirectory() as scratch:
        simulation = Simulation(spec, pace, 2 * groups, Path(scratch), costs, learn_s=0.5)
        simulation.carry_out()
        foretold, foretold_rate = simulation.run.metrics()[-1]["time"], came_back(simulation.run, groups, 1)
    return {
        "workers": workers,
        "rollout_s": row["time"]["rollout_s"],
        "rollout_s_simulated": foretold["rollout_s"],
        "groups_per_s": rate,
        "groups_per_s_simulated": foretold_rate,
        "driver_ms_per_group": {"main_thread": 500 * main_s / groups, "process": 500 * process_s / groups},
        "driver_ms_per_group_simulated": 500 * simulation.ray.driver_s / groups,
    }


def virtual_with(workers: int, pace: Pace, costs: Costs) -> dict[str, Any]:
    """One epoch."""
    groups = GROUPS_PER_WORKER * workers
    spec = spec_of(workers, groups, 1)
    with tempfile.TemporaryDirectory() as scratch:
        simulation = Simulation(spec, pace, 2 * groups, Path(scratch), costs)
        simulation.carry_out()
        row, rate = simulation.run.metrics()[0], came_back(simulation.run, groups, 0)
    ray, rollout_s = simulation.ray, row["time"]["rollout_s"]
    return {
        "workers": workers,
        "rollout_s": rollout_s,
        "tokens_per_s": row["tokens"] / rollout_s,
        "groups_per_s": rate,
        "driver_ms_per_group": 1e3 * ray.driver_s / groups,
        "own_code_ms_per_group": 1e3 * ray.code_s / groups,
        "messages_per_group": ray.messages / groups,
    }


def compared(run: dict[str, Any], each: float) -> dict[str, Any]:
    """With a driver that takes no time, under which every worker gives `each` groups per second."""
    return run | {"share_of_ideal": run["groups_per_s"] / (each * run["workers"])}


def came_back(run: RunDirectory, groups: int, epoch: int) -> float:
    """Groups per second of an epoch, from the moment when a quarter was back to that when three quarters were: with the
    engines full, before the tail."""
    times = [
        event["time_s"]
        for event in run.events()
        if event["event"] == "completed"
        for group_id in event["groups"]
        if group_id.startswith(f"{epoch}/")
    ]
    assert len(times) == groups
    return (groups / 2) / (times[3 * groups // 4] - times[groups // 4])


# Memory and object store.


class Probe(Sinks):
    """Looks once every few epochs, where a sink is told of the epoch."""

    def __init__(self, run: RunDirectory, every: int, looks: Callable[[], dict[str, float]]) -> None:
        super().__init__([], run, "probe")
        self._every, self._looks = every, looks
        self._names: list[str] = []
        self._seen = array("d")  # a list of dictionaries would be the largest thing that grows

    def epoch(self, row: dict[str, Any]) -> None:
        if row["epoch"] % self._every == 0:
            found = {"epoch": float(row["epoch"]), **self._looks()}
            self._names = list(found)
            self._seen.extend(found.values())

    @property
    def rows(self) -> list[dict[str, float]]:
        width = len(self._names)
        return [
            dict(zip(self._names, self._seen[i : i + width], strict=True)) for i in range(0, len(self._seen), width)
        ]


def memory(epochs: int = 10_000) -> dict[str, Any]:
    """Live Python memory and resident memory of the driver's process, engines and actors of the simulation included."""
    groups, every = 8, max(1, epochs // 200)
    pace = Pace(median_tokens=16, max_tokens=64, prompt_tokens=20)
    limits = {"worker_restarts": 1_000_000}
    spec = spec_of(2, groups, epochs, group_rollouts=4, limits=limits)

    def looks() -> dict[str, float]:
        next(iter(simulation.driver.workers.handles.values())).dies()  # another takes its place
        gc.collect()
        return {"live_bytes": tracemalloc.get_traced_memory()[0], "resident_bytes": resident_bytes()}

    with tempfile.TemporaryDirectory() as scratch:
        gc.freeze()  # what the imports left is not looked through every time
        tracemalloc.start()
        simulation = Simulation(spec, pace, 64, Path(scratch), Costs(), learn_s=0.1)
        probe = simulation.driver.sinks = Probe(simulation.run, every, looks)
        began = time.perf_counter()
        summary = simulation.carry_out()
        tracemalloc.stop()
    assert summary["rollouts"]["spent"] == 4 * groups * epochs
    rows = probe.rows[::10]
    return {
        "epochs": epochs,
        "workers_lost": summary["workers"]["lost"],
        "live": slope(rows, "live_bytes"),
        "resident": slope(rows, "resident_bytes"),
        "took_s": time.perf_counter() - began,
        "rows": rows,
    }


def store(epochs: int = 480) -> dict[str, Any]:
    pace = Pace(step_s=0.002, step_per_response_s=0, median_tokens=32, max_tokens=256)
    groups = 64
    spec = spec_of(8, groups, epochs)
    with local_ray(256), sleeping_run(spec, pace, 256, learn_s=0.05, weights_mib=16) as driver:
        probe = driver.sinks = Probe(driver.run, 2, store_figures)
        began = time.perf_counter()
        summary = driver.run_stages()
        took_s = time.perf_counter() - began
    return {
        "epochs": epochs,
        "weight_mib_per_epoch": 16,
        "rollouts": summary["rollouts"],
        "used": slope(probe.rows, "used_bytes"),
        "used_max_bytes": max(row["used_bytes"] for row in probe.rows),
        "spilled_bytes": probe.rows[-1]["spilled_bytes"],
        "objects": slope(probe.rows, "objects"),
        "took_s": took_s,
        "rows": probe.rows,
    }


def store_figures() -> dict[str, float]:
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    address = ray.get_runtime_context().gcs_address
    stats = get_memory_info_reply(get_state_from_address(address)).store_stats
    return {
        "used_bytes": stats.object_store_bytes_used,
        "objects": stats.num_local_objects,
        "spilled_bytes": stats.spilled_bytes_total,
    }


def slope(rows: list[dict[str, float]], key: str) -> dict[str, float]:
    """Per epoch, after a fifth of the epochs as warm-up: the median of the rises from look to look, with a 95 %
    interval from their order, and what a single step may hide from a median: the largest rise, first and last value."""
    kept = rows[len(rows) // 5 :]
    epochs, values = (np.array([row[name] for row in kept], float) for name in ("epoch", key))
    rises = np.sort(np.diff(values) / np.diff(epochs))
    low = max(int(len(rises) / 2 - 0.98 * len(rises) ** 0.5), 0)
    return {
        "per_epoch": float(np.median(rises)), "low": float(rises[low]), "high": float(rises[-1 - low]),
        "first": float(values[0]), "last": float(values[-1]), "largest_rise": float(np.diff(values).max()),
    }  # fmt: skip


COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {
    "scale": scale,
    "limit": limit,
    "ray": on_ray,
    "memory": memory,
    "store": store,
}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        raise SystemExit(f"python benchmarks/pacing.py {{{','.join(COMMANDS)}}} [EPOCHS]")
    report = COMMANDS[sys.argv[1]](*map(int, sys.argv[2:]))
    whole = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    whole[sys.argv[1]] = {
        "command": " ".join(["python", "benchmarks/pacing.py", *sys.argv[1:]]),
        "machine": {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()},
        "report": report,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    write_atomically(RESULTS, json.dumps(whole, indent=1) + "\n")
    print(
        json.dumps(
            {key: value for key, value in report.items() if key != "rows" or sys.argv[1] in ("scale", "limit", "ray")}
        )
    )


if __name__ == "__main__":
    main()
