"""What is believed of every prompt's success probability, and what sampling it is worth (CERO eqs. (5)-(6))."""

from typing import Literal

import numpy as np

from allocator.problem import Floats, Ints, State

# Learned priors: first groups are weighed against this many imagined responses of the wider prior (family against pool,
# pool against spec), and a family's prior counts for at least and at most so many responses.
SHRINKAGE_RESPONSES = 16.0
PRIOR_STRENGTH = (0.5, 30.0)


class Posterior:
    """One Beta(a, b) per prompt, stored as evidence beyond the prior of its family, a - a_f and b - b_f.

    Graded rewards r in [0, 1] count as r successes and 1 - r failures: the mean stays that of the reward, and the value
    q-hat bounds its variance from above, with equality for rewards of 0 and 1.

    `families` int [M] in 0..F-1. `learned`: each family's prior follows from the first group of each of its prompts;
    otherwise all keep the one given. `forgetting` applies `per` epoch to all prompts (CERO eq. (5)), per visit to the
    prompt visited, or per equal share of the budget spent on it.
    """

    def __init__(
        self,
        families: Ints,
        prior_successes: float,
        prior_failures: float,
        forgetting: float = 1.0,
        per: Literal["epoch", "visit", "share"] = "epoch",
        learned: bool = False,
    ):
        self._families = families.astype(np.int32)
        self._base = (prior_successes, prior_failures)
        self._forgetting, self._per, self._learned = forgetting, per, learned
        self._successes: Floats = np.zeros(len(families))
        self._failures: Floats = np.zeros(len(families))
        # By family: responses, successes, ordered pairs of responses, and of successes, in first groups.
        self._first: Floats = np.zeros((int(families.max()) + 1, 4))
        self._set_priors()

    def update(self, prompts: Ints, shares: Floats, successes: Floats, failures: Floats, first: np.ndarray) -> None:
        """Eq. (5) for the groups [n] of distinct `prompts`.

        `shares` [n]: what was spent on each, in equal shares; `first` bool [n]: whether it is its first group.
        """
        if self._forgetting < 1:
            which: slice | Ints = slice(None) if self._per == "epoch" else prompts
            kept = self._forgetting**shares if self._per == "share" else self._forgetting
            self._successes[which] *= kept
            self._failures[which] *= kept
        self._successes[prompts] += successes
        self._failures[prompts] += failures
        if self._learned and first.any():
            won, n = successes[first], successes[first] + failures[first]
            pairs = np.maximum(won * (won - 1), 0)
            np.add.at(self._first, self._families[prompts[first]], np.stack([n, won, n * (n - 1), pairs], axis=1))
            self._set_priors()

    def _set_priors(self) -> None:
        """Beta priors [F] by moments: E[P] from successes / responses, E[P^2] from their ordered pairs."""
        a, b = self._base
        strength: Floats = np.full(len(self._first), a + b)
        mean: Floats = np.full(len(self._first), a / (a + b))
        if self._learned:
            square = mean * (a + 1) / (a + b + 1)
            for sums in (self._first.sum(axis=0), self._first.T):
                mean = (SHRINKAGE_RESPONSES * mean + sums[1]) / (SHRINKAGE_RESPONSES + sums[0])
                square = (SHRINKAGE_RESPONSES * square + sums[3]) / (SHRINKAGE_RESPONSES + sums[2])
            low, high = PRIOR_STRENGTH
            variance = np.clip(square - mean**2, mean * (1 - mean) / (1 + high), mean * (1 - mean) / (1 + low))
            with np.errstate(invalid="ignore"):
                strength = np.nan_to_num(mean * (1 - mean) / variance - 1, nan=low)
        self._prior = np.stack([mean, 1 - mean]) * strength
        np.maximum(self._prior, 1e-3, out=self._prior)  # a family without a single success (or failure) so far

    def parameters(self, prompts: np.ndarray | slice = slice(None)) -> tuple[Floats, Floats]:
        """a and b of `prompts`, all [M] if not given."""
        family = self._families[prompts]
        return self._prior[0][family] + self._successes[prompts], self._prior[1][family] + self._failures[prompts]

    def mean(self) -> Floats:
        """E[P] [M], in (0, 1)."""
        a, b = self.parameters()
        return a / (a + b)

    def value(self, prompts: np.ndarray | slice = slice(None)) -> Floats:
        """Eq. (6), q-hat = E[P (1 - P)], in (0, 1/4): the reward variance expected within the prompt's next group.

        It is *lower* for prompts little is known of: the proxy is pessimistic, not an upper confidence bound.
        """
        a, b = self.parameters(prompts)
        total = a + b
        a *= b
        a /= total
        total += 1
        a /= total
        return a

    def state_dict(self) -> State:
        return {"successes": self._successes.copy(), "failures": self._failures.copy(), "first": self._first.copy()}

    def load_state_dict(self, state: State) -> None:
        self._successes = np.array(state["successes"])
        self._failures = np.array(state["failures"])
        self._first = np.array(state["first"])
        self._set_priors()
