"""What `benchmarks/load.py metrics` counts is there to be counted."""

import contextlib
import time

import pytest

from actors.engine import Engine
from benchmarks.load import WATCHING, Stopwatch, scraped
from cluster.checkpoint import RunDirectory
from cluster.metrics import Metrics

DEADLINE_S = 60


def test_the_processor_time_of_every_answer_is_counted():
    with contextlib.closing(Metrics()) as metrics, scraped(metrics) as (answering, asking):
        deadline = time.monotonic() + DEADLINE_S
        while len(answering) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert len(answering) >= 2
    assert asking
    assert all(seconds > 0 for seconds in answering + asking)


def test_the_driver_s_calls_are_timed_and_left_as_they_were(tmp_path):
    before = [getattr(owner, name) for methods in WATCHING.values() for owner, name in methods]
    watch, run = Stopwatch(), RunDirectory(tmp_path / "run")
    run.create()
    with contextlib.closing(Metrics()) as metrics, watch.watching():
        run.journal("an event")
        run.add_metrics({"epoch": 0})
        metrics.observe_epoch({"epoch": 0})
        metrics.stage("rl")
    assert watch.calls == {"journal": 1, "row and endpoint": 3}
    assert all(seconds > 0 for seconds in watch.seconds.values())
    assert [getattr(owner, name) for methods in WATCHING.values() for owner, name in methods] == before


@pytest.mark.parametrize("name", ["_count_step", "take_figures"])
def test_the_engine_has_what_is_timed_inside_it(name):
    assert callable(getattr(Engine, name))
