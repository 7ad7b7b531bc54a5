"""What the actors say of themselves, gathered for the metrics endpoint and for the row of an epoch.

Nobody waits for it: workers are asked when a rollout phase is over and the others behind the update, and their answers
are taken in when the epoch is recorded. In a long phase workers are asked every ten seconds, so that the endpoint shows
the engines as they are. One that is dead or does not answer says nothing; whoever needs it will find out.
"""

import dataclasses
import logging
import time
from collections.abc import Mapping
from typing import Any

from actors.figures import WorkerFigures, resident_bytes
from cluster.metrics import Metrics
from cluster.placement import Actors

ASK_EVERY_S = 10.0
"""Between two looks at the workers within a phase."""
ANSWER_S = 10.0
"""Longest wait for an answer, which takes a millisecond where nothing is wrong."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Question:
    kind: str
    """`workers`, `learner` or `allocator`."""
    name: str
    asked: float
    """On the clock of time.monotonic."""


class Watch:
    """One per run. `Actors.workers` may change at any time."""

    def __init__(self, actors: Actors, metrics: Metrics | None = None) -> None:
        self._actors, self._metrics = actors, metrics
        self._open: dict[Any, _Question] = {}  # by the reference of the answer
        self._gathered: dict[str, WorkerFigures] = {}  # since `workers` was last called
        self._epoch: dict[str, WorkerFigures] = {}  # what it gave
        self._others: dict[str, dict[str, Any]] = {}
        self._asked, self._asked_at = False, 0.0

    def look(self) -> None:
        """A rollout phase goes on."""
        if time.monotonic() - self._asked_at > ASK_EVERY_S:
            silent = {question.name for question in self._open.values() if question.kind == "workers"}
            self._ask_workers(silent)
        if self._open:
            self._take_in(0.0)

    def ask_workers(self) -> None:
        """A rollout phase is over: `workers` will need no call of its own."""
        self._ask_workers(set())
        self._asked = True

    def ask_others(self) -> None:
        """Learner ranks and allocator answer when they have done what they were given."""
        for i, rank in enumerate(self._actors.ranks):
            self._ask("learner", str(i), rank)
        if self._actors.allocator is not None:
            self._ask("allocator", "", self._actors.allocator)

    def workers(self) -> dict[str, WorkerFigures]:
        """What the workers did since this was last called."""
        if not self._asked:
            self.ask_workers()
        self._take_in(ANSWER_S)
        self._asked = False
        self._epoch, self._gathered = self._gathered, {}
        return self._epoch

    def row(self) -> dict[str, Any]:
        """As it stands in metrics.jsonl, by kind, figure and name: the workers' of the newest call of `workers`."""
        self._take_in(ANSWER_S)
        others, self._others = self._others, {}
        return {
            "workers": _columns({name: figures.row() for name, figures in self._epoch.items()}),
            "learner": _columns(others.get("learner", {})),
            "allocator": others.get("allocator", {}).get("", {}),
            "driver": {"resident_bytes": resident_bytes()},
        }

    # Inside.

    def _ask_workers(self, leave_out: set[str]) -> None:
        self._asked_at = time.monotonic()
        for name, worker in self._actors.workers.items():
            if name not in leave_out:
                self._ask("workers", name, worker)

    def _ask(self, kind: str, name: str, actor: Any) -> None:
        self._open[actor.take_figures.remote()] = _Question(kind, name, time.monotonic())

    def _take_in(self, timeout_s: float) -> None:
        """The answers that are there within `timeout_s`; those of workers go to the endpoint at once."""
        import ray

        refs = list(self._open)
        ready = ray.wait(refs, num_returns=len(refs), timeout=timeout_s)[0] if refs else []
        answers: dict[str, WorkerFigures] = {}
        for ref in ready:
            question = self._open.pop(ref)
            try:
                answer = ray.get(ref)
            except ray.exceptions.RayError as error:
                logging.warning("%s %s says nothing of itself: %s", question.kind, question.name, type(error).__name__)
                continue
            if question.kind == "workers":
                answers.setdefault(question.name, WorkerFigures()).add(answer)
                self._gathered.setdefault(question.name, WorkerFigures()).add(answer)
            else:
                self._others.setdefault(question.kind, {})[question.name] = dataclasses.asdict(answer)
        if self._metrics is not None and (answers or self._open):
            self._show(self._metrics, answers)

    def _show(self, metrics: Metrics, answers: Mapping[str, WorkerFigures]) -> None:
        now = time.monotonic()
        unanswered = dict.fromkeys(self._actors.workers, 0.0)
        for question in self._open.values():
            if question.kind == "workers" and question.name in unanswered:
                unanswered[question.name] = max(unanswered[question.name], now - question.asked)
        figures = _columns({name: answer.row() for name, answer in answers.items()})
        metrics.keep_workers(set(self._actors.workers))
        metrics.observe_epoch({"workers": {**figures, "unanswered_s": unanswered}})


def _columns(rows: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """By figure and then by name, as labels want it."""
    return {key: {name: row[key] for name, row in rows.items()} for key in next(iter(rows.values()), {})}
