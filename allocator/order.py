"""Selection of prompts: best first, ties in one fixed random order."""

import numpy as np
from numpy.typing import NDArray

from allocator.problem import Floats, Ints

Ranks = NDArray[np.int32]


def tie_order(prompts: int, seed: int) -> Ranks:
    """A random rank for every prompt [M]; among equals the lower one goes first."""
    return np.random.default_rng(seed).permutation(prompts).astype(np.int32)


def best_first(margin: Floats, tie_rank: Ranks, count: int) -> Ints:
    """The at most `count` prompts of largest positive `margin` [M], best first; among equals the lower `tie_rank` [M].

    Selecting before sorting keeps the cost linear in the pool; in the first pass the whole pool is one tie.
    """
    chosen = np.flatnonzero(margin > 0)
    if count <= 0:
        return chosen[:0]
    if len(chosen) > count:
        candidates = margin[chosen]
        cut = np.partition(candidates, len(chosen) - count)[len(chosen) - count]
        above, tied = chosen[candidates > cut], chosen[candidates == cut]
        places = count - len(above)
        tied = tied[np.argpartition(tie_rank[tied], places - 1)[:places]]
        chosen = np.concatenate([above, tied])
    return chosen[np.lexsort((tie_rank[chosen], -margin[chosen]))]
