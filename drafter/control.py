"""What one engine decides and counts about speculation: which proposer drafts how much at the next step. Pure.

Two proposers, each with a bandit of its own: `ngram`, which looks drafts up in the request's own tokens and needs no
training, and `learned`, the drafter. The first serves until the second has been published.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from drafter.bandit import BUCKET_EDGES, StrategyBandit, bucket_of

NGRAM, LEARNED = "ngram", "learned"


@dataclass
class SpeculationStats:
    """What happened since the last report; adds up over steps, engines and epochs."""

    steps: int = 0
    request_steps: int = 0
    """Requests' steps, with drafts to verify or without."""
    speculating_steps: int = 0
    """Steps that verified drafts."""
    draft_tokens: int = 0
    accepted_tokens: int = 0
    verified: int = 0
    """Requests' steps that had drafts to verify: accept_length = 1 + accepted_tokens / verified."""
    tried: Counter[int] = field(default_factory=Counter)
    """By position from 1: requests' steps that drafted at least so many tokens."""
    kept: Counter[int] = field(default_factory=Counter)
    """By position from 1: those in which the first so many were accepted."""
    verified_by_length: Counter[int] = field(default_factory=Counter)
    """Requests' steps with drafts, by the power of two at or below the response's length."""
    accepted_by_length: Counter[int] = field(default_factory=Counter)
    chosen: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Steps by (lower edge of the bucket of running requests, K)."""

    def add(self, other: "SpeculationStats") -> None:
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
            else:
                setattr(self, name, getattr(self, name) + value)

    @property
    def accept_length(self) -> float | None:
        """Mean tokens that a verified request gets per step, None if nothing was verified."""
        return 1 + self.accepted_tokens / self.verified if self.verified else None

    @property
    def step_tokens(self) -> float:
        """Mean tokens that a request gets per step, whether something was drafted for it or not."""
        return 1 + self.accepted_tokens / self.request_steps if self.request_steps else 1.0

    def row(self) -> dict[str, Any]:
        """As it stands in metrics.jsonl and the journal."""
        by_length = {
            str(n): 1 + self.accepted_by_length[n] / verified for n, verified in sorted(self.verified_by_length.items())
        }
        chosen: dict[str, dict[str, int]] = {}
        for (edge, k), steps in sorted(self.chosen.items()):
            chosen.setdefault(str(edge), {})[str(k)] = steps
        return {
            "accept_length": self.accept_length,
            "steps": self.steps,
            "enabled_steps_fraction": self.speculating_steps / self.steps if self.steps else 0.0,
            "draft_tokens": self.draft_tokens,
            "accepted_tokens": self.accepted_tokens,
            "verified": self.verified,
            "acceptance_by_position": [self.kept[i] / n for i, n in sorted(self.tried.items())],
            "accept_length_by_response_tokens": by_length,
            "steps_by_running_and_draft_tokens": chosen,
            "draft_tokens_by_running": {
                edge: sum(int(k) * n for k, n in by_k.items()) / sum(by_k.values()) for edge, by_k in chosen.items()
            },
        }


class SpeculationControl:
    """Decides K before a step's drafts are proposed and learns when they have been verified, one step later."""

    def __init__(self, k_max: int, seed: int, ready: bool, adaptive: bool = True) -> None:
        """Without `adaptive` another schedule decides; this then only counts."""
        self.k_max, self._seed, self.adaptive = k_max, seed, adaptive
        self.proposer = LEARNED if ready else NGRAM
        self.off: str | None = None
        """Why nothing is drafted; None while speculation is on."""
        self._bandits = {name: StrategyBandit(k_max, seed) for name in (NGRAM, LEARNED)}
        self._stats = SpeculationStats()

    def choose(self, running: int) -> int:
        """Tokens to draft for each of the `running` requests."""
        return 0 if self.off else self._bandits[self.proposer].choose(running)

    def observe(
        self, proposer: str, running: int, k: int, drafted: Sequence[int], accepted: Sequence[int],
        lengths: Sequence[int],
    ) -> None:  # fmt: skip
        """A step verified what `proposer` drafted with K = k: by request the drafts, those accepted, and the response's
        tokens before the step. A request for which no n-gram was found counts as none accepted."""
        stats = self._stats
        stats.steps += 1
        stats.request_steps += running
        stats.chosen[BUCKET_EDGES[bucket_of(running)], k] += 1
        if not k:
            return
        if self.adaptive:
            self._bandits[proposer].observe_acceptance(running, k, accepted)
        stats.speculating_steps += any(drafted)
        for n, count, length in zip(drafted, accepted, lengths, strict=True):
            if n:
                stats.verified += 1
                stats.draft_tokens += n
                stats.accepted_tokens += count
                stats.verified_by_length[_power_of_two(length)] += 1
                stats.accepted_by_length[_power_of_two(length)] += count
                for i in range(1, n + 1):
                    stats.tried[i] += 1
                    stats.kept[i] += count >= i

    def observe_time(self, proposer: str, running: int, k: int, seconds: float) -> None:
        """A step that both verified and proposed `k` drafts per request took `seconds`."""
        if self.adaptive:
            self._bandits[proposer].observe_time(running, k, seconds)

    def published(self, survival: Sequence[float]) -> None:
        """A learned drafter entered service, promised to have the first i drafts accepted with survival[i - 1]."""
        self.proposer = LEARNED
        self._bandits[LEARNED].published(survival)

    def take_stats(self) -> SpeculationStats:
        """What has happened since this was last asked."""
        stats, self._stats = self._stats, SpeculationStats()
        return stats


def _power_of_two(length: int) -> int:
    return 1 << max(length, 1).bit_length() - 1
