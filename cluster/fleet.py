"""How the rollout workers are, and what that means for them. Pure: events with their time in, names out.

    restarting ── ready ──► stale ── refitted ──► healthy ◄── heard, silent for half of the limit ──► suspect
        ▲                                            │                                                │
        └───── started again ───── dead ◄── lost ────┴────────────────────────────────────────────────┘
    retired: finishes what it has, gets no more, and leaves

Invariants: a worker that was started again is stale until it has been given the weights that the driver asks for;
only a healthy or suspect one is in service. A driver that was itself stopped for a while blames nobody for it.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

State = Literal["restarting", "stale", "healthy", "suspect", "dead", "retired"]

NO_VERSION = -1
"""Of a worker that has just been started: whatever its engine has loaded, nobody has asked for it."""


@dataclass
class Member:
    state: State
    heard: float
    """When it last made progress; of one that is being started, when that began."""
    version: int = NO_VERSION
    """Of the weights that it was given."""


class Fleet:
    """All times are seconds of one clock that does not go back."""

    def __init__(self, timeout_s: float, restarts: int) -> None:
        """`timeout_s`: longest silence of a worker that was asked something. `restarts`: how often workers may be
        started again, all together."""
        self._timeout_s = timeout_s
        self.restarts_left = restarts
        self.members: dict[str, Member] = {}
        self.losses = 0
        self._looked: float | None = None

    def names(self, *states: State) -> list[str]:
        return [name for name, member in self.members.items() if member.state in states]

    @property
    def serving(self) -> list[str]:
        """Those that may be given work."""
        return self.names("healthy", "suspect")

    def outdated(self, version: int) -> list[str]:
        """Those that run and have other weights than these."""
        running = self.names("stale", "healthy", "suspect")
        return [name for name in running if self.members[name].version != version]

    def starts(self, name: str, now: float) -> None:
        """A worker is being started, for the first time or again."""
        self.members[name] = Member("restarting", now)

    def ready(self, name: str, now: float) -> None:
        """Its engine stands, with weights that nobody asked for."""
        self._move(name, "restarting", "stale").heard = now

    def refitted(self, name: str, version: int, now: float) -> None:
        """It was given the weights of this version."""
        member = self.members[name]
        if member.state == "stale":
            self._move(name, "stale", "healthy")
        member.version, member.heard = version, now

    def heard(self, name: str, at: float) -> None:
        """It made progress at this time: it answered, and the step that its engine is in began not before."""
        self.members[name].heard = at

    def look(self, asked: Collection[str], now: float) -> tuple[list[str], list[str]]:
        """Who has become suspect, and who is to be taken as lost: without progress for half of the limit, and for all
        of it, among those `asked`. Whoever looks must have taken in all answers that are there."""
        # Time in which nobody looked is not the workers' silence: this process was stopped, or busy elsewhere.
        gap = now - self._looked if self._looked is not None else float("inf")
        self._looked = now
        suspects, silent = [], []
        for name in self.names("healthy", "suspect", "retired"):
            member = self.members[name]
            if name not in asked:
                member.heard = now
            elif gap > self._timeout_s / 4:
                member.heard = min(member.heard + gap, now)
            silence_s = now - member.heard
            if silence_s > self._timeout_s:
                silent.append(name)
            elif member.state == "suspect" and silence_s <= self._timeout_s / 2:
                member.state = "healthy"
            elif member.state == "healthy" and silence_s > self._timeout_s / 2:
                member.state = "suspect"
                suspects.append(name)
        return suspects, silent

    def silence_s(self, name: str, now: float) -> float:
        """How long it has made no progress, as far as somebody looked."""
        looked = self._looked is not None and now - self._looked <= self._timeout_s / 4
        return now - self.members[name].heard if looked else 0.0

    def lost(self, name: str, now: float) -> bool:
        """It died, hangs, or answers nonsense: what it held is lost with it. Whether another may be started in its
        place; each such counts."""
        self.members[name] = Member("dead", now)
        self.losses += 1
        self.restarts_left -= 1
        return self.restarts_left >= 0

    def retire(self, name: str) -> bool:
        """It gets no more work; whether it was in service, and so has to finish first what it has."""
        member = self.members[name]
        served = member.state in ("healthy", "suspect")
        member.state = "retired"
        return served

    def gone(self, name: str) -> None:
        """A retired worker has left."""
        assert self.members[name].state == "retired"
        del self.members[name]

    def _move(self, name: str, before: State, after: State) -> Member:
        member = self.members[name]
        if member.state != before:
            raise ValueError(f"{name} is {member.state}, not {before}")
        member.state = after
        return member
