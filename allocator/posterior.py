"""What is believed of every prompt's success probability, and what sampling it is worth (CERO eqs. (5)-(6))."""

import numpy as np

from allocator.problem import Floats, Ints, State


class Posterior:
    """One Beta(a, b) per prompt, stored as evidence beyond the prior, a - a_0 and b - b_0: forgetting is one factor.

    Graded rewards r in [0, 1] count as r successes and 1 - r failures.
    """

    def __init__(self, prompts: int, prior_successes: float, prior_failures: float, forgetting: float):
        self._prior = (prior_successes, prior_failures)
        self._forgetting = forgetting
        self._successes: Floats = np.zeros(prompts)
        self._failures: Floats = np.zeros(prompts)

    def update(self, prompts: Ints, successes: Floats, failures: Floats) -> None:
        """Eq. (5): the whole pool forgets, and those sampled (`prompts` int64[n], distinct) add their counts [n]."""
        if self._forgetting < 1:
            self._successes *= self._forgetting
            self._failures *= self._forgetting
        self._successes[prompts] += successes
        self._failures[prompts] += failures

    def parameters(self) -> tuple[Floats, Floats]:
        """a [M] and b [M]."""
        return self._prior[0] + self._successes, self._prior[1] + self._failures

    def mean(self) -> Floats:
        """E[P] [M], in (0, 1)."""
        a, b = self.parameters()
        return a / (a + b)

    def value(self) -> Floats:
        """Eq. (6), q-hat = E[P (1 - P)] [M], in (0, 1/4): the reward variance expected within the prompt's next group.

        It is *lower* for prompts little is known of: the proxy is pessimistic, not an upper confidence bound.
        """
        a, b = self.parameters()
        total = a + b
        a *= b
        a /= total
        total += 1
        a /= total
        return a

    def state_dict(self) -> State:
        return {"successes": self._successes.copy(), "failures": self._failures.copy()}

    def load_state_dict(self, state: State) -> None:
        self._successes = np.array(state["successes"])
        self._failures = np.array(state["failures"])
