"""Which drafter serves. Pure: what a held-out slice promises and what the engines report in, decisions out.

A candidate is published when the newest held-out responses say that it accepts more than what is in service; it is
rolled back when the engines then accept less than they did before, beyond chance.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

PUBLISH_MARGIN = 0.02
"""Accepted tokens per step by which a candidate must be better: less is not worth disturbing the engines' estimates."""
ROLLBACK_DROP = 0.1
"""Relative fall of the first draft token's acceptance that counts as a drop."""
ROLLBACK_Z = 3.0
"""Standard errors by which the fall must be more than chance."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A drafter as a held-out slice sees it."""

    survival: tuple[float, ...]
    """s_i: share of positions at which the first i drafts were accepted."""
    serving_survival: tuple[float, ...]
    """The same of the drafter in service, on the same slice; empty while none is."""

    @property
    def accept_length(self) -> float:
        """Tokens per step with all of them drafted."""
        return expected_length(self.survival)


class Publisher:
    def __init__(self, serving: bool) -> None:
        """`serving`: whether a learned drafter is in service from the start."""
        self.version = 1 if serving else 0
        """0 while n-grams serve."""
        self._before: tuple[float, float] | None = None
        """Acceptance of the first draft before the newest publish and its number of trials; None once it is settled."""
        self._live: tuple[float, float] | None = None

    def wants(self, candidate: Candidate, ngram_length: float | None) -> bool:
        """Whether to publish. The first learned drafter competes with the tokens per step that n-grams gave."""
        rival = expected_length(candidate.serving_survival) if candidate.serving_survival else ngram_length or 1.0
        return candidate.accept_length > rival + PUBLISH_MARGIN

    def published(self) -> int:
        """The candidate enters service; its version."""
        self._before = self._live if self.version else None
        self.version += 1
        return self.version

    def drops(self, accepted: int, tried: int) -> bool:
        """An epoch's first draft tokens, accepted of tried: whether the drafter in service must be rolled back."""
        if not tried:
            return False
        live, before = accepted / tried, self._before
        self._live, self._before = (live, tried), None
        if before is None:
            return False
        old, n = before
        error = math.sqrt(max(old * (1 - old), 1e-4) * (1 / n + 1 / tried))
        return live < old * (1 - ROLLBACK_DROP) and old - live > ROLLBACK_Z * error


class Worth:
    """Whether training in bubbles is worth its while: a run whose bubbles are too small says so and stops."""

    EPOCHS = 10
    """Epochs over which it is judged."""
    MIN_STEPS = 1.0
    """Micro-steps per epoch below which nothing is learned from bubbles."""

    def __init__(self) -> None:
        self._steps: list[float] = []

    def epoch(self, micro_steps: int) -> bool:
        """An epoch gave so many micro-steps; whether training goes on."""
        self._steps = [*self._steps, micro_steps][-self.EPOCHS :]
        return len(self._steps) < self.EPOCHS or sum(self._steps) / self.EPOCHS >= self.MIN_STEPS


def expected_length(survival: Sequence[float]) -> float:
    """Tokens per step when all of these are drafted."""
    return 1 + sum(survival)
