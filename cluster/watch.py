"""What the actors say of themselves, gathered for the metrics endpoint and for the row of an epoch.

Hardly anybody waits for it: actors are asked while the learner works, and their answers are there, or nearly, when the
epoch is recorded. In a long rollout phase workers are asked every ten seconds, so that the endpoint shows the engines
as they are; where epochs take less than two seconds, only once in two, or the questions would cost a share of the time.
An actor that is dead or does not answer says nothing; whoever needs it will find out.
"""

import dataclasses
import logging
import time
from collections.abc import Mapping
from typing import Any

from actors.figures import AllocatorFigures, Figures, LearnerFigures, WorkerFigures, resident_bytes
from cluster.metrics import Metrics
from cluster.placement import Actors

ASK_EVERY_S = 10.0
"""Between two looks at the workers within a phase."""
ASK_AT_MOST_EVERY_S = 2.0
"""Between two questions at the end of epochs: the row of an epoch that is shorter may have nothing of the actors, and
the next one what belongs to both."""
ANSWER_S = 10.0
"""Longest wait for an answer, which takes a millisecond where nothing is wrong."""

ANSWERS: dict[str, type[Figures]] = {
    "workers": WorkerFigures,
    "learner": LearnerFigures,
    "allocator": AllocatorFigures,
}


@dataclasses.dataclass(frozen=True, slots=True)
class _Question:
    kind: str
    """`workers`, `learner` or `allocator`."""
    name: str
    asked: float
    """On the clock of time.monotonic."""


class Watch:
    """One per run. `Actors.workers` may change at any time."""

    def __init__(self, actors: Actors, metrics: Metrics | None = None, every_epoch: bool = False) -> None:
        """`every_epoch`: something is decided by what the workers say of each, however short."""
        self._actors, self._metrics, self._every_epoch = actors, metrics, every_epoch
        self._open: dict[Any, _Question] = {}  # by the reference of the answer
        self._gathered: dict[str, dict[str, Any]] = {kind: {} for kind in ANSWERS}  # since they were last taken
        self._epoch: dict[str, WorkerFigures] = {}  # what `workers` gave
        self._asked_at = time.monotonic() - ASK_AT_MOST_EVERY_S
        self._last = False

    def look(self) -> None:
        """A rollout phase goes on."""
        if time.monotonic() - self._asked_at > ASK_EVERY_S:
            silent = {question.name for question in self._open.values() if question.kind == "workers"}
            self._ask_workers(silent)
        self._take_in(list(self._open), 0.0)

    def ask(self, last: bool) -> None:
        """An update has begun, perhaps the `last` of a stage. Workers answer at once, learner ranks when it is done."""
        if not last and not self._every_epoch and time.monotonic() - self._asked_at < ASK_AT_MOST_EVERY_S:
            return
        self._last = last
        self._ask_workers(set())
        for i, rank in enumerate(self._actors.ranks):
            self._ask("learner", str(i), rank)
        if self._actors.allocator is not None:
            self._ask("allocator", "", self._actors.allocator)

    def workers(self) -> dict[str, WorkerFigures]:
        """What the workers have said since this was last called."""
        self._take_in([ref for ref, question in self._open.items() if question.kind == "workers"], ANSWER_S)
        self._epoch = self._taken("workers")
        return self._epoch

    def forget(self) -> None:
        """What the workers have done up to now belongs to no epoch."""
        self._ask_workers(set())
        self.workers()

    def row(self) -> dict[str, Any]:
        """As it stands in metrics.jsonl, by kind, figure and name: the workers' of the newest call of `workers`, and of
        the others what is there; what comes later stands in the next row, so that of the last epoch is waited for."""
        self._take_in(list(self._open), ANSWER_S if self._last else 0.0)
        self._last = False
        return {
            "workers": _columns(self._epoch),
            "learner": _columns(self._taken("learner")),
            "allocator": allocator.row() if (allocator := self._taken("allocator").get("")) else {},
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

    def _taken(self, kind: str) -> dict[str, Any]:
        taken, self._gathered[kind] = self._gathered[kind], {}
        return taken

    def _take_in(self, refs: list[Any], timeout_s: float) -> None:
        """Of these answers those that are there within `timeout_s`; the workers' go to the endpoint at once."""
        answers: dict[str, WorkerFigures] = {}
        for ref, answer in _got(refs, timeout_s) if refs else []:
            question = self._open.pop(ref)
            if isinstance(answer, Exception):
                reason = type(answer).__name__
                logging.warning("%s %s says nothing of itself: %s", question.kind, question.name, reason)
                continue
            gathered = [self._gathered[question.kind]] + [answers] * (question.kind == "workers")
            for each in gathered:
                each.setdefault(question.name, ANSWERS[question.kind]()).add(answer)
        if self._metrics is not None and (answers or any(q.kind == "workers" for q in self._open.values())):
            self._show(self._metrics, answers)

    def _show(self, metrics: Metrics, answers: Mapping[str, WorkerFigures]) -> None:
        now = time.monotonic()
        unanswered = dict.fromkeys(self._actors.workers, 0.0)
        for question in self._open.values():
            if question.kind == "workers" and question.name in unanswered:
                unanswered[question.name] = max(unanswered[question.name], now - question.asked)
        figures = _columns(answers)
        metrics.keep_workers(set(self._actors.workers))
        metrics.observe_epoch({"workers": {**figures, "unanswered_s": unanswered}})


def _got(refs: list[Any], timeout_s: float) -> list[tuple[Any, Any]]:
    """References that are there within `timeout_s` with what they hold, or with the error instead."""
    import ray

    if timeout_s:
        try:
            return list(zip(refs, ray.get(refs, timeout=timeout_s), strict=True))  # the usual case, in one call
        except ray.exceptions.GetTimeoutError:
            timeout_s = 0.0
        except ray.exceptions.RayError:
            pass  # of one of them
    found = []
    for ref in ray.wait(refs, num_returns=len(refs), timeout=timeout_s)[0]:
        try:
            found.append((ref, ray.get(ref)))
        except ray.exceptions.RayError as error:
            found.append((ref, error))
    return found


def _columns(figures: Mapping[str, Figures]) -> dict[str, dict[str, float]]:
    """By figure and then by name, as labels want it."""
    rows = {name: each.row() for name, each in figures.items()}
    return {key: {name: row[key] for name, row in rows.items()} for key in next(iter(rows.values()), {})}
