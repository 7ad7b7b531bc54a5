"""What the drafter learns from: newest finishers and last epoch's longest, within a bound, across sessions."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from drafter.buffer import Blob, FeatureBuffer, select
from drafter.features import FeatureSequence, from_columns, to_columns


def blob(epoch: int, long: bool, size: int = 10) -> Blob:
    return Blob(f"{epoch}-{long}", epoch, long, 1, 10, size)


def handles(buffer: FeatureBuffer) -> set[str]:
    return {b.handle for b in buffer.blobs}


def test_the_longest_of_the_epoch_before_stay_beside_the_newest():
    """Gap 3: a FIFO sampled uniformly has neither the one-step offset nor the long sequences."""
    buffer = FeatureBuffer(30)
    buffer.add([blob(0, True), blob(0, False)])
    buffer.add([blob(1, True), blob(1, False)])
    assert handles(buffer) == {"0-True", "1-True", "1-False"}


def test_nothing_is_dropped_but_by_newer_features():
    """Gap 3: the released buffer is cleared after every training session."""
    buffer = FeatureBuffer(1000)
    buffer.add([blob(0, True), blob(0, False)])
    for _session in range(3):
        assert handles(buffer) == {"0-True", "0-False"}
        buffer.add([])


def test_epochs_are_told_apart_as_they_advance():
    """Gap 1: with a step counter that never advances no epoch is ever older than another."""
    buffer = FeatureBuffer(40)
    for epoch in range(5):
        buffer.add([blob(epoch, True), blob(epoch, False)])
        assert buffer.newest == epoch
    assert handles(buffer) == {"4-True", "4-False", "3-True", "2-True"}


def test_the_bound_drops_the_oldest_first():
    buffer = FeatureBuffer(35)
    for epoch in range(4):
        buffer.add([blob(epoch, True), blob(epoch, False)])
    assert handles(buffer) == {"3-True", "3-False", "2-True"}


def test_ranks_of_one_epoch_add_up():
    buffer = FeatureBuffer(1000)
    buffer.add([blob(0, True)])
    buffer.add([blob(0, False)])
    assert handles(buffer) == {"0-True", "0-False"}


@given(st.lists(st.integers(1, 500), min_size=1, max_size=60), st.integers(1, 4000), st.integers(0, 9))
def test_a_selection_fits_takes_the_longest_and_repeats_nothing(lengths, budget, seed):
    longest, rest = select(lengths, budget, seed)
    chosen = [*longest, *rest]
    assert len(set(chosen)) == len(chosen)
    assert sum(lengths[i] for i in chosen) <= max(budget, lengths[longest[0]] if longest else 0)
    if longest and rest:
        assert max(lengths) == lengths[longest[0]]
    if sum(lengths) <= budget:
        assert sorted(chosen) == list(range(len(lengths)))


def test_columns_give_back_the_sequences():
    rng = np.random.default_rng(0)
    sequences = [
        FeatureSequence(
            f"{i + 2**63:016x}", 3, np.arange(n, dtype=np.int32), 2, rng.random((n, 6)).astype(np.float16),
            rng.random((n, 2)).astype(np.float16),
        )
        for i, n in enumerate((5, 9, 3))
    ]  # fmt: skip
    for ours, theirs in zip(from_columns(to_columns(sequences)), sequences, strict=True):
        assert (ours.id, ours.epoch, ours.prompt_length) == (theirs.id, theirs.epoch, theirs.prompt_length)
        for name in ("token_ids", "features", "last"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
