"""Who answers the groups: worlds with a known chance of success p_i for every prompt, and laws by which it moves.

A round is: `answer` the groups, `learn` from those that the learner gets (perhaps of several rounds, merged), then
`finish_round`. `probability` [M] is the truth that the surrogate, the optima and the oracle are computed with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from allocator.problem import Floats, Ints
from allocator.simulator.latents import sigmoid
from allocator.simulator.recordings import Recording

LENGTH_SHAPE = 4.0
"""Shape of the Gamma law of response lengths: their deviation is half their mean."""


class Sampled(Protocol):
    """Who is sampled in a round [n], and how much: what a world sees of an `Allocation`."""

    @property
    def prompts(self) -> Ints: ...

    @property
    def rollouts(self) -> Ints: ...


class Decision(NamedTuple):
    """The plainest `Sampled`."""

    prompts: Ints
    rollouts: Ints


class Groups(NamedTuple):
    """Groups [n] of distinct prompts, as the learner gets them."""

    prompts: Ints
    units: Ints
    rollouts: Ints
    successes: Ints

    @property
    def effective(self) -> np.ndarray:
        """bool [n]: whether both outcomes occur, so that the group's advantages are not all zero."""
        return (self.successes > 0) & (self.successes < self.rollouts)


@dataclass(frozen=True, eq=False)
class Lengths:
    """Responses to prompt i have Gamma(LENGTH_SHAPE) lengths of mean `mean_tokens`[i], cut at `longest_tokens`."""

    mean_tokens: Floats
    longest_tokens: int

    @classmethod
    def by_difficulty(cls, logit: Floats, rng: np.random.Generator, longest_tokens: int = 2048) -> "Lengths":
        """Lognormal over prompts around 400 tokens; half of the variance is that hard prompts take longer."""
        hardness = -(logit - logit.mean()) / logit.std()
        mean = 400 * np.exp(0.5 * hardness + 0.5 * rng.normal(size=len(logit)))
        return cls(np.clip(mean, 20, longest_tokens / 2), longest_tokens)


class World:
    """The static world: p never moves.

    `families`: name of each prompt's family [M], where there is side information; `lengths`: None counts no tokens.
    """

    def __init__(
        self, probability: Floats, seed: int, lengths: Lengths | None = None, families: Sequence[str] | None = None
    ):
        self.probability = probability
        self.lengths = lengths
        self.families = families
        self._rng = np.random.default_rng([seed, 1])

    def answer(self, prompts: Ints, rollouts: Ints) -> tuple[Ints, Ints]:
        """Successes int [n] and response tokens int [n] of groups of `rollouts` [n]."""
        successes = self._rng.binomial(rollouts, self.probability[prompts])
        if self.lengths is None:
            return successes, np.zeros(len(prompts), np.int64)
        # A sum of n Gamma variables is a Gamma variable of n times the shape.
        mean = self.lengths.mean_tokens[prompts]
        tokens = np.rint(self._rng.standard_gamma(LENGTH_SHAPE * rollouts) * (mean / LENGTH_SHAPE)).astype(np.int64)
        return successes, np.minimum(tokens, rollouts * self.lengths.longest_tokens)

    def learn(self, groups: Groups) -> None:
        """One update on `groups`."""

    def finish_round(self, spent_share: float) -> None:
        """Move to the next round; `spent_share` of the budget is gone."""


class Drift(World):
    """p follows `path` [K, M], whatever is sampled."""

    def __init__(self, path: Floats, seed: int):
        super().__init__(path[0], seed)
        self._path, self._round = path, 0

    def finish_round(self, spent_share: float) -> None:
        self._round = min(self._round + 1, len(self._path) - 1)
        self.probability = self._path[self._round]


def linear_drift(logit: Floats, slope: Floats, rounds: int) -> Floats:
    """Path [K, M]: p_i(k) = sigmoid(l_i + s_i k / K), k = 0..K-1."""
    return sigmoid(logit + slope * (np.arange(rounds) / rounds)[:, None])


class Learning(World):
    """Updates teach: an effective group of u units raises its prompt's logit by `own` x u / N_max, each round all
    logits by `shared`."""

    def __init__(
        self, logit: Floats, seed: int, max_units: int, own: float, shared: float, lengths: Lengths | None = None,
        families: Sequence[str] | None = None,
    ):  # fmt: skip
        super().__init__(sigmoid(logit), seed, lengths, families)
        self._logit = logit.copy()
        self._own_per_unit, self._shared = own / max_units, shared

    def learn(self, groups: Groups) -> None:
        self._logit[groups.prompts] += self._own_per_unit * groups.units * groups.effective

    def finish_round(self, spent_share: float) -> None:
        self._logit += self._shared
        self.probability = sigmoid(self._logit)


class Recorded(World):
    """Replays measured success rates: p_i at a share of the budget, linear between the recording's points."""

    def __init__(self, recording: Recording, seed: int):
        super().__init__(recording.success_rate[0], seed, families=recording.families)
        self._rates = recording.success_rate

    def finish_round(self, spent_share: float) -> None:
        place = min(spent_share, 1.0) * (len(self._rates) - 1)
        before = min(int(place), len(self._rates) - 2) if len(self._rates) > 1 else 0
        after = min(before + 1, len(self._rates) - 1)
        self.probability = self._rates[before] + (place - before) * (self._rates[after] - self._rates[before])
