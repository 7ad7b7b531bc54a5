"""The tables of a report, and how its numbers are written. Pure."""

from collections.abc import Sequence
from typing import Any

from cluster.display import duration

Table = dict[str, Any]


def evaluation_table(evaluations: Sequence[dict[str, Any]]) -> Table:
    """A row per evaluation; after ± stands half the width of the 95 % interval."""
    ks = sorted({key for one in evaluations for key in one if key.startswith("pass@") and key[5:].isdigit()}, key=_k)
    head = ["stage", "weights", "rollouts", *ks, "prompts", "tokens", "cut", "entropy", "distinct", "language loss"]
    rows = []
    for one in evaluations:
        spreads = one.get("ci") or {}
        scores = [percent(one.get(key)) + _spread(spreads.get(key)) for key in ks]
        plain = [figure(one.get(key)) for key in ("entropy", "distinct_correct_mean", "language_loss")]
        size, tokens = count(one.get("prompts")), figure(one.get("response_tokens_mean"))
        of = [one["stage"], one.get("weight_version"), count(one["spent_rollouts"])]
        rows.append([*of, *scores, size, tokens, percent(one.get("truncated_share")), *plain])
    return {"head": head, "rows": rows}


def family_table(evaluations: Sequence[dict[str, Any]]) -> Table:
    """pass@1 and pass@k of every family, in the first and the last evaluation; no rows where there is one family."""
    before, after = ((evaluations[i].get("families") or {}) if evaluations else {} for i in (0, -1))
    names = sorted({*before, *after})
    rows = []
    for name in names if len(names) > 1 else []:
        pairs = [(before.get(name, {}).get(key), after.get(name, {}).get(key)) for key in ("pass@1", "pass@k")]
        cells = [(percent(a), percent(b)) if len(evaluations) > 1 else (percent(b),) for a, b in pairs]
        rows.append([name, *(cell for pair in cells for cell in pair)])
    k = evaluations[-1].get("k", "k") if evaluations else "k"
    head = ["family", "pass@1", f"pass@{k}"]
    if len(evaluations) > 1:
        head = ["family", "pass@1 first", "last", f"pass@{k} first", "last"]
    return {"caption": "By family", "head": head, "rows": rows}


def stage_table(stages: Sequence[dict[str, Any]]) -> Table:
    rows = [[i, s["stage"], s["about"], s["state"], clock(s["took_s"])] for i, s in enumerate(stages)]
    return {"head": ["", "stage", "settings", "state", "time"], "rows": rows, "text": [1, 2]}


def trouble_table(newest: Sequence[dict[str, Any]]) -> Table:
    rows = [[clock(event["after_s"]), event["event"], event["what"]] for event in newest]
    return {"head": ["after", "event", "what"], "rows": rows, "text": [1, 2]}


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def clock(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)


def _spread(interval: Sequence[float] | None) -> str:
    return f" ± {(interval[1] - interval[0]) / 2:.1%}" if interval else ""


def _k(key: str) -> int:
    return int(key[5:])
