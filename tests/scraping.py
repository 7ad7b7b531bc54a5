"""Debian's Prometheus with the shipped configuration, but in a hurry, and the runs that it scrapes while they live."""

import json
import math
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.display import Display

SHIPPED = Path(__file__).parents[1] / "deploy" / "prometheus"
EVERY_MS = 250
"""Between two scrapes."""
DEADLINE_S = 60
"""Longest wait for a scrape."""


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
def prometheus(folder: Path, dashboard_port: int = 1) -> Iterator[str]:
    """The server; gives its address. Runs tell of themselves in `folder`/targets."""
    shutil.copytree(SHIPPED, folder, dirs_exist_ok=True)
    config = (folder / "prometheus.yml").read_text().replace(":8265", f":{dashboard_port}")
    config = config.replace("refresh_interval: 15s", "refresh_interval: 1s").replace("15s", f"{EVERY_MS}ms")
    config = config.replace("/var/lib/tailrace/targets", f"{folder}/targets")
    (folder / "prometheus.yml").write_text(config)
    (folder / "auth_token").touch()
    (folder / "targets").mkdir()
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with running([*command, f"--web.listen-address={address}"], folder / "log"):
        yield f"http://{address}"


def asked(server: str | None, path: str, **parameters: Any) -> list:
    """The result of a query; nothing while the server is not up yet."""
    url = f"{server}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return json.load(answer)["data"]["result"]
    except OSError as error:
        if isinstance(error, urllib.error.HTTPError) and error.code == 400:  # no such query
            raise
        return []


class Watcher:
    """A Prometheus that runs may be shown to."""

    def __init__(self, folder: Path, server: str | None) -> None:
        """`server`: its address; None where there is none, and runs go unwatched."""
        self._folder, self._server = folder, server
        self._spans: dict[str, tuple[float, float]] = {}

    @contextmanager
    def watching(self, run: str) -> Iterator[Display]:
        """To be given to the run, which is scraped from the moment that it tells of itself."""
        if self._server is None:
            yield Display(run)
            return
        began = time.time()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TAILRACE_TARGETS", str(self._folder / "targets"))
            yield _Watched(run, self)
        self._spans[run] = began, time.time()
        assert not list((self._folder / "targets").iterdir()), "a run that has ended is no target"

    def await_scrape(self, run: str) -> bool:
        """Whether what the run shows now has been scraped before the deadline."""
        deadline = time.monotonic() + DEADLINE_S
        expression = f'timestamp(tailrace_epoch{{run="{run}"}}) > {time.time():.3f}'
        while not (seen := bool(asked(self._server, "query", query=expression))) and time.monotonic() < deadline:
            time.sleep(EVERY_MS / 4000)
        return seen

    def numbers(self, run: str, expression: str) -> list[float]:
        """What a graph over the run's time shows of an expression, the values of all lines together."""
        began, ended = self._spans[run]
        span = {"start": began, "end": ended, "step": EVERY_MS / 1000}
        lines = asked(self._server, "query_range", query=expression, **span)
        values = [float(value) for line in lines for _, value in line["values"]]
        return [value for value in values if math.isfinite(value)]


class _Watched(Display):
    """An epoch of the small runs takes a tenth of a second: so that each is scraped, as those of a run of practical
    size are, the next one waits for that."""

    def __init__(self, run: str, watcher: Watcher) -> None:
        super().__init__(run)
        self._watcher = watcher
        self._seen = True  # so far; a scraper that is late once is waited for no more

    def advance(self, done: int, **figures: float) -> None:
        super().advance(done, **figures)
        if "epoch" in figures and self._seen:
            self._seen = self._watcher.await_scrape(self.name)
