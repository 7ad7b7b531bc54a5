"""A machine that is about to go says so to Ray."""

import json
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from queries import DEPLOY

LEAVE = DEPLOY / "leave.py"
leave = SimpleNamespace(**runpy.run_path(str(LEAVE)))
RAYLET = ["/venv/ray/core/src/ray/raylet/raylet", "--node_id=ab12", "--gcs-address=10.0.0.1:6379", "--head"]


@pytest.fixture
def metadata() -> Iterator[Any]:
    """EC2's service, as an instance sees it: a token first, 404 while there is no notice."""

    class Service(BaseHTTPRequestHandler):
        notice: dict | None = None

        def do_PUT(self) -> None:
            self._answer(200, b"a-token")

        def do_GET(self) -> None:
            if self.headers["X-aws-ec2-metadata-token"] != "a-token":
                self._answer(401, b"")
            elif self.path == "/latest/meta-data/spot/instance-action" and Service.notice:
                self._answer(200, json.dumps(Service.notice).encode())
            else:
                self._answer(404, b"not found")

        def _answer(self, code: int, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield SimpleNamespace(service=Service, url=f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()


def test_a_notice_is_heard_and_says_when(metadata):
    assert leave.notice(metadata.url) is None
    when = datetime.now(UTC) + timedelta(seconds=120)
    metadata.service.notice = {"action": "terminate", "time": when.strftime("%Y-%m-%dT%H:%M:%SZ")}
    assert 60 < leave.notice(metadata.url) <= 120
    metadata.service.notice["time"] = "2017-09-18T08:22:00Z"
    assert leave.notice(metadata.url) == 0


def test_an_instance_without_the_service_waits_on():
    assert leave.notice("http://127.0.0.1:1") is None


def test_the_node_is_the_one_whose_raylet_runs_here():
    command = leave.drain(RAYLET, 110)
    assert command[:2] == ["ray", "drain-node"]
    assert {"--address=10.0.0.1:6379", "--node-id=ab12", "--deadline-remaining-seconds=110"} <= set(command)


def test_ray_has_this_command_with_these_options():
    ray = str(Path(sys.executable).parent / "ray")
    known = subprocess.run([ray, "drain-node", "--help"], capture_output=True, text=True, check=True).stdout
    assert all(word.partition("=")[0] in known for word in leave.drain(RAYLET, 110)[2:])


def test_manifests_start_it_with_time_to_leave():
    for name in ("raycluster", "rayjob"):
        for manifest in yaml.safe_load_all((DEPLOY / "kuberay" / f"{name}.yaml").read_text()):
            spec = manifest.get("spec", {})
            for group in spec.get("rayClusterSpec", spec).get("workerGroupSpecs", []):
                pod = group["template"]["spec"]
                command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
                assert command[1:3] == ["/opt/tailrace/deploy/leave.py", "--seconds"]
                assert int(command[3]) < pod["terminationGracePeriodSeconds"]
    aws = yaml.safe_load((DEPLOY / "ray" / "aws.yaml").read_text())
    assert any("deploy/leave.py --aws" in command for command in aws["worker_start_ray_commands"])
    assert not any("leave.py" in command for command in aws["head_start_ray_commands"])


def test_the_script_asks_for_when():
    assert subprocess.run([sys.executable, LEAVE], capture_output=True, check=False).returncode == 2
