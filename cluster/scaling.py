"""How many rollout workers a run has use for, which they are, and which have to go. Pure: names and times in, names
out."""

import itertools
import math
from collections import deque
from collections.abc import Mapping, Sequence

from cluster.fleet import Fleet

PATIENCE_PHASES = 4
"""A worker more than needed stays for so many rollout phases: the next may be larger again, and a start takes time."""
RESPITE_S = 1.5
"""Until Ray knows that the node of a lost worker has died, it would have the next one start there."""
NOTICE_S = 5.0
"""Before a node goes, what its workers have not finished is given to others."""


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


class Roster:
    """The workers that a run wants, by name; how those are that it has, is in its fleet.

    Invariants: a worker of the beginning that goes is wanted again; a further one leaves the roster with its end.
    """

    def __init__(self, fleet: Fleet, scale: Scale, base: Sequence[str], fixed: bool, now: float) -> None:
        """`base`: the workers of the beginning, which the run cannot do without for long. `fixed`: there are neither
        more nor fewer, because who samples what depends on how many there are. `now`: on the fleet's clock."""
        self._fleet, self._scale, self._fixed = fleet, scale, fixed
        self._base = frozenset(base)
        self.wanted: set[str] = set()
        """Without a process: to be started as soon as there is a place."""
        self._deadlines: dict[str, float] = {}  # on the clock of time.time; of workers whose node is about to go
        self._numbers = itertools.count(len(base))
        self._size = len(base)
        self._missing_since = now

    @property
    def missing(self) -> list[str]:
        """Wanted ones that the run cannot do without."""
        return sorted(self.wanted & self._base)

    def want(self, name: str, now: float) -> None:
        if not self.missing:
            self._missing_since = now
        self.wanted.add(name)

    def to_start(self, now: float) -> list[str]:
        """Those to be started where there is a place for them."""
        lost = {name: self._fleet.members[name].heard for name in self._fleet.names("dead")}
        return [name for name in sorted(self.wanted) if now - lost.get(name, -math.inf) >= RESPITE_S]

    def starts(self, name: str) -> None:
        """It has a process now."""
        self.wanted.discard(name)

    def stuck_s(self, coming: bool, now: float) -> float:
        """How long the run has been unable to go on because there is no place for what it cannot do without. `coming`:
        whether any worker is being started."""
        if not self.missing or coming or (self._fleet.serving and not self._fixed):
            self._missing_since = now
        return now - self._missing_since

    # More, and fewer.

    def phase(self, rollouts: int) -> None:
        """A rollout phase of this size begins."""
        self._size = self._scale.phase(rollouts)

    def pause(self) -> None:
        """Nothing is sampled for a while."""
        self._size = self._scale.pause()

    def changes(self) -> tuple[list[str], list[str]]:
        """Further workers, wanted from now on, and those that are not needed any more: of those that stay, there are to
        be as many as there is use for, also where one is about to leave with its node. Those go first that do not work
        yet, then the newest."""
        if self._fixed:
            return [], []
        retired = set(self._fleet.names("retired"))
        here = sorted((self._fleet.members.keys() | self.wanted) - retired, key=by_number)
        further = [f"rollout-{next(self._numbers)}" for _ in range(self._size - len(here))]
        self.wanted.update(further)
        serving = set(self._fleet.serving)
        spare = sorted((name for name in reversed(here) if name not in self._base), key=serving.__contains__)
        return further, spare[: max(len(here) - self._size, 0)]

    def leave(self, nodes: Mapping[str, str | None], leaving: Mapping[str, float]) -> list[str]:
        """Of workers, given with their nodes, those that get no more work because their node is about to go, at a time
        (0: nobody said when) on the clock of time.time."""
        found = [name for name, node in nodes.items() if node in leaving]
        self._deadlines |= {name: leaving[nodes[name] or ""] or math.inf for name in found}
        return found

    def overdue(self, now: float) -> list[str]:
        """Those whose node goes so soon that others must do what they have not finished. `now`: of time.time."""
        return [name for name, deadline in self._deadlines.items() if deadline - now < NOTICE_S]

    def gone(self, name: str, now: float) -> bool:
        """One that got no more work has left, or was never started: whether it is wanted again."""
        self._deadlines.pop(name, None)
        self.wanted.discard(name)
        if name in self._base:
            self.want(name, now)
        return name in self._base


def by_number(worker: str) -> tuple[int, str]:
    """Workers in the order of their numbers, rollout-2 before rollout-10."""
    return len(worker), worker
