"""What the command line makes of a cluster's answers, without one."""

import shlex
import socket
from types import SimpleNamespace
from typing import Any

import pytest
from test_cli import tailrace

from cluster.jobs import describe, entrypoint, exit_code


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
