"""How many rollout workers a run has use for, within what the spec allows. Pure."""

import math
from collections import deque

PATIENCE_PHASES = 4
"""A worker more than needed stays for so many rollout phases: the next may be larger again, and a start takes time."""


class Scale:
    def __init__(self, least: int, most: int, slots: int) -> None:
        """`slots`: responses that one engine decodes together."""
        self._least, self._most, self._slots = least, most, slots
        self._needed: deque[int] = deque(maxlen=PATIENCE_PHASES)

    def phase(self, rollouts: int) -> int:
        """Workers wanted when a rollout phase of this size begins: as many as it fills with responses, and no fewer
        than any of the last few phases did."""
        self._needed.append(math.ceil(rollouts / self._slots))
        return self._within(max(self._needed))

    def pause(self) -> int:
        """Workers wanted while nothing is sampled for a while."""
        self._needed.clear()
        return self._within(0)

    def _within(self, needed: int) -> int:
        return min(max(needed, self._least), self._most)
