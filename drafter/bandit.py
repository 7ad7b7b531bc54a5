"""How many tokens to draft at the next step. Pure: step observations in, a number of draft tokens out.

BEG-MAB (TLT, arXiv 2511.16665, section 5): arms are compared within buckets of running requests, an epsilon of the
choices explores, the others take the arm of the best median. Here the arms of every bucket are K = 0 (plain decoding)
to K_max, and the reward of an arm, tokens per second, is kept in its two factors:

    reward(K) = running * (1 + sum_{i <= K} s_i) / t(K)

s_i, the probability that the first i draft tokens are all accepted, is learned from every step that drafted at least
i tokens, whatever its arm; t(K), the seconds of a step, lies on a line through the medians of the arms' windows, whose
slope a bucket shares with the others in part. The factors pool far more observations per estimate than the product, and
a new drafter changes only one of them: a publish discounts the s_i and leaves the times alone.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from random import Random
from statistics import median
from typing import NamedTuple

import numpy as np

BUCKET_EDGES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""A bucket holds the numbers of running requests from one edge up to the next: narrow, so that its steps compare."""
EPSILON = 0.05
"""Share of the choices that explore."""
SPELL_STEPS = 4
"""Steps that a choice holds. The first one still verifies what the arm before drafted, so it is not timed."""
WINDOW = 64
"""Timed steps kept per arm."""
PRIOR_STEPS = 32.0
"""Weight of the acceptance over all buckets in that of one, in requests' steps; and of the slope of step times over all
buckets in that of one, in steps as far from their mean as half of K_max."""
KEPT_AT_PUBLISH = 0.1
"""Share of the weight that acceptances keep when another drafter enters service."""
FIRST_ACCEPTANCE = 0.5
"""Acceptance of a next draft token before anything is known."""


class StrategyBandit:
    """The bandit of one engine and one proposer."""

    def __init__(self, k_max: int, seed: int) -> None:
        self.k_max = k_max
        self._random = Random(seed)
        self._overall = _Acceptance(k_max)
        self._buckets: dict[int, _Bucket] = {}
        self._bucket = -1
        self._k = 0
        self._left = 0

    def choose(self, running: int) -> int:
        """Draft tokens per request at a step of `running` requests, 0 for plain decoding."""
        index = bucket_of(running)
        if self._left == 0 or index != self._bucket:
            self._bucket, self._left = index, SPELL_STEPS
            self._k = self._next_arm(self._buckets.setdefault(index, _Bucket(self.k_max)))
        self._left -= 1
        return self._k

    def observe_time(self, running: int, k: int, seconds: float) -> None:
        """A step of `running` requests, each with `k` drafts to verify and as many to propose, took `seconds`."""
        self._buckets.setdefault(bucket_of(running), _Bucket(self.k_max)).times[k].append(seconds)

    def observe_acceptance(self, running: int, k: int, accepted: Sequence[int]) -> None:
        """A step verified up to `k` drafts of each request; `accepted` has the number accepted, by request."""
        bucket = self._buckets.setdefault(bucket_of(running), _Bucket(self.k_max))
        for count in (bucket.acceptance, self._overall):
            count.add(k, accepted)

    def published(self, survival: Sequence[float] = ()) -> None:
        """Another drafter is in service; `survival` is what a held-out slice promises of it, s_1 .. s_k."""
        for count in [self._overall, *(bucket.acceptance for bucket in self._buckets.values())]:
            count.discount(KEPT_AT_PUBLISH)
        self._overall.promise(survival)
        self._left = 0

    def survival(self, running: int) -> list[float]:
        """Estimates of s_1 .. s_K_max for a step of `running` requests."""
        bucket = self._buckets.get(bucket_of(running))
        return self._overall.survival(bucket.acceptance if bucket else None)

    def _step_times(self, bucket: "_Bucket") -> list[float]:
        """Seconds of every arm in a bucket: the level is its own, the slope partly that of all.

        One draft more costs d + c x running seconds: d to propose it, c to verify it. A slope of one bucket's few steps
        would also hold what happened on the machine while one arm was served and not while another was.
        """
        lines = {index: b.line() for index, b in self._buckets.items() if any(b.times)}
        running = np.array([BUCKET_EDGES[index] for index in lines], float)
        spread = np.array([line.spread for line in lines.values()])
        rise = np.array([line.rise for line in lines.values()])
        # Least squares of the slopes rise / spread, each weighted by its spread, over (1, running).
        design = np.array([[spread.sum(), spread @ running], [spread @ running, spread @ running**2]])
        per_draft, per_token = np.linalg.lstsq(design, np.array([rise.sum(), rise @ running]), rcond=None)[0]
        own = bucket.line()
        shared, prior = max(per_draft + per_token * BUCKET_EDGES[self._bucket], 0.0), PRIOR_STEPS * self.k_max**2 / 4
        slope = max((own.rise + prior * shared) / (own.spread + prior), 0.0)
        return [max(own.mean_t + slope * (k - own.mean_k), 0.5 * own.fastest) for k in range(self.k_max + 1)]

    def _next_arm(self, bucket: "_Bucket") -> int:
        # Every bucket times its two ends first.
        for k in (0, self.k_max):
            if not bucket.times[k]:
                return k
        survival, times = self._overall.survival(bucket.acceptance), self._step_times(bucket)
        length, rewards = 1.0, []
        for k, seconds in enumerate(times):
            length += survival[k - 1] if k else 0.0
            rewards.append(length / seconds)
        best = max(range(self.k_max + 1), key=rewards.__getitem__)
        if self._random.random() >= EPSILON:
            return best
        # The reward has one peak in K, so the arms beside the best are the ones that may be better; one step further
        # keeps the acceptance of deeper drafts known.
        near = [k for k in (best - 1, best + 1, best + 2) if 0 <= k <= self.k_max]
        return self._random.choice(near)


class _Bucket:
    def __init__(self, k_max: int) -> None:
        self.times: list[deque[float]] = [deque(maxlen=WINDOW) for _ in range(k_max + 1)]
        self.acceptance = _Acceptance(k_max)

    def line(self) -> "_Line":
        """Through the medians of the timed arms, each weighted by its steps.

        Verifying and drafting one token more costs the same each time, or nearly, so a line says more of an arm than
        the few steps that it had itself; and no two arms that are alike are told apart by chance.
        """
        points = [(k, median(window), len(window)) for k, window in enumerate(self.times) if window]
        weight = sum(n for _, _, n in points)
        mean_k = sum(n * k for k, _, n in points) / weight
        mean_t = sum(n * t for _, t, n in points) / weight
        spread = sum(n * (k - mean_k) ** 2 for k, _, n in points)
        rise = sum(n * (k - mean_k) * (t - mean_t) for k, t, n in points)
        return _Line(mean_k, mean_t, spread, rise, fastest=min(t for _, t, _ in points))


class _Line(NamedTuple):
    """Of step times over K in one bucket."""

    mean_k: float
    mean_t: float
    spread: float
    """Sum of squares of K about its mean."""
    rise: float
    """Sum of products of K and seconds about their means; rise / spread is the slope."""
    fastest: float


class _Acceptance:
    """How often the first i drafts were all accepted, i = 1 .. k_max, as discounted counts."""

    def __init__(self, k_max: int) -> None:
        self.tried = [0.0] * k_max
        self.kept = [0.0] * k_max

    def add(self, k: int, accepted: Sequence[int]) -> None:
        for i in range(k):
            self.tried[i] += len(accepted)
            self.kept[i] += sum(1 for count in accepted if count > i)

    def discount(self, share: float) -> None:
        self.tried = [value * share for value in self.tried]
        self.kept = [value * share for value in self.kept]

    def promise(self, survival: Sequence[float]) -> None:
        for i, value in enumerate(survival[: len(self.tried)]):
            self.tried[i] += PRIOR_STEPS
            self.kept[i] += PRIOR_STEPS * value

    def survival(self, bucket: "_Acceptance | None") -> list[float]:
        """s_1 .. s_k of a bucket, with these counts as its prior. Depths never tried continue the newest ratio."""
        result: list[float] = []
        ratio, last = FIRST_ACCEPTANCE, 1.0
        for i, (tried, kept) in enumerate(zip(self.tried, self.kept, strict=True)):
            overall = (kept + ratio * last) / (tried + 1)
            own_tried, own_kept = (bucket.tried[i], bucket.kept[i]) if bucket else (0.0, 0.0)
            value = min(last, (own_kept + PRIOR_STEPS * overall) / (own_tried + PRIOR_STEPS))
            ratio, last = (value / last if last else 0.0), value
            result.append(value)
        return result


def bucket_of(running: int) -> int:
    """Index of the bucket that holds this number of running requests."""
    return bisect_right(BUCKET_EDGES, running) - 1
