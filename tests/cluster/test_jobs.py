"""What the command line makes of a cluster's answers, without one."""

import json
import shlex
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from test_cli import tailrace

from cluster.errors import RunFailed
from cluster.jobs import Jobs, describe, entrypoint, exit_code


def details(status: str = "RUNNING", **changes: Any) -> Any:
    metadata = {"tailrace_run": "a", "tailrace_run_dir": "/runs/a", "tailrace_stop_wait_s": "60.0"}
    known = {
        "submission_id": "a~2", "status": status, "message": None, "metadata": metadata, "start_time": 1000,
        "end_time": None, "driver_exit_code": None, "driver_info": None,
    }  # fmt: skip
    return SimpleNamespace(**(known | changes))


def test_a_job_is_told_in_a_line():
    job = describe(
        details("FAILED", message="failed, logs:\nfirst\nout of memory\n", end_time=5000, driver_exit_code=1)
    )
    assert job is not None
    assert (job.run, job.submission, job.reason, job.ended_s) == ("a", "a~2", "out of memory", 5.0)


def test_jobs_of_others_are_not_ours():
    assert describe(details(metadata={})) is None
    assert describe(details(submission_id=None)) is None
    assert describe(details(metadata={"tailrace_run": "a"})) is None
    assert describe(details(metadata={**details().metadata, "tailrace_stop_wait_s": "soon"})) is None


@pytest.mark.parametrize(
    ("status", "code", "found"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", 1, 1), ("FAILED", None, 1), ("STOPPED", None, 130)],
)
def test_following_leaves_as_the_run_did(status, code, found):
    assert exit_code(describe(details(status, driver_exit_code=code))) == found


def test_the_entrypoint_is_one_command_whatever_the_names_hold():
    words = shlex.split(entrypoint("/runs/a b; rm x", 2, "s3://b/$(c)"))
    assert words[:4] == ["exec", "python", "-m", "cluster.attempts"]
    assert "/runs/a b; rm x" in words
    assert "s3://b/$(c)" in words


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://x:1", "http://", "http://me:secret@x:1"])
def test_an_address_that_is_no_url_is_bad_input(address):
    result = tailrace("list", "--address", address)
    assert result.exit_code == 2
    assert "give the URL of Ray's dashboard" in result.output


def test_an_address_where_nothing_listens_fails_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        result = tailrace("list", "--address", f"http://127.0.0.1:{free.getsockname()[1]}")
    assert result.exit_code == 1
    assert "cannot be reached" in result.output


def test_an_address_is_asked_for():
    assert tailrace("list").exit_code == 2


class Dashboard(BaseHTTPRequestHandler):
    """Answers as the dashboard of a cluster of 150 nodes does, and gives no more than it is asked for."""

    def do_GET(self) -> None:
        from importlib.metadata import version

        path, asked = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        if path.endswith("version"):
            self._answer({"version": "4", "ray_version": version("ray"), "ray_commit": "", "session_name": ""})
        elif path == "/api/v0/nodes":
            node = {
                "node_ip": "", "is_head_node": False, "state": "ALIVE", "state_message": "", "node_name": "",
                "labels": {}, "start_time_ms": 0, "end_time_ms": 0, "resources_total": {"CPU": 4.0},
            }  # fmt: skip
            nodes = [{**node, "node_id": f"{i:056x}"} for i in range(150)]
            given = nodes[: int(asked["limit"][0])]
            counts = {"total": 150, "num_filtered": 150, "num_after_truncation": 150}
            found = {**counts, "result": given, "partial_failure_warning": "", "warnings": []}
            self._answer({"result": True, "msg": "", "data": {"result": found}})
        elif path.endswith("/logs"):
            self._answer({"logs": "Authorization: Bearer abcdefghijkl"})
        else:
            self._answer({"result": False, "msg": "the state is not to be had", "data": {}})

    def _answer(self, data: dict) -> None:
        body = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Dashboard)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_all_nodes_of_a_large_cluster_are_seen(dashboard):
    nodes = Jobs(dashboard).nodes()
    assert len(nodes) == 150
    assert sum(node.cpus for node in nodes) == 600


def test_a_state_that_is_not_to_be_had_fails_the_command_by_its_name(dashboard):
    job = describe(details(driver_info=SimpleNamespace(id="01000000")))
    assert job is not None
    with pytest.raises(RunFailed, match=r"--address .*the state is not to be had"):
        Jobs(dashboard).waits_for(job)


def test_what_a_run_has_printed_is_shown_without_secrets(dashboard):
    job = describe(details())
    assert job is not None
    assert Jobs(dashboard).logs(job) == "Authorization: Bearer (hidden)"


def test_a_secret_that_comes_in_two_parts_is_hidden_too():
    async def parts():
        for part in ("loads\nAuthorization: Bear", "er abcdefghijkl\nends", " here"):
            yield part

    server = Jobs.__new__(Jobs)  # of which only the client is asked
    server.address, server._client = "", SimpleNamespace(tail_job_logs=lambda _: parts())
    said = list(server.follow(describe(details())))
    assert "".join(said) == "loads\nAuthorization: Bearer (hidden)\nends here"
