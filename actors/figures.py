"""What actors say of themselves since they were last asked; the driver asks after an epoch, and now and then
within a long one."""

import functools
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drafter.control import SpeculationStats

MOMENTS = {"resident_bytes", "running", "waiting"}
"""Figures that state a moment: the newest one counts."""


class Figures:
    """Numbers add up from answer to answer, but for peaks and those that state a moment."""

    def row(self) -> dict[str, float]:
        """The numbers by name."""
        return {name: value for name, value in vars(self).items() if not name.startswith("speculation")}

    def add(self, later: "Figures") -> None:
        """Take in the next answer."""
        for name, value in later.row().items():
            before = getattr(self, name)
            setattr(self, name, value if name in MOMENTS else max(before, value) if "peak" in name else before + value)


@dataclass
class WorkerFigures(Figures):
    """Of a rollout worker."""

    resident_bytes: int = 0
    """At the moment."""
    steps: int = 0
    busy_s: float = 0.0
    """Inside steps."""
    request_steps: int = 0
    """Requests that ran, summed over steps."""
    running: int = 0
    """At the moment."""
    waiting: int = 0
    """At the moment."""
    running_peak: int = 0
    waiting_peak: int = 0
    kv_cache_peak: float = 0.0
    """Largest share of the key-value cache that was taken after a step, in [0, 1]."""
    prompt_tokens: int = 0
    """Of the requests given to the engine; those of `prefix_hits` were not computed."""
    generated_tokens: int = 0
    """Of responses that ended here or went on elsewhere."""
    prefix_queries: int = 0
    """Prompt tokens looked up in the prefix cache."""
    prefix_hits: int = 0
    preemptions: int = 0
    """Requests that lost their place in the cache and began anew."""
    grading_s: float = 0.0
    ungraded_peak: int = 0
    """Most groups that waited for the grader."""
    speculation: SpeculationStats = field(default_factory=SpeculationStats)
    speculation_off: str | None = None
    """Why the engine does not speculate although it was asked to."""

    def add(self, later: "WorkerFigures") -> None:  # type: ignore[override]
        super().add(later)
        self.speculation.add(later.speculation)
        self.speculation_off = later.speculation_off


@dataclass
class LearnerFigures(Figures):
    """Of a learner rank."""

    resident_bytes: int = 0
    peak_bytes: int = 0
    """Most that it ever held: of the GPU where it learns on one, else of main memory."""
    busy_s: float = 0.0
    """Inside its calls."""
    learning_s: float = 0.0
    """Of these, in optimizer steps and what belongs to them."""
    tokens: int = 0
    """That went through the model."""


@dataclass
class AllocatorFigures(Figures):
    """Of the allocator."""

    resident_bytes: int = 0
    decide_s: float = 0.0


def resident_bytes() -> int:
    """Main memory that this process holds."""
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_resident_bytes() -> int:
    """Most main memory that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def timed(*names: str) -> Callable[[Callable], Callable]:
    """Decorates a method of an actor: its seconds are added to these fields of the actor's `_figures`.

    A call within a timed call belongs to it.
    """

    def decorate(method: Callable) -> Callable:
        @functools.wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return method(self, *args, **kwargs)
            self._inside, began = True, time.perf_counter()
            try:
                return method(self, *args, **kwargs)
            finally:
                self._inside, seconds = False, time.perf_counter() - began
                for name in names:
                    setattr(self._figures, name, getattr(self._figures, name) + seconds)

        return call

    return decorate
