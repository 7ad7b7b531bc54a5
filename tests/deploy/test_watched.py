"""Debian's Prometheus scrapes live runs and a live Ray with the shipped configuration, and every panel has data.

Nothing is made up: what panels about runs show comes from the runs of the session's fixtures (tests/conftest.py), which
are scraped from their start to their end. Nobody drafts in the first of them, and its budget is one of rollouts: panels
about these things have the run that shows them named below. Panels about GPUs and about an autoscaler's nodes have no
data on one CPU node, and are not asked.
"""

import os
import shutil
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from queries import DASHBOARDS, expressions, metric_names, panels
from scraping import asked, free_port, prometheus, running

DEADLINE_S = 150
SHOWN_BY = {
    "speculating": {"Acceptance", "Acceptance by position", "Draft length by load", "Tokens per second"},
    "tokens": {"Tokens spent"},
}
"""Panels of what not every run does, by the run that does it. All epochs of the first are over in two seconds, in which
learner ranks are asked twice: too seldom for a rate."""
MAY_BE_0 = {
    "Answers owed", "Idle time harvested", "Losses and stalls", "Preemptions", "Prefix cache hits",
    "Requests in the engine", "Restarts", "Speculation switched off", "Updates dropped and skipped",
}  # fmt: skip
"""Panels that may show nothing but 0 of runs as short, and as little disturbed, as these."""
WITHOUT_HARDWARE = {"GPU", "GPU memory", "Nodes on their way"}
"""Panels of what one CPU node has nothing to say about."""

pytestmark = [
    pytest.mark.stack,
    pytest.mark.skipif(not shutil.which("prometheus"), reason="no prometheus: apt-get install prometheus"),
]


def about_a_run(expression: str) -> bool:
    return any("tailrace_" in name for name in metric_names(expression))


def asked_for(run: str = ".*") -> list[tuple[str, str]]:
    """Titles and expressions of all panels."""
    return [(panel["title"], e) for path in DASHBOARDS for panel in panels(path) for e in expressions(panel, run)]


@pytest.mark.timeout(900)
def test_every_panel_about_runs_has_data_of_a_live_run(watcher, finished, speculating, under_tokens):
    found = {
        run: {(title, e): watcher.numbers(run, e) for title, e in asked_for(run) if about_a_run(e)}
        for run in ("whole", *SHOWN_BY)
    }
    elsewhere = {title for titles in SHOWN_BY.values() for title in titles}
    assert not [panel for panel, numbers in found["whole"].items() if not numbers and panel[0] not in elsewhere]
    for run, titles in SHOWN_BY.items():
        assert not [panel for panel, numbers in found[run].items() if not numbers and panel[0] in titles]
    # A metric without a label stands at 0 before anybody feeds it.
    fed = {panel[0] for by_panel in found.values() for panel, numbers in by_panel.items() if any(numbers)}
    assert {title for title, e in asked_for() if about_a_run(e)} - fed <= MAY_BE_0
    assert max(watcher.numbers("whole", 'tailrace_workers{run="whole", state="healthy"}')) == 2


def test_ray_is_discovered_with_its_token_and_every_panel_about_it_has_data(tmp_path):
    port = free_port()
    (tmp_path / "auth_token").write_text("f" * 64)
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "auth_token")}
    ray = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=1"]
    ports = [f"--port={free_port()}", f"--dashboard-port={port}", f"--ray-client-server-port={free_port()}"]
    more = ["--object-store-memory=80000000", "--disable-usage-stats"]
    with (
        TemporaryDirectory(prefix="ray-") as short,  # sockets in it may not have longer names
        running([*ray, *ports, *more, f"--temp-dir={short}"], tmp_path / "ray.log", env),
        prometheus(tmp_path, port) as server,
    ):
        deadline = time.monotonic() + DEADLINE_S
        missing = None
        while missing != set() and time.monotonic() < deadline:
            time.sleep(2)
            wanted = [(title, e) for title, e in asked_for() if not about_a_run(e) and title not in WITHOUT_HARDWARE]
            missing = {(title, e) for title, e in wanted if not asked(server, "query", query=e)}
        assert not missing
        assert not asked(server, "query", query='ALERTS{alertname="RayUndiscovered"}')
