"""The allocator as a Ray actor: a shell around `allocator.allocator.Allocator`."""

import time
from typing import Any

import numpy as np

from actors.figures import AllocatorFigures, resident_bytes
from actors.logs import send_output_to_log
from allocator.allocator import Allocation, Allocator


class AllocatorActor:
    """Runs inside Ray as `ray.remote(AllocatorActor)`."""

    def __init__(self, **arguments: Any) -> None:
        """`arguments`: those of `Allocator`."""
        send_output_to_log()
        self._allocator = Allocator(**arguments)
        self._figures = AllocatorFigures()

    def decide(self, epoch: int) -> Allocation:
        began = time.perf_counter()
        allocation = self._allocator.decide(epoch)
        self._figures.decide_s += time.perf_counter() - began
        return allocation

    def observe(
        self, epoch: int, prompts: np.ndarray, successes: np.ndarray, failures: np.ndarray, tokens: np.ndarray
    ) -> tuple[dict[str, Any], bool, bool]:
        """Give back an epoch's outcome; the allocator's figures, whether the update waits for further groups, and
        whether the budget is spent."""
        self._allocator.observe(epoch, prompts, successes, failures, tokens)
        figures = {**self._allocator.metrics(), "posterior_prompts": self._allocator.posterior_prompts()}
        return figures, self._allocator.holds_update, self._allocator.exhausted

    def take_figures(self) -> AllocatorFigures:
        """What it did since this was last asked."""
        taken, self._figures = self._figures, AllocatorFigures()
        taken.resident_bytes = resident_bytes()
        return taken

    def state_dict(self) -> dict[str, Any]:
        return self._allocator.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._allocator.load_state_dict(state)
