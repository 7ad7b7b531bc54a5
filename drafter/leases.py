"""Who may train the drafter, and until when. Pure: events with their time in, workers to start and to stop out.

A rollout worker with nothing left to generate, while others of the same phase still generate, is in a bubble: its cores
are leased to the drafter that sits beside it. A lease ends when work comes for its worker or when the phase is over,
and for no other reason: one worker's completion never ends another's lease. Nothing waits for a lease to be given
back; a holder that does not give it back in time is given up, and its worker gets no further lease.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

COUNTED_STRETCH_S = 1.0
"""Idle stretches of at least this length are what harvesting is judged by."""


@dataclass
class _Worker:
    idle_since: float | None = None
    leased_since: float | None = None
    harvested_s: float = 0.0
    """Of the idle stretch that goes on, in leases that are over."""
    ended: tuple[float, float, float] | None = None
    """Begin, end and harvested seconds of a stretch whose lease has not been given back yet."""
    spent: bool = False
    """Whether its drafter stopped by itself in this stretch: it has nothing to train on."""
    lost: bool = False
    away: bool = False
    """Its rollout worker is not in service."""


@dataclass
class BubbleStats:
    """Seconds over all workers since the last report."""

    idle_s: float = 0.0
    harvested_s: float = 0.0
    """Of idle_s, the seconds in which the drafter trained."""
    counted_idle_s: float = 0.0
    """Of idle_s, what lay in stretches of at least COUNTED_STRETCH_S."""
    counted_harvested_s: float = 0.0
    late_s: float = 0.0
    """Seconds of leases beyond their end: training that ran beside work."""
    give_back_s: list[float] = field(default_factory=list)
    """For each lease, from its end to its return."""
    stretches: list[tuple[str, float, float, float]] = field(default_factory=list)
    """(worker, begin, end, harvested seconds) of every idle stretch."""

    def row(self, workers: Sequence[str]) -> dict[str, Any]:
        """As it stands in metrics.jsonl; `workers` are shown also where they were not idle."""
        idle, harvested = dict.fromkeys(workers, 0.0), dict.fromkeys(workers, 0.0)
        for worker, begin, end, used_s in self.stretches:
            idle[worker] = idle.get(worker, 0.0) + end - begin
            harvested[worker] = harvested.get(worker, 0.0) + used_s
        return {
            "idle_s": self.idle_s,
            "harvested_s": self.harvested_s,
            "long_idle_s": self.counted_idle_s,
            "long_harvested_s": self.counted_harvested_s,
            "idle_by_worker": idle,
            "harvested_by_worker": harvested,
            "late_s": self.late_s,
            "give_back_s": [round(s, 4) for s in self.give_back_s],
            "stretches": [[w, round(a, 3), round(b, 3), round(h, 3)] for w, a, b, h in self.stretches],
        }


class Leases:
    """The bubbles of one run. All times are seconds of one clock, which holders of leases share."""

    def __init__(self, workers: Sequence[str]) -> None:
        self._workers = {name: _Worker() for name in workers}
        self.stats = BubbleStats()

    def members(self, workers: Collection[str], now: float) -> list[str]:
        """These rollout workers are in service, and no others; those of the others whose drafter must stop."""
        for name in workers:
            self._workers.setdefault(name, _Worker()).away = False
        gone = [name for name, state in self._workers.items() if name not in workers and not state.away]
        stop = self.work(gone, now)
        for name in gone:
            state = self._workers[name]
            state.away = True
            if state.ended is None and not state.lost:  # its name may never come again
                del self._workers[name]
        return stop

    def idle(self, worker: str, now: float) -> None:
        """The worker has nothing to generate; telling it again changes nothing."""
        state = self._workers[worker]
        if state.idle_since is None:
            state.idle_since = now

    def grant(self, now: float) -> list[str]:
        """Workers whose drafter shall start: those idle while another still generates, without a lease of before."""
        if all(state.idle_since is not None or state.away for state in self._workers.values()):
            return []
        granted = [
            name
            for name, state in self._workers.items()
            if state.idle_since is not None
            and state.leased_since is None
            and state.ended is None
            and not (state.spent or state.lost)
        ]
        for name in granted:
            self._workers[name].leased_since = now
        return granted

    def work(self, workers: Sequence[str], now: float) -> list[str]:
        """Work has come for these workers; those among them whose drafter must stop."""
        stop = []
        for name in workers:
            state = self._workers[name]
            if state.idle_since is None:
                continue
            stretch = (state.idle_since, now, state.harvested_s)
            if state.leased_since is not None:
                stop.append(name)
                state.ended = stretch
            else:
                self._count(name, *stretch)
            state.idle_since, state.harvested_s, state.spent = None, 0.0, False
        return stop

    def phase_over(self, now: float) -> list[str]:
        """Every worker has finished: all leases end; gives the workers whose drafter must stop."""
        return self.work(list(self._workers), now)

    def returned(self, worker: str, ended: float, trained_s: float) -> None:
        """The drafter stopped at `ended`, asked to or by itself, after `trained_s` seconds of training."""
        state = self._workers[worker]
        if state.leased_since is None:
            return
        if state.ended is None:
            state.harvested_s += trained_s
            state.spent = True
        else:
            begin, end, harvested_s = state.ended
            late_s = max(ended - end, 0.0)
            self.stats.give_back_s.append(late_s)
            self.stats.late_s += late_s
            self._count(worker, begin, end, harvested_s + max(min(trained_s - late_s, end - state.leased_since), 0.0))
            state.ended = None
        state.leased_since = None

    def overdue(self, now: float, limit_s: float) -> list[str]:
        """Workers whose drafter has not stopped `limit_s` after it had to."""
        return [name for name, state in self._workers.items() if state.ended and now - state.ended[1] > limit_s]

    def lose(self, worker: str, now: float) -> None:
        """The drafter of this worker is gone; it gets no lease any more."""
        self.returned(worker, now, 0.0)
        self._workers[worker].lost = True

    def found(self, worker: str) -> None:
        """Another drafter has taken the place of the one that was lost."""
        self._workers[worker].lost = False

    def take_stats(self) -> BubbleStats:
        """What has been counted since this was last asked; a stretch counts once its lease is given back."""
        stats, self.stats = self.stats, BubbleStats()
        return stats

    def _count(self, name: str, begin: float, end: float, harvested_s: float) -> None:
        self.stats.idle_s += end - begin
        self.stats.harvested_s += harvested_s
        if end - begin >= COUNTED_STRETCH_S:
            self.stats.counted_idle_s += end - begin
            self.stats.counted_harvested_s += harvested_s
        self.stats.stretches.append((name, begin, end, harvested_s))
