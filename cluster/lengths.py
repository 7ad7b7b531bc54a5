"""How long the responses to a prompt will be, from those that this run has seen. Pure, and a checkpoint of one array.

The longest response of a phase ends it, so groups that are expected to have the longest one go out first: longest
processing time first (Graham 1969, eq. 2), whose makespan is at most 4/3 of the best one when lengths are known.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from actors.requests import GroupRequest
from trainer.tasks import Pools
from trainer.types import Group

MEMORY = 0.5
"""What a prompt's earlier responses weigh when its next group comes in; the policy has changed since."""

SHRINK = 4.0
"""Responses that a family's mean counts as, beside a prompt's own; so does the overall mean beside a family's."""

COUNT, MEAN, PEAK = range(3)


class Lengths:
    """Both pools together, as a family's prompts are alike in both."""

    def __init__(self, pools: Pools) -> None:
        prompts = pools.train + pools.heldout
        self._first = {"train": 0, "heldout": len(pools.train)}
        names = {name: i for i, name in enumerate(sorted({prompt.family for prompt in prompts}))}
        self._family = np.array([names[prompt.family] for prompt in prompts], np.int64)
        self._seen = np.zeros((len(prompts), 3))  # by prompt: COUNT (decayed), MEAN and PEAK length in tokens

    def observe(self, pool: str, groups: Iterable[Group]) -> None:
        """These came back."""
        for group in groups:
            row = self._first[pool] + group.prompt
            count, mean, peak = self._seen[row]
            total, top = MEMORY * count + len(group), float(group.lengths.max())
            mean += (float(group.lengths.mean()) - mean) * len(group) / total
            self._seen[row] = total, mean, max(top, peak + (top - peak) * (1 - MEMORY))

    def expected(self, pool: str) -> np.ndarray:
        """[prompts of the pool, 2]: expected mean and maximum, shrunk to family and run; zeros before any response."""
        count, known = self._seen[:, COUNT], self._seen[:, MEAN:]
        weighted = known * count[:, None]
        overall = weighted.sum(0) / max(count.sum(), 1e-9)
        sums = np.stack([np.bincount(self._family, column) for column in (*weighted.T, count)], 1)
        family = (sums[:, :2] + SHRINK * overall) / (sums[:, 2:] + SHRINK)
        shrunk = (weighted + SHRINK * family[self._family]) / (count + SHRINK)[:, None]
        first = self._first[pool]
        return shrunk[first:] if first else shrunk[: self._first["heldout"]]

    def longest_first(self, pool: str, requests: Sequence[GroupRequest]) -> list[GroupRequest]:
        """Groups with the longest expected maximum first; equal ones keep their order."""
        peaks = self.expected(pool)[:, PEAK - 1]
        return sorted(requests, key=lambda request: -peaks[request.prompt])

    def state_dict(self) -> dict[str, np.ndarray]:
        return {"seen": self._seen.copy()}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        self._seen = np.array(state["seen"])


def remaining_tokens(expected_mean: float, tokens: int, max_tokens: int) -> float:
    """Expected tokens that a response still needs after `tokens`: up to its prompt's mean, and beyond that, as lengths
    have heavy tails, in proportion to how far it has come already. A mean of 0 is unknown: all that it may."""
    most = max(max_tokens - tokens, 1)
    return float(min(max(expected_mean - tokens, tokens / 2, 1.0), most) if expected_mean else most)
