"""The allocator as a Ray actor: a shell around `allocator.allocator.Allocator`."""

from typing import Any

import numpy as np

from actors.logs import send_output_to_log
from allocator.allocator import Allocation, Allocator
from allocator.spec import AllocatorSpec


class AllocatorActor:
    """Runs inside Ray as `ray.remote(AllocatorActor)`."""

    def __init__(self, spec: AllocatorSpec, prompts: int, epochs: int, seed: int) -> None:
        send_output_to_log()
        self._allocator = Allocator(spec, prompts, epochs, seed)

    def decide(self, epoch: int) -> Allocation:
        return self._allocator.decide(epoch)

    def observe(
        self, epoch: int, prompts: np.ndarray, successes: np.ndarray, failures: np.ndarray
    ) -> tuple[dict[str, float], bool]:
        """Give back an epoch's outcome; the allocator's figures, and whether the budget is spent."""
        self._allocator.observe(epoch, prompts, successes, failures)
        return self._allocator.metrics(), self._allocator.exhausted

    def state_dict(self) -> dict[str, Any]:
        return self._allocator.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._allocator.load_state_dict(state)
