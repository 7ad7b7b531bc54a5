"""Debian's Prometheus scrapes real endpoints with the shipped configuration, and every panel has data."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from queries import DASHBOARDS, PROMETHEUS, expressions, panels

from allocator import AllocatorSpec
from cluster.metrics import METRICS, Metrics

DEADLINE_S = 150
WITHOUT_HARDWARE = {"GPU", "GPU memory", "Nodes on their way"}
"""Panels of what one CPU node has nothing to say about."""

pytestmark = pytest.mark.skipif(not shutil.which("prometheus"), reason="no prometheus: apt-get install prometheus")


def free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return chosen.getsockname()[1]


@contextmanager
def running(command: list[str], log: Path, env: dict[str, str] | None = None) -> Iterator[None]:
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out, env=env) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(60)


@contextmanager
def prometheus(folder: Path, runs: dict[str, int], dashboard_port: int = 1) -> Iterator[str]:
    """The server with the shipped configuration, but in a hurry; gives its address."""
    shutil.copytree(PROMETHEUS, folder, dirs_exist_ok=True)
    config = (folder / "prometheus.yml").read_text().replace("15s", "1s").replace(":8265", f":{dashboard_port}")
    (folder / "prometheus.yml").write_text(config)
    targets = [{"targets": [f"127.0.0.1:{port}"], "labels": {"run": run}} for run, port in runs.items()]
    (folder / "runs.yml").write_text(yaml.safe_dump(targets))
    (folder / "auth_token").touch()
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with running([*command, f"--web.listen-address={address}"], folder / "log"):
        yield f"http://{address}"


def answers(server: str, expression: str) -> list:
    url = f"{server}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]["result"]
    except urllib.error.URLError:  # not up yet
        return []


def silent(server: str, names: Iterable[str]) -> set[tuple[str, str]]:
    """Titles and expressions of panels that have no data."""
    shown = [
        (panel["title"], e)
        for path in DASHBOARDS
        if path.stem in names
        for panel in panels(path)
        for e in expressions(panel)
    ]
    return {(title, e) for title, e in shown if not answers(server, e)}


def a_row() -> dict:
    """A row of metrics.jsonl that feeds every metric."""
    row: dict = {}
    for metric in METRICS:
        if metric.row:
            *outer, key = metric.row.split(".")
            part = row
            for name in outer:
                part = part.setdefault(name, {})
            part[key] = {"1.0": 1.0} if metric.label else 1.0
    return {**row, "stage": "rl", "time": {"rollout_s": 1.0, "learn_s": 0.5, "tokens_per_s": 9.0}}


def test_every_panel_about_runs_has_data(tmp_path):
    budgets = {
        "by rollouts": AllocatorSpec(budget_rollouts=10**6, max_rollouts_per_epoch=8),
        "by tokens": AllocatorSpec(budget_tokens=10**6, max_rollouts_per_epoch=8),
    }
    with ExitStack() as stack:
        runs = {run: Metrics(0, budget) for run, budget in budgets.items()}
        for metrics in runs.values():
            stack.callback(metrics.close)
        server = stack.enter_context(prometheus(tmp_path, {run: metrics.port for run, metrics in runs.items()}))
        deadline = time.monotonic() + DEADLINE_S
        missing = None
        while missing != set() and time.monotonic() < deadline:
            time.sleep(1)
            for metrics in runs.values():
                metrics.observe_epoch(a_row())
            missing = silent(server, ["overview", "rollout", "budget", "learner"])
        assert not missing
        assert {sample["metric"]["run"] for sample in answers(server, "tailrace_epoch")} == set(runs)


@pytest.mark.stack
def test_ray_is_discovered_with_its_token_and_every_panel_about_it_has_data(tmp_path):
    port = free_port()
    (tmp_path / "auth_token").write_text("f" * 64)
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "auth_token")}
    ray = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=1"]
    ports = [f"--port={free_port()}", f"--dashboard-port={port}", f"--ray-client-server-port={free_port()}"]
    more = ["--object-store-memory=80000000", "--disable-usage-stats"]
    with (
        contextlib.closing(Metrics(0)) as metrics,
        TemporaryDirectory(prefix="ray-") as short,  # sockets in it may not have longer names
        running([*ray, *ports, *more, f"--temp-dir={short}"], tmp_path / "ray.log", env),
        prometheus(tmp_path, {"a run": metrics.port}, port) as server,
    ):
        metrics.observe_epoch(a_row())
        deadline = time.monotonic() + DEADLINE_S
        missing = None
        while missing != set() and time.monotonic() < deadline:
            time.sleep(2)
            missing = {m for m in silent(server, ["cluster"]) if m[0] not in WITHOUT_HARDWARE}
        assert not missing
        assert not answers(server, 'ALERTS{alertname="RayUndiscovered"}')
