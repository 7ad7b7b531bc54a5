"""`tailrace evaluate`: the evaluation of a run's spec on any model, as a run of one stage in a directory of its own."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.checkpoint import RunDirectory
from cluster.display import Display, make_display
from cluster.errors import RunFailed
from cluster.launch import Prepared, train
from cluster.spec import Spec, load_spec, parse_spec
from cluster.summary import without_counts
from trainer.evaluation import verdict
from trainer.types import BadInput

OWN_FIELDS = ("recipe", "allocator", "drafter", "model.source")
"""What an evaluation sets itself; an override of it would go unheard."""


def evaluate(target: Path, models: Sequence[str], overrides: list[str] | None, quiet: bool) -> list[dict[str, Any]]:
    """The evaluation of each model, as in summary.json, with `model` and with `verdict` against the first one.

    `target` is a run directory or a spec file; without models its own is evaluated. `quiet` shows no progress and
    sends what libraries print to standard error. Raises BadInput before anything is started, RunFailed and
    KeyboardInterrupt as `train` does.
    """
    spec = _spec(target, overrides)
    names = list(models) or [str(target / "models" / "policy") if target.is_dir() else spec.model.source]
    with _scratch() as scratch, redirect_stdout(sys.stderr) if quiet else nullcontext():
        runs = [RunDirectory(scratch / str(number)) for number in range(len(names))]
        specs = [_alone(spec, name) for name in names]
        for one, run in zip(specs, runs, strict=True):
            Prepared(one, run)  # finds every fault in every model before the first evaluation takes its minutes
        found = [_evaluated(one, run, quiet) for one, run in zip(specs, runs, strict=True)]
    rows = []
    for name, evaluation in zip(names, found, strict=True):
        judged = verdict(found[0], evaluation) if evaluation is not found[0] else None
        rows.append({"model": name, **without_counts(evaluation), "verdict": judged})
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    """One row per model; after ± stands half the width of the 95 % interval."""
    metrics = [key for key in rows[0] if key.startswith("pass@") and key not in ("pass@k", "pass@1_stderr")]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("model", *metrics, "tokens", "cut", "entropy", "distinct", "language loss", "verdict"):
        table.add_column(column, justify="left" if column in ("model", "verdict") else "right", overflow="fold")
    for row in rows:
        scores = [_score(row[key], row["ci"] and row["ci"][key]) for key in metrics]
        figures = [_figure(row[key]) for key in ("entropy", "distinct_correct_mean", "language_loss")]
        tokens, cut = f"{row['response_tokens_mean']:.1f}", f"{row['truncated_share']:.1%}"
        table.add_row(
            Text(row["model"]), *scores, tokens, cut, *figures, row["verdict"]["verdict"] if row["verdict"] else ""
        )
    Console(width=max(Console().width, 120)).print(table)  # a pipe has no width


def _score(value: float, interval: Sequence[float] | None) -> str:
    return f"{value:.1%}" + (f" ± {(interval[1] - interval[0]) / 2:.1%}" if interval else "")


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _spec(target: Path, overrides: list[str] | None) -> Spec:
    is_run = os.path.isdir(target)  # False where Path.is_dir raises
    if is_run and not (target / "spec.yaml").is_file():
        raise BadInput(f"{target}: not a run directory, it has no spec.yaml")
    for override in overrides or []:
        if any(f"{override.partition('=')[0]}.".startswith(f"{field}.") for field in OWN_FIELDS):
            raise BadInput(f"--set {override}: an evaluation has one stage, no allocator and no drafter; use --model")
    return load_spec(target / "spec.yaml" if is_run else target, overrides)


def _alone(spec: Spec, model: str) -> Spec:
    """The spec of an evaluation of that model and nothing else."""
    data = spec.model_dump() | {"recipe": [{"stage": "evaluate"}], "allocator": None, "drafter": {}}
    data["model"]["source"] = model
    data["run"]["sinks"] = []  # the run's own have its evaluations
    data["cluster"]["metrics_port"] = 0  # the run itself may be under way and have the port
    return parse_spec(data, f"--model {model}")


def _evaluated(spec: Spec, run: RunDirectory, quiet: bool) -> dict[str, Any]:
    with closing(Display(spec.run.name) if quiet else make_display(spec)) as display:
        train(spec, run.path, display)
    (evaluation,) = (event for event in run.events() if event["event"] == "evaluated")
    return {key: value for key, value in evaluation.items() if key not in ("event", "time_s", "stage")}


@contextmanager
def _scratch() -> Iterator[Path]:
    """A directory that goes when it is done with; a failed run's stays, for its logs."""
    path, failed = Path(tempfile.mkdtemp(prefix="tailrace-evaluate-")), False
    try:
        yield path
    except RunFailed as error:
        failed = True
        raise RunFailed(f"{error}\nlogs in {path}") from error
    finally:
        if not failed:
            shutil.rmtree(path)
