"""Which responses of a straggler an idle worker takes over, if that ends the phase earlier. Pure.

Who takes over a response computes its prompt and its tokens so far anew. That pays on an engine bound by throughput,
whose steps get shorter with every response less, and for responses that still wait for a slot. It does not on one
bound by latency, whose steps take as long for one response as for many: there the longest response ends the phase
wherever it is.
"""

import heapq
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

MIN_GAIN_S = 0.05
MIN_GAIN_SHARE = 0.15
"""A plan must end the phase earlier by both of these, or nothing moves: predictions are not better than that."""

STEPS_KEPT = 64
"""Newest steps kept per size of the batch."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """One response that a worker still has to finish."""

    id: str
    context_tokens: int
    """Prompt and tokens so far: what has to be prefilled before it can go on, unless it is running already."""
    remaining_steps: float
    """Expected; as many as tokens where nothing is drafted."""
    waiting: bool
    """For a slot of the engine."""


@dataclass(frozen=True, slots=True)
class EngineSpeed:
    """What an engine needs for a step that gives one token to each of `running` responses, and for a prefill."""

    step_s: tuple[float, ...]
    """By the number of running responses, from 0 to the engine's slots; never falling."""
    prefill_s: float
    """Per token."""

    @property
    def slots(self) -> int:
        return len(self.step_s) - 1


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes from where to where: response ids by (giver, taker). Empty if nothing is worth it."""

    moves: dict[tuple[str, str], list[str]]
    before_s: float
    """Predicted end of the phase as it is."""
    after_s: float
    """And with the moves."""


class StepTimes:
    """Learns the speed of a run's engines, which are alike, from the steps that they report."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._steps: dict[int, deque[tuple[int, float]]] = defaultdict(lambda: deque(maxlen=STEPS_KEPT))
        self._prefills: deque[tuple[int, int, float]] = deque(maxlen=STEPS_KEPT)

    def add(self, steps: Iterable[tuple[int, int, float]]) -> None:
        """Steps as (responses that were running, tokens prefilled beside them, seconds)."""
        for running, prefilled, seconds in steps:
            if prefilled:
                self._prefills.append((running, prefilled, seconds))
            else:
                self._steps[(running - 1).bit_length()].append((running, seconds))

    def speed(self) -> EngineSpeed | None:
        """None until there is something to go by. Between the sizes seen the medians are interpolated; below them a
        step is taken to last as long, above them longer in proportion, so that what is unknown speaks for no move."""
        if not self._steps or not self._prefills:
            return None
        sizes, medians = np.array(
            [(median(n for n, _ in steps), median(s for _, s in steps)) for _, steps in sorted(self._steps.items())]
        ).T
        medians = np.maximum.accumulate(medians)
        running = np.arange(self._slots + 1)
        step_s = np.interp(running, sizes, medians) * np.maximum(running / sizes[-1], 1)
        prefill_s = median(
            max(seconds - step_s[np.clip(running, 1, self._slots)], 0.0) / tokens  # a step costs something anyway
            for running, tokens, seconds in self._prefills
        )
        return EngineSpeed(tuple(step_s.tolist()), float(prefill_s))


def finish_s(responses: Sequence[Unfinished], speed: EngineSpeed, delay_s: float = 0.0) -> float:
    """When a worker has finished these, in order: as many as there are slots at a time, the next when one ends."""
    clock_s, steps = delay_s, 0.0
    ends: list[float] = []  # the steps at which those that run end
    queue = deque(responses)
    while queue or ends:
        while queue and len(ends) < speed.slots:
            response = queue.popleft()
            clock_s += response.context_tokens * speed.prefill_s if response.waiting else 0.0
            heapq.heappush(ends, steps + response.remaining_steps)
        running, end = len(ends), heapq.heappop(ends)
        clock_s += (end - steps) * speed.step_s[running]
        steps = end
    return clock_s


def plan(unfinished: Mapping[str, Sequence[Unfinished]], speed: EngineSpeed, move_s: float) -> Plan:
    """What to move, given what every worker has, those that run before those that wait; an idle one has nothing.

    Again and again the worker that would end last gives to the idle one that would end first, as many as suit both.
    `move_s`: what an idle worker waits for its first response, beside the prefill.
    """
    held = {worker: list(responses) for worker, responses in unfinished.items()}
    idle = [worker for worker, responses in held.items() if not responses]
    ends = {worker: finish_s(responses, speed) for worker, responses in held.items()}
    before_s = max(ends.values(), default=0.0)
    for _ in range(2 * len(idle)):
        giver, taker = max(ends, key=ends.__getitem__), min(idle, key=ends.__getitem__)
        split = _best_split(held[giver], held[taker], speed, move_s, move_s if giver in idle else 0.0)
        if giver == taker or split is None or max(split[2:]) >= ends[giver]:
            break
        held[giver], held[taker], ends[giver], ends[taker] = split
    after_s = max(ends.values(), default=0.0)
    if before_s - after_s < max(MIN_GAIN_S, MIN_GAIN_SHARE * before_s):
        return Plan({}, before_s, before_s)
    owner = {response.id: worker for worker, responses in unfinished.items() for response in responses}
    moves: dict[tuple[str, str], list[str]] = {}
    for taker in idle:
        for response in held[taker]:
            moves.setdefault((owner[response.id], taker), []).append(response.id)
    return Plan(moves, before_s, after_s)


def _best_split(
    giver: Sequence[Unfinished], taker: Sequence[Unfinished], speed: EngineSpeed, move_s: float, giver_delay_s: float
) -> tuple[list[Unfinished], list[Unfinished], float, float] | None:
    """What each has afterwards, and when it ends; of the counts tried the one with which both are done first."""
    running = sorted((r for r in giver if not r.waiting), key=lambda r: -r.remaining_steps)
    # Last come, first moved; of the running ones every second, so that long and short ones stay as well as go.
    order = [r for r in reversed(giver) if r.waiting] + running[1::2] + running[::2]
    best = None
    for count in _counts(len(order)):
        moved = {r.id for r in order[:count]}
        stay = [r for r in giver if r.id not in moved]
        go = [replace(r, waiting=True) for r in order[:count]]
        taken = sorted([*taker, *go], key=lambda r: -r.remaining_steps)
        split = stay, taken, finish_s(stay, speed, giver_delay_s), finish_s(taken, speed, move_s)
        if best is None or max(split[2:]) < max(best[2:]):
            best = split
    return best


def _counts(most: int) -> list[int]:
    """Every number up to 10, then in steps of about a fifth: some 30 of them for 500 responses."""
    counts = [1]
    while counts[-1] < most:
        counts.append(min(counts[-1] + max(1, counts[-1] // 5), most))
    return counts if most else []
