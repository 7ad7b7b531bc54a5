"""Sinks get every number, through their own libraries; a sink that is missing or fails is named and stops nothing."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from small_spec import small

from cluster import sinks
from cluster.checkpoint import RunDirectory
from cluster.sinks import Sinks, check_sinks, numbers
from cluster.spec import parse_spec
from trainer.types import BadInput

ROW = {"epoch": 3, "stage": "rl", "loss": 0.5, "price": None, "grad_norm": float("nan"), "time": {"learn_s": 2.0}}
EVALUATION = {"stage": 1, "weight_version": 2, "pass@1": 0.25, "ci": None, "families": {"a<b": {"pass@1": 0.5}}}


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.create()
    return run


@pytest.fixture
def sink(monkeypatch) -> dict[str, Any]:
    """A sink named `probe`: `got` is what it was sent; `fail` makes the next record fail it."""
    probe: dict[str, Any] = {"got": [], "fail": False, "known": [], "closed": threading.Event()}

    def send(step: int, figures: dict[str, float]) -> None:
        if probe["fail"]:
            raise ConnectionError("refused at https://ada:s3cr3t@host")
        probe["got"].append((step, figures))

    def opened(directory: Path, name: str, known: str | None) -> sinks.Opened:
        probe["known"].append(known)
        return "id-1", send, probe["closed"].set

    monkeypatch.setitem(sinks.OPENERS, "probe", opened)
    return probe


def test_numbers_have_paths_as_names_and_nothing_else_is_sent():
    assert dict(numbers(ROW)) == {"epoch": 3, "loss": 0.5, "time/learn_s": 2.0}
    assert dict(numbers(EVALUATION)) == {
        "stage": 1, "weight_version": 2, "pass_at_1": 0.25, "families/a_b/pass_at_1": 0.5,
    }  # fmt: skip


def test_rows_and_evaluations_arrive_in_order_and_the_sink_is_closed(run, sink):
    feeding = Sinks(["probe"], run, "small")
    feeding.evaluation(0, EVALUATION)
    feeding.epoch(ROW)
    feeding.close()
    feeding.close()
    assert [step for step, _ in sink["got"]] == [0, 3]
    assert sink["got"][0][1] == {"evaluation/pass_at_1": 0.25, "evaluation/families/a_b/pass_at_1": 0.5}
    assert sink["closed"].is_set()


def test_a_resumed_run_goes_on_under_the_id_that_the_sink_gave(run, sink):
    for _ in range(2):
        Sinks(["probe"], run, "small").close()
    assert sink["known"] == [None, "id-1"]
    assert [(e["sink"], e["id"]) for e in run.events()] == [("probe", "id-1")]


def test_a_sink_that_fails_is_switched_off_once_and_without_secrets(run, sink):
    sink["fail"] = True
    feeding = Sinks(["probe"], run, "small")
    for _ in range(3):
        feeding.epoch(ROW)
    feeding.close()
    off = [e for e in run.events() if e["event"] == "sink_off"]
    assert len(off) == 1
    assert "refused" in off[0]["why"]
    assert "s3cr3t" not in off[0]["why"]


def test_a_sink_that_hangs_is_given_up_and_nothing_waits_for_it(run, monkeypatch):
    monkeypatch.setattr(sinks, "CLOSE_TIMEOUT_S", 0.1)
    monkeypatch.setattr(sinks, "MOST_WAITING", 2)
    never = threading.Event()
    monkeypatch.setitem(sinks.OPENERS, "probe", lambda *_: never.wait())
    for records in (1, 3):
        feeding = Sinks(["probe"], run, "small")
        for _ in range(records):
            feeding.epoch(ROW)
        feeding.close()
    assert [e["why"] for e in run.events()] == ["did not take all of it within 0.1 s", "2 records wait for it"]


def test_a_library_that_is_missing_is_refused_with_the_package_to_install(monkeypatch):
    monkeypatch.setitem(sinks.PACKAGES, "wandb", ("no_such_module", "wandb"))
    with pytest.raises(BadInput, match=r"run\.sinks: wandb is not installed .*pip install wandb"):
        check_sinks(["wandb"])


@pytest.mark.parametrize("value", [["excel"], ["wandb", "wandb"], "wandb"])
def test_the_spec_refuses_other_sinks_and_one_twice(value):
    data = small()
    data["run"]["sinks"] = value
    with pytest.raises(BadInput, match=r"run\.sinks"):
        parse_spec(data, "test")


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_the_real_library_takes_a_run_and_its_continuation(run, name, monkeypatch):
    try:
        check_sinks([name])
    except BadInput as error:
        pytest.skip(str(error))
    monkeypatch.setattr(sinks, "CLOSE_TIMEOUT_S", 120.0)  # MLflow makes its tables first, slowly on a busy machine
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(run.path)
    for _ in range(2):
        feeding = Sinks([name], run, "small")
        feeding.evaluation(3, EVALUATION)
        feeding.epoch(ROW)
        feeding.close()
    assert [e["event"] for e in run.events()] == ["sink_opened"], run.events()
    written = {"tensorboard": "tensorboard/events.*", "mlflow": "mlflow.db", "wandb": "wandb/offline-run-*"}
    assert any(run.path.glob(written[name])), os.listdir(run.path)
