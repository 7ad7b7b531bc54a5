"""What is measured beside the trace while an allocator runs: error of the proxy, selection lift, price path."""

from typing import Protocol

import numpy as np

from allocator import Allocator
from allocator.problem import Floats
from allocator.simulator.worlds import Sampled, World


class Watcher(Protocol):
    """Looks on: after each decision, and after its outcome was observed, before the world moves on."""

    def decided(self, sampled: Sampled) -> None: ...

    def observed(self, world: World) -> None: ...


class ErrorWatch:
    """Error of the value proxy: the sum over rounds and prompts of |q-hat_{i,k+1} - q_{i,k}|, as in (11) and (12)."""

    def __init__(self, allocator: Allocator):
        self._posterior = allocator.pool.posterior
        self.total = 0.0

    def decided(self, sampled: Sampled) -> None:
        pass

    def observed(self, world: World) -> None:
        p = world.probability
        self.total += float(np.abs(self._posterior.value() - p * (1 - p)).sum())


class LiftWatch:
    """How much more often than by chance prompts are selected, by fifths of the predicted success."""

    EDGES = (0.2, 0.4, 0.6, 0.8)

    def __init__(self, allocator: Allocator):
        self._allocator = allocator
        self._chosen, self._expected = np.zeros(5), np.zeros(5)

    def decided(self, sampled: Sampled) -> None:
        bins = np.digitize(self._allocator.posterior_mean, self.EDGES)
        self._chosen += np.bincount(bins[sampled.prompts], minlength=5)
        self._expected += np.bincount(bins, minlength=5) * (len(sampled.prompts) / len(bins))

    def observed(self, world: World) -> None:
        pass

    @property
    def lift(self) -> Floats:
        """[5]; NaN where no prompt was ever predicted."""
        with np.errstate(invalid="ignore"):
            return self._chosen / self._expected


class PriceWatch:
    """The policy's normalised price of the budget after each round; empty if it has none."""

    def __init__(self, allocator: Allocator):
        self._allocator = allocator
        self.path: list[float] = []

    def decided(self, sampled: Sampled) -> None:
        pass

    def observed(self, world: World) -> None:
        price = self._allocator.metrics().get("price")
        if price is not None:
            self.path.append(price)
