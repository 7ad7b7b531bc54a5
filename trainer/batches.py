"""From groups of unequal size to padded micro-batches of a token budget, the same number on every rank. Pure."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from trainer.advantages import advantages, shaped
from trainer.objective import ObjectiveSpec
from trainer.objectives import token_weights
from trainer.types import Group


@dataclass(frozen=True, slots=True)
class Sample:
    """One sequence to learn from: a prompt and what followed."""

    token_ids: np.ndarray
    """int [prompt + response]."""
    prompt_length: int
    logprobs: np.ndarray
    """float32 [response] under the policy that sampled it; zeros where there was none."""
    advantage: float
    weight: float
    """Weight of each response token in the loss of the whole batch."""
    old_logprobs: np.ndarray | None = None
    """float32 [response] under the policy that a ratio compares with; `logprobs` if None."""
    reference: np.ndarray | None = None
    """float32 [response] under the policy that a divergence is measured from."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Right-padded rows; everything else is flat over the response tokens, row by row."""

    token_ids: torch.Tensor
    """int64 [rows, width]."""
    targets: torch.Tensor
    """bool [rows, width - 1], true where position t predicts a response token at t + 1."""
    logprobs: torch.Tensor
    """float32 [response tokens]."""
    advantages: torch.Tensor
    """float32 [response tokens]."""
    weights: torch.Tensor
    """float32 [response tokens]."""
    old_logprobs: torch.Tensor
    """float32 [response tokens]."""
    reference: torch.Tensor
    """float32 [response tokens]; zeros where there is none."""
    rows: torch.Tensor
    """int64 [response tokens], the row of each."""

    def to(self, device: torch.device) -> "MicroBatch":
        return MicroBatch(*(getattr(self, name).to(device) for name in self.__slots__))


Columns = Sequence[np.ndarray]
"""By group: float [responses] or, of log-probabilities, [tokens of all responses]."""


def group_advantages(
    groups: Sequence[Group], objective: ObjectiveSpec, longest: int, reference: Columns | None = None
) -> list[np.ndarray]:
    """Advantages of a whole batch by group [responses], from rewards less what the objective takes off them.

    `longest`: tokens of the longest allowed response. `reference`: log-probabilities under the reference policy, of
    which k1_reward takes the sum of d = log pi - log pi_ref over the response.
    """
    rewards = [shaped(group.rewards, group.lengths, objective, longest) for group in groups]
    if objective.kl == "k1_reward" and reference is not None:
        for i, (group, theirs) in enumerate(zip(groups, reference, strict=True)):
            divergence = np.add.reduceat(group.logprobs - theirs, np.cumsum(group.lengths) - group.lengths)
            rewards[i] = rewards[i] - objective.kl_coefficient * divergence
    return advantages(objective, rewards, [group.believed for group in groups])


def samples(
    groups: Sequence[Group], prompts: Sequence[Sequence[int]], objective: ObjectiveSpec, longest: int = 1,
    advantages: Columns | None = None, old: Columns | None = None, reference: Columns | None = None,
) -> list[Sample]:  # fmt: skip
    """Rollouts with their advantages and weights; `prompts[i]` are the token ids of group i's prompt.

    `advantages` by group, from these groups alone if not given; `old` and `reference` are log-probabilities by group.
    """
    weights = token_weights([group.lengths for group in groups], objective.reduction, longest)
    advantages = advantages or group_advantages(groups, objective, longest, reference)
    result = []
    for g, (group, prompt) in enumerate(zip(groups, prompts, strict=True)):
        head, end = np.asarray(prompt, np.int64), 0
        for i, rollout in enumerate(group):
            span = slice(end, end := end + len(rollout.token_ids))
            result.append(
                Sample(
                    np.concatenate([head, rollout.token_ids]), len(head), rollout.logprobs, advantages[g][i],
                    weights[g][i], None if old is None else old[g][span],
                    None if reference is None else reference[g][span],
                )
            )  # fmt: skip
    return result


def language_samples(examples: Sequence[tuple[list[int], int]]) -> list[Sample]:
    """Samples whose answer tokens all weigh the same, 1 together."""
    weight = 1 / sum(len(ids) - start for ids, start in examples)
    return [
        Sample(np.asarray(ids, np.int64), start, np.zeros(len(ids) - start, np.float32), 1.0, weight)
        for ids, start in examples
    ]


def minibatches(groups: Sequence[Group], count: int, seed: Sequence[int] = (0,)) -> list[list[int]]:
    """Indices of the groups in parts as equal in number as possible, none empty; one part keeps their order.

    Which group falls into which part is drawn: groups come in the allocator's order of priority, and a step on the
    first of them alone would be no sample of the epoch.
    """
    count = min(count, len(groups))
    if count < 2:
        return [list(range(len(groups)))] if groups else []
    order = np.random.default_rng(seed).permutation(len(groups)).tolist()
    edges = [round(i * len(groups) / count) for i in range(count + 1)]
    return [sorted(order[a:b]) for a, b in itertools.pairwise(edges)]


PASS_TOKENS = 128
"""What one more micro-batch costs beside its tokens, in tokens: the fixed part of a forward and backward pass."""


def split(lengths: Sequence[int], token_budget: int, ranks: int) -> list[list[list[int]]]:
    """Indices of sequences by [rank][micro-batch][row].

    Longest first, each to the rank with the fewest tokens so far, then cut so that padded tokens and passes together
    cost least, with rows x longest within the budget: in a heavy-tailed batch padding to the longest response would
    cost several times the batch itself. Every rank gets the same number of micro-batches, the last ones possibly
    empty, because ranks meet in every backward pass. A sequence longer than the budget gets a micro-batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    shares: list[list[int]] = [[] for _ in range(ranks)]
    tokens = [0] * ranks
    for index in order:
        rank = tokens.index(min(tokens))
        shares[rank].append(index)
        tokens[rank] += lengths[index]
    cut = []
    for share in shares:
        edges = _cuts(np.array([lengths[i] for i in share]), token_budget)
        cut.append([share[a:b] for a, b in itertools.pairwise(edges)])
    most = max(len(batches) for batches in cut)
    return [batches + [[] for _ in range(most - len(batches))] for batches in cut]


def _cuts(lengths: np.ndarray, token_budget: int) -> list[int]:
    """Edges of the micro-batches of `lengths`, int [n] falling: the cheapest of all cuts, by dynamic programming."""
    n = len(lengths)
    best, begin = np.zeros(n + 1), np.zeros(n + 1, np.int64)
    for end in range(1, n + 1):
        rows = end - np.arange(end)
        cost = best[:end] + lengths[:end] * rows + PASS_TOKENS
        cost[(lengths[:end] * rows > token_budget) & (rows > 1)] = np.inf
        begin[end] = cost.argmin()
        best[end] = cost[begin[end]]
    edges = [n]
    while edges[-1]:
        edges.append(int(begin[edges[-1]]))
    return edges[::-1] if n else [0]


def collate(rows: Sequence[Sample], pad_id: int) -> MicroBatch:
    """Pad rows to the longest. No rows give one padding row of weight zero, for a rank that has run out of work."""
    width = max((len(row.token_ids) for row in rows), default=2)
    token_ids = np.full((max(len(rows), 1), width), pad_id, np.int64)
    targets = np.zeros((max(len(rows), 1), width - 1), bool)
    for i, row in enumerate(rows):
        token_ids[i, : len(row.token_ids)] = row.token_ids
        targets[i, row.prompt_length - 1 : len(row.token_ids) - 1] = True
    if not rows:
        targets[0, 0] = True
    lengths = [len(row.token_ids) - row.prompt_length for row in rows] or [1]
    none = [np.zeros(1, np.float32)]

    def flat(columns: Sequence[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(columns or none))

    def spread(values: Sequence[float]) -> torch.Tensor:
        return torch.from_numpy(np.repeat(np.array(values or [0.0], np.float32), lengths))

    return MicroBatch(
        torch.from_numpy(token_ids),
        torch.from_numpy(targets),
        flat([row.logprobs for row in rows]),
        spread([row.advantage for row in rows]),
        spread([row.weight for row in rows]),
        flat([row.logprobs if row.old_logprobs is None else row.old_logprobs for row in rows]),
        flat([np.zeros_like(row.logprobs) if row.reference is None else row.reference for row in rows]),
        torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)),
    )
