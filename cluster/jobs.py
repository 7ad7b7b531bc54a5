"""Runs as jobs of a Ray cluster, through Ray's own job server: submit, look at, follow, stop.

A run's first job has the run's name as its submission id; when the run is submitted again, to go on, `NAME~2` and so on
(a run's name has no tilde). Ray refuses an id that was ever used, so of two who submit at once, one is told.
"""

import asyncio
import importlib.metadata
import logging
import os
import shlex
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster.bundles import bundles
from cluster.capacity import Node, knock, lacks
from cluster.errors import RunFailed
from cluster.packing import node_run_dir, pack
from cluster.redact import text
from cluster.spec import Spec
from cluster.storage import check_uri
from trainer.types import BadInput

ANSWER_TIMEOUT_S = 30.0
"""Longest wait for one answer of the job server."""
STOP_SLACK_S = 60.0
"""Beside the longest phase of a run: for its checkpoint and the copy of it."""
MOST_ANSWERS = 10_000
"""Of Ray's state API in one answer, which is its own upper bound; it gives a hundred when it is not asked for more."""
END_TIMEOUT_S = 10.0
"""Longest wait for a job's status after its log has ended."""

OURS = {"tailrace_run", "tailrace_run_dir", "tailrace_stop_wait_s"}
"""Keys of a job's metadata without which it is none of a run."""


@dataclass(frozen=True)
class Job:
    """The newest job of a run."""

    run: str
    submission: str
    status: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    reason: str
    """Why it waits or failed, in a line; empty while it runs."""
    run_dir: str
    storage: str | None
    submitted_s: float
    ended_s: float | None
    exit_code: int | None
    stop_wait_s: float
    driver: str | None
    """Ray's number of the run's driver, once it has joined."""

    @property
    def ended(self) -> bool:
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Jobs:
    """The job server at `address`, http://HOST:PORT of Ray's dashboard."""

    def __init__(self, address: str) -> None:
        """Raises BadInput for a wrong address or token, RunFailed when nothing answers or Ray's version differs."""
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise BadInput(f"--address {address}: give the URL of Ray's dashboard, http://HOST:8265")
        self.address = address
        try:
            knock(f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}")
        except (ConnectionError, ValueError) as error:
            raise RunFailed(f"--address {address}: {error}") from None
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # read when ray is imported
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            os.environ.pop(name, None)  # Ray would take them before the address it is given
        import ray
        from ray.job_submission import JobSubmissionClient

        for name in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
            logging.getLogger(name).setLevel(logging.WARNING)  # each upload, to standard error

        class Client(JobSubmissionClient):
            def _do_request(self, *args: Any, **kwargs: Any) -> Any:
                return super()._do_request(*args, timeout=ANSWER_TIMEOUT_S, **kwargs)

            def ray_version(self) -> str:
                return self._server_ray_version

        with self._answers():
            self._client: Any = Client(address)
        if (there := self._client.ray_version()) != ray.__version__:
            raise RunFailed(f"--address {address}: the cluster has Ray {there}, tailrace here Ray {ray.__version__}")

    def submit(
        self, spec: Spec, retries: int, queue_s: float, storage: str | None, code: Sequence[Path]
    ) -> tuple[Job, str]:
        """Hand the run to the cluster; one that was stopped or failed goes on. Gives the job, and what the cluster has
        no room for as it is. Raises BadInput when the run is there or finished, or what it needs is missing here."""
        name = spec.run.name
        if storage is not None:
            check_uri(storage)
        attempts = [job for job in self.all() if job.run == name]
        if attempts and attempts[0].status not in ("STOPPED", "FAILED"):
            state = "has finished" if attempts[0].ended else "is there"
            raise BadInput(f"run.name: {name} {state} on this cluster (job {attempts[0].submission}); choose another")
        lacking = "; ".join(lacks(bundles(spec), 0, self.nodes()))
        limits = spec.limits
        stop_wait_s = limits.rollout_timeout_s + limits.learn_timeout_s + limits.publish_timeout_s + STOP_SLACK_S
        metadata = {
            "tailrace_run": name,
            "tailrace_run_dir": node_run_dir(spec),
            "tailrace_stop_wait_s": str(stop_wait_s),
            "tailrace_versions": " ".join(f"{key} {value}" for key, value in versions().items()),
        } | ({"tailrace_storage": storage} if storage else {})
        submission = name if not attempts else f"{name}~{len(attempts) + 1}"
        with tempfile.TemporaryDirectory(prefix="tailrace-") as directory:
            pack(spec, queue_s, code, Path(directory))
            with self._answers():
                self._client.submit_job(
                    entrypoint=entrypoint(node_run_dir(spec), retries, storage),
                    submission_id=submission,
                    metadata=metadata,
                    runtime_env={
                        "working_dir": directory,
                        # Ray kills what is left of a job this long after the signal that stops it.
                        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(int(stop_wait_s))},
                    },
                )
        return self.find(name), f"too small a cluster, unless it grows: {lacking}" if lacking else ""

    def all(self) -> list[Job]:
        """Jobs of tailrace's runs, the newest first."""
        with self._answers():
            found = [describe(details) for details in self._client.list_jobs()]
        return sorted(filter(None, found), key=lambda job: job.submitted_s, reverse=True)

    def find(self, run: str) -> Job:
        """The newest job of a run. Raises BadInput when there is none."""
        job = next((job for job in self.all() if job.run == run), None)
        if job is None:
            raise BadInput(f"{run}: no such run on {self.address}; tailrace list shows them")
        return job

    def waits_for(self, job: Job) -> str:
        """What a running job's driver waits for in Ray's scheduler, empty when it has its bundles."""
        from ray.util.state import list_placement_groups

        if job.status != "RUNNING" or job.driver is None:
            return ""
        mine = [("creator_job_id", "=", job.driver), ("state", "=", "PENDING")]
        with self._answers():
            groups = list_placement_groups(
                self.address, filters=mine, limit=MOST_ANSWERS, timeout=int(ANSWER_TIMEOUT_S), detail=True
            )
        wanted = [bundle["unit_resources"] for group in groups for bundle in group.bundles or ()]
        shapes = "; ".join(", ".join(f"{key} {value:g}" for key, value in bundle.items()) for bundle in wanted[:4])
        return f"waits for room: {len(wanted)} bundles of {shapes}" if wanted else ""

    def nodes(self) -> list[Node]:
        """The living nodes and all that they have, in use or not."""
        from ray.util.state import list_nodes

        with self._answers():
            alive = list_nodes(
                self.address,
                filters=[("state", "=", "ALIVE")],
                limit=MOST_ANSWERS,
                timeout=int(ANSWER_TIMEOUT_S),
                detail=True,
            )
        totals = [node.resources_total for node in alive]
        return [Node(r.get("CPU", 0), r.get("GPU", 0), r.get("memory", 0)) for r in totals]

    def output(self, submission: str, command: str, timeout_s: float) -> str:
        """What a short command prints on the cluster. Raises RunFailed on the deadline; leaves no job behind."""
        with self._answers():
            self._client.submit_job(entrypoint=command, submission_id=submission)
            deadline = time.monotonic() + timeout_s
            while not self._client.get_job_status(submission).is_terminal():
                if time.monotonic() > deadline:
                    self._client.stop_job(submission)
                    raise RunFailed(f"--address {self.address}: waited {timeout_s:g} s for {command}")
                time.sleep(0.5)
            printed = self._client.get_job_logs(submission)
            self._client.delete_job(submission)
        return printed

    def logs(self, job: Job) -> str:
        """All that the job has printed, without secrets."""
        with self._answers():
            return text(self._client.get_job_logs(job.submission))

    def follow(self, job: Job) -> Iterator[str]:
        """What the job prints, from its beginning to its end, without secrets."""
        with self._answers(), asyncio.Runner() as runner:
            parts, rest = self._client.tail_job_logs(job.submission), ""
            while (part := runner.run(_next(parts))) is not None:
                whole, end, rest = (rest + part).rpartition("\n")  # a secret may be torn where a part ends
                yield text(whole) + end
            yield text(rest)

    def stop(self, job: Job) -> Job:
        """Have the run write a checkpoint and end; returns when it has. Raises RunFailed on the deadline."""
        with self._answers():
            self._client.stop_job(job.submission)
        return self._until_ended(job, job.stop_wait_s + STOP_SLACK_S)

    def ended(self, job: Job) -> Job:
        """The job after its log has come to its end."""
        return self._until_ended(job, END_TIMEOUT_S)

    def _until_ended(self, job: Job, timeout_s: float) -> Job:
        deadline = time.monotonic() + timeout_s
        while True:
            with self._answers():
                now = describe(self._client.get_job_info(job.submission))
            assert now is not None
            if now.ended:
                return now
            if time.monotonic() > deadline:
                raise RunFailed(f"waited {timeout_s:g} s for job {job.submission} to end; it is {now.status}")
            time.sleep(0.5)

    @contextmanager
    def _answers(self) -> Iterator[None]:
        """The job client's exceptions as the command line's."""
        import requests
        from ray.exceptions import AuthenticationError
        from ray.util.state.exception import RayStateApiException

        try:
            yield
        except AuthenticationError:
            raise BadInput(
                f"--address {self.address}: the cluster refuses the token, or none is given; set RAY_AUTH_TOKEN or "
                "RAY_AUTH_TOKEN_PATH to the cluster's (RAY_AUTH_MODE=disabled for a cluster without)"
            ) from None
        except (requests.RequestException, ConnectionError, RuntimeError, ValueError, RayStateApiException) as error:
            if isinstance(error, BadInput | RunFailed):
                raise
            if "already exists" in str(error):
                raise BadInput("run.name: somebody has submitted a run of this name just now") from None
            first = next(iter(str(error).splitlines()), "")
            raise RunFailed(f"--address {self.address}: {type(error).__name__}: {first[:400]}") from error


async def _next(lines: AsyncIterator[str]) -> str | None:
    return await anext(lines, None)


def describe(details: Any) -> Job | None:
    """A job as Ray's server tells it (JobDetails); None when it is none of tailrace's."""
    metadata = details.metadata or {}
    if not metadata.keys() >= OURS or not details.submission_id:
        return None
    try:
        stop_wait_s = float(metadata["tailrace_stop_wait_s"])
    except ValueError:
        return None  # of somebody who plays with our names
    status, message = str(details.status), (details.message or "").strip()
    return Job(
        run=metadata["tailrace_run"],
        submission=details.submission_id,
        status=status,
        reason=text(message.splitlines()[-1]) if message and status in ("PENDING", "FAILED") else "",
        run_dir=metadata["tailrace_run_dir"],
        storage=metadata.get("tailrace_storage"),
        submitted_s=details.start_time / 1000,
        ended_s=details.end_time / 1000 if details.end_time else None,
        exit_code=details.driver_exit_code,
        stop_wait_s=stop_wait_s,
        driver=details.driver_info.id if details.driver_info else None,
    )


def exit_code(job: Job) -> int:
    """Of a command that waited for the job: that of the run; 130 for one that was stopped."""
    if job.status == "STOPPED":
        return 130
    return 0 if job.status == "SUCCEEDED" else 2 if job.exit_code == 2 else 1


def entrypoint(run_dir: str, retries: int, storage: str | None) -> str:
    """The shell command of a job; the cluster's own Python and tailrace carry it out."""
    words = ["--run-dir", run_dir, "--retries", str(retries), "--tailrace", importlib.metadata.version("tailrace")]
    words += ["--storage", storage] if storage else []
    return f"exec python -m cluster.attempts {shlex.join(words)}"


def versions() -> dict[str, str]:
    """Of the submitter's side, for the record."""
    found = {name: importlib.metadata.version(name) for name in ("tailrace", "ray", "torch", "transformers")}
    return {"python": ".".join(map(str, sys.version_info[:3])), **found}
