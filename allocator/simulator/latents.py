"""Where the prompts' chances of success come from: laws of the logit, to draw prompts of and to integrate over."""

from dataclasses import dataclass
from math import lgamma
from typing import Protocol

import numpy as np

from allocator.problem import Floats

LOGIT_LIMIT = float(np.log(1e6))
"""Chances are kept within 1e-6 of 0 and 1, so that their logits are finite."""


def sigmoid(logit: Floats) -> Floats:
    return 1 / (1 + np.exp(-logit))


class Latent(Protocol):
    def draw(self, rng: np.random.Generator, prompts: int) -> Floats:
        """Logits [prompts] of the chances of success."""

    def density(self, logit: Floats) -> Floats:
        """Of the logit, elementwise."""


@dataclass(frozen=True)
class Beta:
    """p ~ Beta(a, b)."""

    a: float
    b: float

    def draw(self, rng: np.random.Generator, prompts: int) -> Floats:
        # As a ratio of Gamma variables: 1 - p would lose the digits of chances near 1, and small p be rounded to 0.
        won, lost = rng.standard_gamma(self.a, prompts), rng.standard_gamma(self.b, prompts)
        tiny = np.finfo(float).tiny
        return np.clip(np.log(won + tiny) - np.log(lost + tiny), -LOGIT_LIMIT, LOGIT_LIMIT)

    def density(self, logit: Floats) -> Floats:
        log_beta = lgamma(self.a) + lgamma(self.b) - lgamma(self.a + self.b)
        return np.exp(-self.a * np.logaddexp(0, -logit) - self.b * np.logaddexp(0, logit) - log_beta)


@dataclass(frozen=True)
class LogitNormal:
    """logit(p) ~ Normal(mean, deviation)."""

    mean: float
    deviation: float

    def draw(self, rng: np.random.Generator, prompts: int) -> Floats:
        return np.clip(rng.normal(self.mean, self.deviation, prompts), -LOGIT_LIMIT, LOGIT_LIMIT)

    def density(self, logit: Floats) -> Floats:
        return np.exp(-0.5 * ((logit - self.mean) / self.deviation) ** 2) / (self.deviation * np.sqrt(2 * np.pi))


@dataclass(frozen=True)
class Mixture:
    """Each prompt belongs to one of `parts` (share, law); the shares sum to 1."""

    parts: tuple[tuple[float, Latent], ...]

    def draw(self, rng: np.random.Generator, prompts: int) -> Floats:
        part = rng.choice(len(self.parts), prompts, p=[share for share, _ in self.parts])
        return np.choose(part, [latent.draw(rng, prompts) for _, latent in self.parts])

    def density(self, logit: Floats) -> Floats:
        return np.sum([share * latent.density(logit) for share, latent in self.parts], axis=0)


def quadrature(latent: Latent, step: float = 0.05) -> tuple[Floats, Floats]:
    """Chances [n] and weights [n] with E f(P) = sum of weights x f(chances): an even grid of the logit.

    The grid reaches so far beyond `LOGIT_LIMIT` that the mass clipped there lies on the outermost chances.
    """
    logit = np.arange(-60, 60 + step / 2, step, dtype=np.float64)
    weight = latent.density(logit)
    chance, place = np.unique(sigmoid(np.clip(logit, -LOGIT_LIMIT, LOGIT_LIMIT)), return_inverse=True)
    return chance, np.bincount(place, weight / weight.sum()).astype(np.float64)


def difficulty_families(logit: Floats, bins: int, noise: float, rng: np.random.Generator) -> list[str]:
    """Side information: quantile bin [M] of each prompt's logit as somebody estimated it, off by Normal(0, noise)."""
    estimate = logit + rng.normal(0, noise, len(logit))
    rank = np.argsort(np.argsort(estimate))
    return [f"difficulty {place * bins // len(logit)}" for place in rank]
