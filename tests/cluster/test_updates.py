"""What the driver makes of a learner's figures: skipped, dropped, and too often dropped."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small_spec import small

import cluster.updates
from cluster.checkpoint import RunDirectory
from cluster.errors import RunFailed
from cluster.spec import parse_spec
from cluster.summary import Counters, Stopwatch
from cluster.updates import Update, Updates
from trainer.types import Group

GROUP = Group(
    "0/a", 0, 5, 1, np.array([3, 4, 5], np.int32), np.zeros(3, np.float32), np.array([1, 2], np.int32),
    np.array([0.0, 1.0]), np.zeros(2, bool),
)  # fmt: skip


class Driver(Updates):
    """The parts of a driver that an update touches; what the learner says is given, what is recorded is kept."""

    def __init__(self, path: Any, limit: int) -> None:
        data = small()
        data["limits"] = {"dropped_updates": limit}
        self.spec, self.run = parse_spec(data, "test"), RunDirectory(path)
        self.run.create()
        self.counters, self.clock, self.version, self.recorded = Counters(), Stopwatch(), 3, []
        self.clock.begin()
        self.bubbles = SimpleNamespace(learned=lambda epoch: None)  # type: ignore[assignment]
        self.display = SimpleNamespace(note=lambda text: None)  # type: ignore[assignment]
        self._record = lambda update, figures: self.recorded.append(figures)


@pytest.fixture
def driver(tmp_path, monkeypatch):
    def finish(limit: int, *figures: dict[str, float], batch: bool = True) -> Driver:
        made = Driver(tmp_path, limit)
        for epoch, each in enumerate(figures):
            monkeypatch.setattr(cluster.updates, "wait", lambda *_, each=each: [each])
            made.update = Update(epoch, [GROUP], [GROUP] if batch else [], {}, made.clock.laps, "update", ["call"])
            made._finish_update()
        return made

    return finish


def test_a_step_makes_a_new_version(driver):
    done = driver(0, {"updates": 2, "dropped": 0})
    assert (done.version, done.counters.updates, done.counters.updates_skipped) == (4, 2, 0)


def test_a_batch_without_a_gradient_is_skipped_and_counted(driver):
    done = driver(0, {"updates": 0, "dropped": 0})
    assert (done.version, done.counters.updates, done.counters.updates_skipped) == (3, 0, 1)
    assert [figures["skipped"] for figures in done.recorded] == [1]


def test_an_epoch_whose_groups_are_held_skips_nothing(driver):
    assert driver(0, {"updates": 0, "dropped": 0}, batch=False).counters.updates_skipped == 0


def test_a_dropped_step_is_counted_its_batch_written_and_the_run_goes_on(driver):
    done = driver(2, {"updates": 0, "dropped": 1}, {"updates": 1, "dropped": 1})
    assert (done.version, done.counters.updates_dropped, done.counters.updates_skipped) == (4, 2, 0)
    assert len(done.recorded) == 2
    events = [event for event in done.run.events() if event["event"] == "update_dropped"]
    assert [event["batch"] for event in events] == ["dropped/000000.safetensors", "dropped/000001.safetensors"]
    from safetensors.numpy import load_file

    assert load_file(done.run.path / events[0]["batch"])["token_ids"].tolist() == [3, 4, 5]


def test_the_run_stops_after_the_limit_and_says_where_the_batch_is(driver, tmp_path):
    with pytest.raises(RunFailed, match=r"limits\.dropped_updates = 1; the last batch is in .*000001\.safetensors"):
        driver(1, {"updates": 0, "dropped": 1}, {"updates": 0, "dropped": 1})
    assert (tmp_path / "dropped" / "000001.safetensors").is_file()
