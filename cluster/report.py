"""`tailrace report`: a run as one HTML file that needs nothing else, from what the run directory holds.

Reads journal, metrics, spec and summary alone, so it serves a run that is under way, was killed, or has no rl stage.
What a run wrote is escaped and without its secrets; what cannot be drawn is said to be so in its place.
"""

import fcntl
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader

from cluster.checkpoint import RunDirectory
from cluster.lines import as_written, write_atomically
from cluster.redact import redacted
from cluster.report_sections import bubble_section, budget_section, learning_section, speculation_section
from cluster.report_tables import clock, count, evaluation_table, family_table, percent, stage_table, trouble_table
from cluster.summary import without_counts
from cluster.yaml_text import read_yaml
from trainer.types import BadInput

TEMPLATE = "report.html.jinja"
ROUTINE = {
    "run_started", "run_finished", "allocator", "stage_started", "stage_finished", "decided", "dispatched", "completed",
    "rolled_out", "published", "evaluated", "checkpoint", "exported", "weights_loaded", "moved", "leased",
    "lease_returned", "drafter_published", "sink_opened",
}  # fmt: skip
"""Events of a run without trouble. Every other one is listed, those of later versions too."""
ASKED_FOR = {"run_resumed", "interrupted", "worker_asked", "worker_joined", "worker_retired"}
"""Listed beside the failures, and none."""
MOST_EVENTS = 100
"""Newest of them that are listed one by one."""
SHOWN = (
    "name", "status", "wall_s", "time", "rollouts", "evaluations", "verdict", "restarts", "resumed", "dropped",
    "epochs", "stages", "unreadable_lines",
)  # fmt: skip
"""What the command prints of it as JSON, beside the path and the number of events of trouble by kind."""
PHASES = ("rollout", "learn", "publish", "pretrain", "sft", "evaluate", "other")
"""Where the wall time goes, as in summary.json's `speed`."""


def write_report(run_dir: Path, out: Path | None = None) -> dict[str, Any]:
    """Write the report to `out`, RUN_DIR/report.html if not given; gives its figures, and `path`.

    Raises BadInput for a directory that is no run, and for a file that cannot be written.
    """
    run = RunDirectory(run_dir)
    path = out or run.path / "report.html"
    with as_written(run.path):
        page = render(facts := figures(run))
    try:
        write_atomically(path, page)
    except (OSError, ValueError) as error:  # ValueError: no name, a NUL
        raise BadInput(f"--out {path}: cannot be written: {error}") from None
    return {"path": str(path), **{key: facts[key] for key in SHOWN}, "trouble": facts["trouble"]["counts"]}


def leave_report(run: RunDirectory) -> None:
    """Write a finished run's report; a run does not fail for it."""
    try:
        write_report(run.path)
    except Exception as error:
        run.journal("report_failed", why=f"{type(error).__name__}: {error}")


def render(facts: dict[str, Any]) -> str:
    """The page. Everything that is not SVG of `cluster.report_figures` is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"percent": percent, "count": count, "clock": clock}
    return environment.get_template(TEMPLATE).render(facts)


def figures(run: RunDirectory) -> dict[str, Any]:
    """All that the page shows, without secrets. Raises BadInput for a directory that is no run."""
    if not os.path.isfile(run.path / "spec.yaml"):
        raise BadInput(f"{run.path}: not a run directory, it has no spec.yaml")
    spec = redacted(_mapping(run.path / "spec.yaml", read_yaml))
    summary_path = run.path / "summary.json"
    summary = redacted(_mapping(summary_path, _read_json)) if summary_path.is_file() else {}
    events, torn_events = _lines(run.path / "journal.jsonl", "event")
    rows, torn_rows = _lines(run.path / "metrics.jsonl", "epoch")
    evaluations = redacted(_evaluations(events))
    sections = [
        learning_section(rows, evaluations), budget_section(events), bubble_section(rows), speculation_section(rows),
    ]  # fmt: skip
    evaluation = summary.get("evaluation") or {}
    phases, wall_s = _time(summary, rows, events)
    known = {
        "name": str((spec.get("run") or {}).get("name", run.path.name)),
        "seed": (spec.get("run") or {}).get("seed"),
        "status": _status(run, summary, events),
        "began": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(events[0]["time_s"])) if events else "",
        "wall_s": wall_s,
        "time": phases,
        "rollouts": _rollouts(spec, summary, events),
        "evaluations": evaluations,
        "verdict": evaluation.get("verdict"),
        "restarts": summary.get("restarts", 0),
        "resumed": sum(e["event"] == "run_resumed" for e in events),
        "dropped": sum(e["event"] == "update_dropped" for e in events),
        "epochs": len({row["epoch"] for row in rows}),
        "stages": _stages(spec, events),
        "trouble": _trouble(events),
        "unreadable_lines": torn_events + torn_rows,
        "versions": summary.get("versions") or {},
        "spec": {name: yaml.safe_dump(part, sort_keys=False).strip() for name, part in spec.items()},
    }
    tables = {
        "evaluation_table": evaluation_table(known["evaluations"]),
        "family_table": family_table(known["evaluations"]),
        "stage_table": stage_table(known["stages"]),
        "trouble_table": trouble_table(known["trouble"]["newest"]),
    }
    return known | tables | {"sections": [section for section in sections if section]}


def _mapping(path: Path, read: Callable[[Path], Any]) -> dict[str, Any]:
    data = read(path)
    if not isinstance(data, dict):
        raise BadInput(f"{path}: must hold a mapping, not {type(data).__name__}")
    return data


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path}: cannot be read: {' '.join(str(error).split())}") from None


def _lines(path: Path, key: str) -> tuple[list[dict[str, Any]], int]:
    """Records that have `key`, and how many lines are none: a kill tears lines, and a report is no reason to stop."""
    records, torn = [], 0
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            torn += 1
            continue
        if isinstance(record, dict) and key in record:
            records.append(record)
        else:
            torn += 1
    return records, torn


def _status(run: RunDirectory, summary: dict[str, Any], events: list[dict]) -> str:
    """`finished`, `running`, `interrupted` (asked to stop) or `stopped` (nobody works on it, and it has no end)."""
    if summary:
        return str(summary.get("status", "finished"))
    try:
        with (run.path / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return "running"
    except OSError:
        pass  # no lock, thus nobody who holds it
    return "interrupted" if events and events[-1]["event"] == "interrupted" else "stopped"


def _evaluations(events: list[dict]) -> list[dict[str, Any]]:
    """One per evaluate stage, the newest where a kill had it repeated, with the rollouts and tokens spent before it."""
    found: dict[int, dict[str, Any]] = {}
    rollouts = tokens = 0
    for event in events:
        if event["event"] == "rolled_out":
            rollouts, tokens = rollouts + event["rollouts"], tokens + sum(event["tokens"])
        elif event["event"] == "evaluated":
            scores = {key: value for key, value in without_counts(event).items() if key not in ("event", "time_s")}
            found[event["stage"]] = {**scores, "spent_rollouts": rollouts, "spent_tokens": tokens}
    return [found[stage] for stage in sorted(found)]


def _rollouts(spec: dict, summary: dict[str, Any], events: list[dict]) -> dict[str, Any]:
    """Budget and spend; of a run without its end, what the journal says."""
    if summary.get("rollouts"):
        return summary["rollouts"]
    allocator = spec.get("allocator") or {}
    done = [event for event in events if event["event"] == "rolled_out"]
    return {
        "budget": allocator.get("budget_rollouts") or 0,
        "budget_tokens": allocator.get("budget_tokens") or 0,
        "spent": sum(event["rollouts"] for event in done),
        "tokens": sum(sum(event["tokens"]) for event in done),
        "lost": None,
    }


def _time(summary: dict, rows: list[dict], events: list[dict]) -> tuple[dict[str, float], float]:
    """Seconds by phase, and in all: of a run without its end those of its epochs, and from first to last event."""
    if speed := summary.get("speed"):
        phases = {phase: speed.get(f"{phase}_s", 0.0) for phase in PHASES}
        wall_s = speed["wall_s"]
    else:
        laps = [row.get("time", {}) for row in rows]
        phases = {phase: sum(lap.get(f"{phase}_s", 0.0) for lap in laps) for phase in PHASES}
        phases["other"] += sum(lap.get("decide_s", 0.0) for lap in laps)
        wall_s = events[-1]["time_s"] - events[0]["time_s"] if events else 0.0
    phases["start and rest"] = max(wall_s - sum(phases.values()), 0.0)
    return {phase: s for phase, s in phases.items() if s}, wall_s


def _stages(spec: dict, events: list[dict]) -> list[dict[str, Any]]:
    """The recipe, with what became of every stage and the seconds that somebody worked on it."""
    stages: list[dict[str, Any]] = [
        {"stage": str(stage.get("stage")), "state": "not begun", "took_s": 0.0, "about": _about(stage)}
        for stage in spec.get("recipe") or []
    ]
    since: float | None = None
    current, last = -1, 0.0
    for event in events:
        if event["event"] in ("stage_started", "run_resumed") and since is not None:
            stages[current]["took_s"] += last - since  # the process that began it was killed after its last event
            since = None
        if event["event"] == "stage_started":
            current, since = event["index"], event["time_s"]
            stages[current]["state"] = "unfinished"
        elif event["event"] == "stage_finished" and since is not None:
            stages[current]["took_s"] += event["time_s"] - since
            stages[current]["state"], since = "finished", None
        last = event["time_s"]
    if since is not None:
        stages[current]["took_s"] += last - since
    return stages


def _about(stage: dict[str, Any]) -> str:
    """The stage's own fields that were set, in the order of the spec."""
    plain = {key: value for key, value in stage.items() if key != "stage" and value not in (None, [], {})}
    return ", ".join(f"{key} {value}" for key, value in plain.items() if not isinstance(value, dict))


def _trouble(events: list[dict]) -> dict[str, Any]:
    began = events[0]["time_s"] if events else 0.0
    found = [redacted(event) for event in events if event["event"] not in ROUTINE]
    newest = [
        {
            "after_s": event["time_s"] - began,
            "event": event["event"],
            "what": ", ".join(f"{k} {v}" for k, v in event.items() if k not in ("event", "time_s")),
        }
        for event in found[-MOST_EVENTS:]
    ]
    counts = Counter(event["event"] for event in found)
    failures = sum(number for event, number in counts.items() if event not in ASKED_FOR)
    return {"failures": failures, "counts": dict(counts.most_common()), "newest": newest}
