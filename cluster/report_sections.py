"""The drawn sections of a report: learning, budget, bubbles, speculation. Each is a heading, figures with captions and
words for those who cannot see them, perhaps a table; None where a run has nothing of it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from allocator.journal import replay
from cluster import report_figures as figures
from cluster.allocation_plot import by_family
from cluster.lines import DAMAGE
from cluster.redact import text
from cluster.speculation_plot import (
    accept_length,
    accept_length_by_response,
    acceptance_by_position,
    timeline,
)

Section = dict[str, Any]


def section(name: str, title: str) -> Section:
    return {"id": name, "title": title, "intro": "", "figures": [], "table": None, "missing": ""}


def add_figure(to: Section, caption: str, words: str, draw: Callable[[Any], None]) -> None:
    """`words` say what the figure shows to those who cannot see it."""
    name = f"{to['id']}-{len(to['figures'])}"
    to["figures"].append({"id": name, "caption": caption, "words": words, "svg": figures.drawn(draw, name)})


def learning_section(rows: list[dict], evaluations: list[dict]) -> Section | None:
    """Reward and held-out accuracy against rollouts and tokens."""
    if not rows and not evaluations:
        return None
    made = section("learning", "Learning")
    try:
        rows = [row for row in rows if row["rollouts"]]  # an epoch without any has no reward
        reward = [float(row["reward_mean"]) for row in rows]
        said = f"Mean reward {reward[0]:.3f} in the first epoch, {reward[-1]:.3f} in the last. " if reward else ""
        scores = [float(one["pass@1"]) for one in evaluations]
        said += "Held-out pass@1 " + ", ".join(f"{score:.1%}" for score in scores) + "." if scores else ""
        for unit in ("rollouts", "tokens"):
            spent = [float(row[f"spent_{unit}"]) for row in rows]
            points = [
                {"spent": one[f"spent_{unit}"], "score": one["pass@1"], "ci": (one.get("ci") or {}).get("pass@1")}
                for one in evaluations
            ]
            add_figure(
                made, f"Reward and held-out accuracy against {unit}", said,
                partial(figures.learning, spent=spent, reward=reward, heldout=points, unit=unit),
            )  # fmt: skip
    except DAMAGE as error:
        made["missing"] = f"metrics.jsonl cannot be drawn: {text(f'{type(error).__name__}: {error}')}"
    return made


def budget_section(events: list[dict]) -> Section | None:
    """What the allocator spent, on which prompts; its decisions are taken again from the journal."""
    opening = next((event for event in events if event["event"] == "allocator"), None)
    if opening is None or not any(event["event"] == "rolled_out" for event in events):
        return None
    made = section("budget", "Budget")
    shares, first, allocator = [], None, None
    try:
        for allocator, _ in replay(events):
            shares.append(allocator.metrics()[f"spent_{allocator.spec.currency}"] / allocator.spec.budget)
            first = allocator.posterior_mean.copy() if first is None else first
    except DAMAGE as error:
        made["missing"] = f"the journal cannot be replayed from here on: {text(f'{type(error).__name__}: {error}')}"
    if allocator is None or first is None:
        return made
    last, rollouts = allocator.posterior_mean, allocator.pool.exposure * allocator.spec.unit_rollouts
    sampled = float((rollouts > 0).mean())
    made["intro"] = f"Policy {allocator.spec.policy}; {sampled:.1%} of {len(rollouts):,} prompts were sampled."
    families = by_family(np.array(opening["families"]), rollouts, first, last)
    add_figure(
        made, "Budget by difficulty: prompts and what they got",
        "; ".join(f"{name}: {row['rollouts']} rollouts for {row['prompts']} prompts" for name, row in families.items()),
        partial(figures.difficulty, beliefs=last, rollouts=rollouts),
    )  # fmt: skip
    add_figure(
        made, "Budget spent; grey: an even pace", f"{shares[-1]:.1%} of the budget after {len(shares)} epochs.",
        partial(figures.spending, shares=shares, epochs=int(opening["epochs"])),
    )  # fmt: skip
    made["table"] = {
        "caption": "By family",
        "head": ["family", "prompts", "rollouts", "per prompt", "believed at first", "at the end"],
        "rows": [
            [
                name, f"{row['prompts']:,}", f"{row['rollouts']:,}", f"{row['rollouts'] / row['prompts']:.1f}",
                f"{row['believed_first']:.2f}", f"{row['believed_last']:.2f}",
            ]
            for name, row in families.items()
        ],
    }  # fmt: skip
    return made


def bubble_section(rows: list[dict]) -> Section | None:
    """When rollout workers were idle, which is measured in every run, and what the drafter made of it."""
    rows = [row for row in rows if row.get("bubbles")]
    if not rows:
        return None
    made = section("bubbles", "Bubbles")
    try:
        idle, used = (sum(row["bubbles"][key] for row in rows) for key in ("idle_s", "harvested_s"))
        made["intro"] = (
            f"Rollout workers were idle for {idle:,.1f} s while others still generated; a drafter trained in "
            f"{used:,.1f} s of them ({used / idle if idle else 0:.0%})."
        )
        caption = "Bubbles: idle seconds (grey), and what the drafter trained in"
        if any(row["bubbles"]["stretches"] for row in rows):
            add_figure(made, caption, made["intro"], partial(timeline, rows=rows))
    except DAMAGE as error:
        made["missing"] = f"metrics.jsonl cannot be drawn: {text(f'{type(error).__name__}: {error}')}"
    return made


def speculation_section(rows: list[dict]) -> Section | None:
    """Acceptance, where something was drafted."""
    drafted = [row for row in rows if (row.get("speculation") or {}).get("draft_tokens")]
    if not drafted:
        return None
    made = section("speculation", "Speculation")
    try:
        lengths = [row["speculation"]["accept_length"] for row in drafted if row["speculation"]["accept_length"]]
        last = f"{lengths[0]:.2f} in the first epoch, {lengths[-1]:.2f} in the last." if lengths else "None known."
        for caption, draw in (
            ("Acceptance length by epoch; grey: another drafter enters service", accept_length),
            ("Share of drafts with the first i tokens accepted, last 10 epochs", acceptance_by_position),
            ("Acceptance length by response tokens so far, last 10 epochs", accept_length_by_response),
        ):
            add_figure(made, caption, last, partial(draw, rows=drafted))
    except DAMAGE as error:
        made["missing"] = f"metrics.jsonl cannot be drawn: {text(f'{type(error).__name__}: {error}')}"
    return made
