"""Whether an observation answers its decision; nothing is changed by one that does not."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from allocator.ledger import AllocationError
from allocator.problem import Floats, Ints

if TYPE_CHECKING:
    from allocator.allocator import Allocation

# Share of a group by which graded successes + failures may miss its size: the rounding of a float32 sum, and no sample.
COUNT_TOLERANCE = 1e-6


class Counts(NamedTuple):
    """Arrays [n] of one epoch's groups, in one order."""

    prompts: Ints
    rollouts: Ints
    successes: Floats
    failures: Floats
    tokens: Ints


def checked_counts(
    pool: int, allocation: "Allocation", prompts: ArrayLike, successes: ArrayLike, failures: ArrayLike,
    tokens: ArrayLike | None, max_response_tokens: int,
) -> Counts:  # fmt: skip
    """The arrays of `Allocator.observe`, if they answer `allocation`; errors as there.

    `max_response_tokens` is 0 where tokens need not be given (they are counted as 0 then).
    """

    def refuse_where(wrong: np.ndarray, reason: str, message: str) -> None:
        if wrong.any():
            raise AllocationError(reason, f"epoch {allocation.epoch}: {message}, prompts {ids[wrong][:5].tolist()}")

    try:
        ids = np.asarray(prompts)
        won, lost = np.asarray(successes, dtype=np.float64), np.asarray(failures, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise AllocationError(
            "bad_shape", f"prompts, successes and failures must be lists of numbers: {error}"
        ) from None
    if ids.ndim != 1 or not ids.shape == won.shape == lost.shape:
        shapes = f"{ids.shape}, {won.shape}, {lost.shape}"
        raise AllocationError("bad_shape", f"prompts, successes and failures need one shape [n], not {shapes}")
    if len(ids) and ids.dtype.kind not in "iu":
        raise AllocationError("bad_shape", f"prompts must be integers, not {ids.dtype}")
    ids = ids.astype(np.int64)
    refuse_where((ids < 0) | (ids >= pool), "unknown_prompt", f"outside the pool of {pool}")
    refuse_where(~(np.isfinite(won) & np.isfinite(lost)), "not_finite", "successes or failures are not finite")

    rollouts = _decided_rollouts(allocation, ids)
    refuse_where(won > rollouts, "too_many_successes", "more successes than rollouts")
    refuse_where((won < 0) | (lost < 0), "negative", "negative successes or failures")
    off = np.abs(won + lost - rollouts) > COUNT_TOLERANCE * rollouts
    refuse_where(off, "wrong_counts", "successes + failures are not the rollouts decided")

    if tokens is None and max_response_tokens:
        raise AllocationError("bad_tokens", f"epoch {allocation.epoch}: a token budget needs the tokens of every group")
    counted = np.zeros(len(ids), np.int64) if tokens is None else np.asarray(tokens)
    if counted.shape != ids.shape or (len(ids) and counted.dtype.kind not in "iu"):
        raise AllocationError("bad_tokens", f"tokens must be integers of shape {ids.shape}")
    refuse_where(counted < 0, "bad_tokens", "negative tokens")
    if max_response_tokens:
        refuse_where(counted > rollouts * max_response_tokens, "bad_tokens", "more tokens than responses may have")
    return Counts(ids, rollouts, won, lost, counted.astype(np.int64))


def _decided_rollouts(allocation: "Allocation", ids: Ints) -> Ints:
    """Rollouts decided for each of `ids` [n], if these are the prompts of the decision, each once."""
    by_id, decided_by_id = np.argsort(ids), np.argsort(allocation.prompts)
    if not np.array_equal(ids[by_id], allocation.prompts[decided_by_id]):
        missing, extra = np.setdiff1d(allocation.prompts, ids), np.setdiff1d(ids, allocation.prompts)
        raise AllocationError(
            "wrong_prompts",
            f"epoch {allocation.epoch} decided {len(allocation.prompts)} groups and got {len(ids)}; "
            f"missing {missing[:5].tolist()}, not decided {extra[:5].tolist()}, the rest repeated",
        )
    rollouts = np.empty_like(ids)
    rollouts[by_id] = allocation.rollouts[decided_by_id]
    return rollouts
