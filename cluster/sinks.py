"""Metrics and evaluations of a run for TensorBoard, MLflow or Weights & Biases, through their own libraries.

Each sink has a thread of its own and nothing waits for it. A sink that fails, or falls far behind, is switched off with
a line in the journal; a run never fails for one. The journal also keeps a sink's own id of the run, so that a resumed
run goes on where it was.
"""

import importlib
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import Full, Queue
from typing import Any

from cluster.checkpoint import RunDirectory
from trainer.types import BadInput

PACKAGES = {
    "tensorboard": ("torch.utils.tensorboard", "tensorboard"),
    "mlflow": ("mlflow", "mlflow"),
    "wandb": ("wandb", "wandb"),
}
"""The module that a sink imports, and the package of pip that has it."""
MOST_WAITING = 10_000
"""Records that may wait for a sink before it is given up."""
CLOSE_TIMEOUT_S = 30.0
"""Longest wait for a sink to take what is left, at the end of a run."""

Figures = dict[str, float]
Send = Callable[[int, Figures], None]
Opened = tuple[str, Send, Callable[[], None]]
"""A sink's own id of the run, and the functions that send figures of a step and close it."""


def check_sinks(names: Sequence[str]) -> None:
    """Raises BadInput for a sink whose library is not installed."""
    for name in names:
        module, package = PACKAGES[name]
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise BadInput(f"run.sinks: {name} is not installed ({error}); pip install {package}") from None


class Sinks:
    """The sinks of one run; called by one thread."""

    def __init__(self, names: Sequence[str], run: RunDirectory, name: str) -> None:
        """`name` is the run's, as the sinks show it."""
        self._journal = run.journal
        known = {e["sink"]: e["id"] for e in (run.events() if names else []) if e["event"] == "sink_opened"}
        self._feeds = [_Feed(sink, run.path, name, known.get(sink)) for sink in names]

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Take a row of metrics.jsonl."""
        self._send(int(row["epoch"]), dict(numbers(row)))

    def evaluation(self, epoch: int, result: Mapping[str, Any]) -> None:
        """Take an evaluation, as of the number of epochs before it."""
        scores = {key: value for key, value in result.items() if key not in ("counts", "stage", "weight_version")}
        self._send(epoch, dict(numbers({"evaluation": scores})))

    def close(self) -> None:
        """Let the sinks take what is left, for `CLOSE_TIMEOUT_S` in all; may be called twice."""
        until = time.monotonic() + CLOSE_TIMEOUT_S
        for feed in self._feeds:
            feed.put(None)
        for feed in self._feeds:
            feed.thread.join(max(0.0, until - time.monotonic()))
            if feed.thread.is_alive():
                feed.why = f"did not take all of it within {CLOSE_TIMEOUT_S:g} s"
        self._tell()
        self._feeds = []

    def _send(self, step: int, figures: Figures) -> None:
        for feed in self._feeds:
            feed.put((step, figures))
        self._tell()

    def _tell(self) -> None:
        """The journal is written by this thread alone, so lines cannot run into each other."""
        for feed in self._feeds:
            if feed.id is not None and not feed.told:
                feed.told = True
                self._journal("sink_opened", sink=feed.sink, id=feed.id)
            if feed.why:
                self._journal("sink_off", sink=feed.sink, why=feed.why)
        self._feeds = [feed for feed in self._feeds if not feed.why]


class _Feed:
    """A sink, its thread, and what waits for it. `why` says why it takes no more."""

    def __init__(self, sink: str, directory: Path, name: str, known: str | None) -> None:
        self.sink, self.id, self.told, self.why = sink, known, known is not None, ""
        self._queue: Queue[tuple[int, Figures] | None] = Queue(MOST_WAITING)
        self._opened_with = (directory, name, known)
        self.thread = threading.Thread(target=self._work, name=f"sink-{sink}", daemon=True)
        self.thread.start()

    def put(self, record: tuple[int, Figures] | None) -> None:
        try:
            self._queue.put_nowait(record)
        except Full:
            self.why = f"{MOST_WAITING} records wait for it"

    def _work(self) -> None:
        try:
            self.id, send, close = OPENERS[self.sink](*self._opened_with)
            while (record := self._queue.get()) is not None:
                send(*record)
            close()
        except Exception as error:
            self.why = f"{type(error).__name__}: {error}"


def numbers(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The finite numbers of nested mappings, under names joined by slashes; `pass@1` is `pass_at_1`, and what else
    MLflow refuses in a name is an underscore."""
    for key, value in row.items():
        name = prefix + re.sub(r"[^\w .-]", "_", str(key).replace("@", "_at_"))
        if isinstance(value, Mapping):
            yield from numbers(value, f"{name}/")
        elif isinstance(value, int | float) and math.isfinite(value):
            yield name, float(value)


def _tensorboard(directory: Path, name: str, known: str | None) -> Opened:
    from torch.utils.tensorboard import SummaryWriter

    path = directory / "tensorboard"
    writer = SummaryWriter(str(path))

    def send(step: int, figures: Figures) -> None:
        for key, value in figures.items():
            writer.add_scalar(key, value, step)
        writer.flush()

    return str(path), send, writer.close


def _mlflow(directory: Path, name: str, known: str | None) -> Opened:
    """To MLFLOW_TRACKING_URI, a file in the run directory without it."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{directory / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tailrace")
    experiment_id = experiment.experiment_id if experiment else client.create_experiment("tailrace")
    run_id = known or client.create_run(experiment_id, run_name=name).info.run_id

    def send(step: int, figures: Figures) -> None:
        now = int(time.time() * 1000)
        client.log_batch(run_id, [Metric(key, value, now, step) for key, value in figures.items()])

    return run_id, send, lambda: client.set_terminated(run_id)


def _wandb(directory: Path, name: str, known: str | None) -> Opened:
    """As WANDB_MODE, WANDB_PROJECT and the library's own settings say."""
    import wandb

    settings = wandb.Settings(silent=True, login_timeout=30, init_timeout=60)
    project = os.environ.get("WANDB_PROJECT", "tailrace")
    run = wandb.init(project=project, name=name, id=known, resume="allow", dir=str(directory), settings=settings)
    run.define_metric("*", step_metric="epoch")  # a resumed run repeats epochs, and wandb's own steps only grow

    def send(step: int, figures: Figures) -> None:
        run.log({**figures, "epoch": step})

    return run.id, send, run.finish


OPENERS: dict[str, Callable[[Path, str, str | None], Opened]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
}
