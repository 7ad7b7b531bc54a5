"""A Ray cluster of several nodes on this machine, each a `ray start` of its own that can be killed, and runs in it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

from cluster.checkpoint import RunDirectory

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")
SLACK_S = 400.0
HEALTH = {
    "health_check_initial_delay_ms": 2000, "health_check_period_ms": 1000, "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}  # fmt: skip
"""A node that hangs is found in seconds; Ray's own settings take a minute."""


def free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return chosen.getsockname()[1]


def until(what: str, holds: Callable[[], Any], slack_s: float = SLACK_S) -> Any:
    deadline = time.monotonic() + slack_s
    while not (found := holds()):
        assert time.monotonic() < deadline, f"waited {slack_s:g} s for {what}"
        time.sleep(0.05)
    return found


class Nodes:
    """A head without cores, and nodes with one core each."""

    def __init__(self, directory: Path, autoscaling: dict[str, Any] | None = None) -> None:
        self.directory, self.port = directory, free_port()
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        path = os.pathsep.join([str(Path(__file__).parents[1]), str(ROOT), os.environ.get("PYTHONPATH", "")])
        self.env = kept | {
            "PATH": os.pathsep.join([str(Path(RAY).parent), os.environ["PATH"]]), "PYTHONPATH": path,
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "7f" * 32,
        }  # fmt: skip
        self._processes: list[subprocess.Popen] = []
        words = [
            "--head", f"--port={self.port}", "--num-cpus=0", "--include-dashboard=false", "--min-worker-port=0",
            "--max-worker-port=0", f"--temp-dir={directory}", f"--system-config={json.dumps(HEALTH)}",
        ]  # fmt: skip
        if autoscaling:
            config = directory / "autoscaling.yaml"
            provider = {
                "type": "fake_multinode", "gcs_address": f"127.0.0.1:{self.port}", "use_node_id_as_ip": True,
                "disable_node_updaters": True, "disable_launch_config_check": True,
            }  # fmt: skip
            config.write_text(yaml.safe_dump(autoscaling | {"provider": provider}))
            words.append(f"--autoscaling-config={config}")
        self._start(words, RAY_FAKE_CLUSTER="1" if autoscaling else "", AUTOSCALER_UPDATE_INTERVAL_S="1")
        until("the head", self.raylets)

    def add(self) -> psutil.Process:
        """A node with one core; gives its raylet."""
        before = set(self.raylets())
        self._start([f"--address=127.0.0.1:{self.port}", "--num-cpus=1", "--min-worker-port=0", "--max-worker-port=0"])
        return until("a node", lambda: next(iter(set(self.raylets()) - before), None))

    def _start(self, words: list[str], **env: str) -> None:
        command = [
            RAY, "start", "--block", "--dashboard-agent-listen-port=0", "--disable-usage-stats",
            "--node-ip-address=127.0.0.1", f"--object-store-memory={2**28}", *words,
        ]  # fmt: skip
        log = open(self.directory / f"node-{len(self._processes)}.log", "w")  # noqa: SIM115
        self._processes.append(
            subprocess.Popen(
                command, env=self.env | env, stdout=log, stderr=log, cwd=self.directory, start_new_session=True
            )
        )

    def raylets(self) -> list[psutil.Process]:
        """Of all nodes that live, the head's first."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if words and words[0].endswith("/raylet") and any(str(self.directory) in word for word in words):
                    found.append(process)
        pids = {process.pid for process in found}  # a fork of one has its name until it becomes another program
        with contextlib.suppress(psutil.Error):
            found = [process for process in found if process.ppid() not in pids]
        return sorted(found, key=lambda process: process.create_time())

    def actors(self, raylet: psutil.Process) -> set[str]:
        """Classes of the actors on a node."""
        names = set()
        with contextlib.suppress(psutil.Error):
            for process in raylet.children(recursive=True):
                with contextlib.suppress(psutil.Error, IndexError):
                    title = process.cmdline()[0]
                    if title.startswith("ray::"):
                        names.add(title.removeprefix("ray::").split(".")[0].split()[0])
        return names

    def run(self, spec: dict[str, Any], run_dir: Path) -> "subprocess.Popen[str]":
        """`tailrace train` as a process of its own."""
        spec["cluster"]["address"] = f"127.0.0.1:{self.port}"
        path = run_dir.with_suffix(".yaml")
        path.write_text(yaml.safe_dump(spec))
        words = [sys.executable, "-m", "cluster.cli", "train", str(path), "--run-dir", str(run_dir)]
        log = open(run_dir.with_suffix(".log"), "w")  # noqa: SIM115
        return subprocess.Popen(words, env=self.env, stdout=log, stderr=log, text=True, start_new_session=True)

    def ray(self, *words: str) -> str:
        done = subprocess.run([RAY, *words], env=self.env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stop(self) -> None:
        """Every process of the cluster, and nothing else on this machine."""
        below = [process for raylet in self.raylets() for process in raylet.children(recursive=True)]
        for started in self._processes:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(started.pid)
                below += [*process.children(recursive=True), process]
        for process in below + self.raylets():
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        for started in self._processes:
            started.wait(30)


def events(run_dir: Path, name: str) -> list[dict]:
    return [event for event in RunDirectory(run_dir).events() if event["event"] == name]


def finished(process: "subprocess.Popen[str]", run_dir: Path) -> dict[str, Any]:
    """Summary of a run that must end well."""
    code = process.wait(SLACK_S)
    assert code == 0, run_dir.with_suffix(".log").read_text()[-3000:]
    return json.loads((run_dir / "summary.json").read_text())
