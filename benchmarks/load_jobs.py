"""Jobs on a Ray head of two CPUs: how soon the first group is there, and twenty of them at once. Part of load.py."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from benchmarks.overhead import spread
from benchmarks.ray_head import ray_head
from cluster.jobs import Job, Jobs
from cluster.spec import Spec, parse_spec

ROOT = Path(__file__).parents[1]
LIMIT_S = 1500.0
LOOK_S = 2.0


def small(directory: Path, name: str, epochs: int, workers: int) -> dict[str, Any]:
    """The tests' small model and task, on `workers` CPUs."""
    data = yaml.safe_load((ROOT / "tests" / "small.yaml").read_text())
    data["run"] |= {"directory": str(directory), "name": name}
    del data["task"]["reward"]  # a module of the tests
    data["recipe"] = [{"stage": "rl", "epochs": epochs}]
    data["allocator"] |= {"budget_rollouts": 8 * epochs, "max_rollouts_per_epoch": 8}
    data["rollout"]["workers"], data["learner"]["ranks"] = workers, workers
    return data


def first(runs: int = 5) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Seconds from the start of `tailrace submit` to what happens then."""
    found = []
    with tempfile.TemporaryDirectory() as scratch, ray_head() as (address, env):
        os.environ |= env
        for number in range(runs):
            data = small(Path(scratch), f"first-{number}", 1000, 2)
            path = Path(scratch) / "spec.yaml"
            path.write_text(yaml.safe_dump(data))
            cli = [sys.executable, "-m", "cluster.cli"]
            began = time.time()
            subprocess.run([*cli, "submit", path, "--address", address], check=True, capture_output=True)
            submitted_s = time.time() - began
            run_dir = Path(scratch) / data["run"]["name"]
            happened = _until_completed(run_dir / "journal.jsonl", began + LIMIT_S)
            found.append(
                {
                    "submitted": submitted_s,
                    "job_began": (run_dir / "inputs").stat().st_mtime - began,
                    "driver_began": (run_dir / ".lock").stat().st_mtime - began,
                    **{name: happened[name] - began for name in ("run_started", "dispatched", "completed")},
                    "load_1min": os.getloadavg()[0],
                }
            )
            print(json.dumps(found[-1]), flush=True)
            subprocess.run([*cli, "stop", data["run"]["name"], "--address", address], check=True, capture_output=True)
    return {name: spread([run[name] for run in found]) for name in found[0]} | {"target": "completed < 30"}, found


def _until_completed(journal: Path, deadline: float) -> dict[str, float]:
    """When each event first happened, on the clock of time.time."""
    while time.time() < deadline:
        lines = journal.read_text().splitlines() if journal.is_file() else []
        times: dict[str, float] = {}
        for line in lines:
            with contextlib.suppress(ValueError):  # the last line is just being written
                event = json.loads(line)
                times.setdefault(event["event"], event["time_s"])
        if "completed" in times:
            return times
        time.sleep(0.2)
    raise SystemExit(f"{journal}: no group within {LIMIT_S:g} s")


def twenty(jobs: int = 20) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Every look at every job: running, finished, or waiting and for what."""
    epochs = 2
    with tempfile.TemporaryDirectory() as scratch, ray_head() as (address, env):
        os.environ |= env
        began = time.monotonic()

        def submit(number: int) -> str:
            spec: Spec = parse_spec(small(Path(scratch), f"job-{number:02d}", epochs, 1), "small.yaml")
            return Jobs(address).submit(spec, 3, 86400, None, [])[0].run

        with ThreadPoolExecutor(jobs) as pool:
            names = set(pool.map(submit, range(jobs)))
        submitted_s = time.monotonic() - began
        server, looks = Jobs(address), []
        while not looks or looks[-1].keys() - {"seconds", "finished"}:
            there = {job.run: job for job in server.all()}
            assert names == there.keys(), f"lost: {sorted(names - there.keys())}"
            states = Counter(_state(server, job) for job in there.values())
            looks.append({"seconds": round(time.monotonic() - began, 1), **states})
            print(json.dumps(looks[-1]), flush=True)
            assert time.monotonic() - began < LIMIT_S, looks[-1]
            time.sleep(LOOK_S)
        summaries = [json.loads((Path(scratch) / name / "summary.json").read_text()) for name in sorted(names)]
    spent = [summary["rollouts"]["spent"] for summary in summaries]
    unexplained = sum(look.get("waits without a reason", 0) + look.get("failed", 0) for look in looks)
    report = {
        "jobs": len(names), "submitted_s": submitted_s, "all_finished_s": looks[-1]["seconds"], "looks": len(looks),
        "looks_without_a_reason": unexplained, "budgets_spent": sum(count == 8 * epochs for count in spent),
        "rollouts_lost": sum(summary["rollouts"]["lost"] for summary in summaries),
    }  # fmt: skip
    return report, looks


def _state(server: Jobs, job: Job) -> str:
    if job.status == "SUCCEEDED":
        return "finished"
    if job.status == "PENDING":
        return "waits with a reason" if job.reason else "waits without a reason"
    if job.status == "RUNNING":
        return "waits with a reason" if server.waits_for(job) else "running"
    return "failed"
