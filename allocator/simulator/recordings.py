"""Success rates of every prompt over a run, measured once: any policy can then be replayed on them without a model."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from allocator.problem import Floats, Problem

BANDWIDTH = 0.1
"""Of the smoothing over time: deviation of the Gaussian kernel, as a share of the budget."""
PRIOR_RESPONSES = 1.0
"""Weight of the pool's success rate at the time in each prompt's own."""
_COUNTS = ("epochs", "budget_rollouts", "group_rollouts")


class BadRecording(ValueError):
    """The file or directory holds no recording; the message says why."""


@dataclass(frozen=True, eq=False)
class Recording:
    """`success_rate` [T, M] at T points evenly spaced in the budget spent; `families` [M] by name, None without.

    `epochs`, `budget_rollouts`, `group_rollouts`: of the run recorded; 0 if unknown.
    """

    success_rate: Floats
    families: tuple[str, ...] | None = None
    epochs: int = 0
    budget_rollouts: int = 0
    group_rollouts: int = 0

    def problem(self) -> Problem:
        """The run's budget in the paper's proportions: units of half a group, N_max = 2, capacity 33/32 of the pace.

        What is unknown is as in the paper's experiments: groups of 8, 7.14 units per prompt, 500 epochs (fewer for
        pools so small that an epoch would have less than 8 groups).
        """
        prompts = self.success_rate.shape[1]
        group = self.group_rollouts or 8
        units = 2 if group % 2 == 0 else 1
        budget = self.budget_rollouts * units // group or round(64_000 / 8_958 * prompts)
        epochs = self.epochs or max(1, min(500, budget // (8 * units)))
        pace = -(-budget // epochs)
        capacity = min(max(-(-pace * 33 // 32 // units) * units, units), prompts * units)
        return Problem(prompts, epochs, min(budget, epochs * capacity), capacity, units, group // units)

    def save(self, path: Path) -> None:
        entries: dict[str, Any] = {name: getattr(self, name) for name in _COUNTS}
        if self.families is not None:
            entries["families"] = np.array(self.families)
        np.savez_compressed(path, success_rate=self.success_rate.astype(np.float32), **entries)

    @classmethod
    def load(cls, path: Path) -> "Recording":
        """From an .npz file (`success_rate` needed, the rest optional), or from the directory of a run.

        Raises:
            BadRecording: if it cannot be read, or holds anything but chances in [0, 1].
        """
        if path.is_dir():
            return cls.of_run(path)
        try:
            with np.load(path) as file:
                entries = dict(file)
        except (OSError, ValueError, EOFError, TypeError, BadZipFile) as error:
            raise BadRecording(f"{path}: no .npz file: {error}") from None
        rates = entries.get("success_rate")
        if rates is None or rates.ndim != 2 or rates.dtype.kind != "f" or 0 in rates.shape:
            raise BadRecording(f"{path}: no floats success_rate [points, prompts]")
        if not ((rates >= 0) & (rates <= 1)).all():
            raise BadRecording(f"{path}: success_rate is not within 0..1")
        families = entries.get("families")
        if families is not None and families.shape != rates.shape[1:]:
            raise BadRecording(f"{path}: {families.shape} families for {rates.shape[1]} prompts")
        names = None if families is None else tuple(map(str, families))
        for name in _COUNTS:
            count = entries.get(name, np.array(0))
            if count.shape != () or count.dtype.kind not in "iu" or count < 0:
                raise BadRecording(f"{path}: {name} must be a count, not {count.tolist()}")
        counts = [int(entries.get(name, 0)) for name in _COUNTS]
        return cls(rates.astype(np.float64), names, *counts)

    @classmethod
    def of_run(cls, run_dir: Path, points: int = 11) -> "Recording":
        """Smoothed success rates of the prompts that a run sampled, from its journal; of use if it was a uniform run.

        Raises:
            BadRecording: if there is no journal, or no finished epoch in it.
        """
        events = list(_events(run_dir / "journal.jsonl"))
        decided = {event["epoch"]: event for event in events if event["event"] == "decided"}
        rewards = {event["epoch"]: event["reward_sums"] for event in events if event["event"] == "rolled_out"}
        epochs = [epoch for epoch in sorted(decided.keys() & rewards.keys()) if decided[epoch]["prompts"]]
        if not epochs:
            raise BadRecording(f"{run_dir}: its journal holds no epoch that was rolled out")
        place: dict[str, int] = {}
        for epoch in epochs:
            for prompt in decided[epoch]["prompts"]:
                place.setdefault(prompt, len(place))
        won, sampled = np.zeros((len(epochs), len(place))), np.zeros((len(epochs), len(place)))
        for row, epoch in enumerate(epochs):
            columns = [place[prompt] for prompt in decided[epoch]["prompts"]]
            won[row, columns], sampled[row, columns] = rewards[epoch], decided[epoch]["rollouts"]
        largest = max(max(decided[epoch]["rollouts"]) for epoch in epochs)
        return cls(_smoothed(won, sampled, points), None, max(epochs) + 1, int(sampled.sum()), largest)


def _smoothed(won: Floats, sampled: Floats, points: int) -> Floats:
    """Success rates [points, M] of the rewards `won` [E, M] in responses `sampled` [E, M]: a kernel mean over time."""
    spent = np.cumsum(sampled.sum(axis=1))
    middle = (spent - sampled.sum(axis=1) / 2) / spent[-1]
    kernel = np.exp(-0.5 * ((np.linspace(0, 1, points)[:, None] - middle) / BANDWIDTH) ** 2)
    kernel /= kernel.max(axis=1, keepdims=True)  # beyond the outermost epochs all weights may be tiny
    pool = (kernel @ won.sum(axis=1)) / (kernel @ sampled.sum(axis=1))
    return (kernel @ won + PRIOR_RESPONSES * pool[:, None]) / (kernel @ sampled + PRIOR_RESPONSES)


def _events(journal: Path) -> Iterator[dict]:
    try:
        lines = journal.read_text().splitlines()
    except OSError as error:
        raise BadRecording(f"{journal}: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            if number < len(lines):  # a kill may tear the last line, and only that
                raise BadRecording(f"{journal}:{number}: not JSON") from None
