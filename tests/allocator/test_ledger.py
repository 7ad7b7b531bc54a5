import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allocator.ledger import AllocationError, Ledger


@given(st.integers(0, 50), st.lists(st.integers(-2, 30), max_size=20))
def test_spent_plus_remaining_is_the_budget_and_neither_is_negative(budget, amounts):
    ledger, booked = Ledger(budget), 0
    for epoch, amount in enumerate(amounts):
        if not 0 <= amount <= budget - booked:
            with pytest.raises(AllocationError, match=r"negative|overspent"):
                ledger.reserve(epoch, amount)
        else:
            ledger.reserve(epoch, amount)
            assert ledger.spent + amount + ledger.remaining == budget
            ledger.settle(epoch, amount)
            booked += amount
        assert ledger.spent == booked <= budget
        assert ledger.remaining == budget - booked


def test_tokens_are_reserved_at_most_and_settled_as_sampled():
    ledger = Ledger(100, "tokens")
    ledger.reserve(0, 80)
    assert ledger.remaining == 20
    with pytest.raises(AllocationError, match="mismatch"):
        ledger.settle(0, 81)
    ledger.settle(0, 30)
    assert (ledger.spent, ledger.remaining) == (30, 70)


def test_only_what_an_epoch_reserved_is_settled_and_only_once():
    ledger = Ledger(10)
    ledger.reserve(0, 4)
    for call, reason in [
        (lambda: ledger.reserve(1, 1), "unsettled"),
        (lambda: ledger.settle(1, 4), "not_reserved"),
        (lambda: ledger.settle(0, 3), "mismatch"),
    ]:
        with pytest.raises(AllocationError) as refused:
            call()
        assert refused.value.reason == reason
    ledger.settle(0, 4)
    with pytest.raises(AllocationError, match="not_reserved"):
        ledger.settle(0, 4)
    assert (ledger.spent, ledger.remaining) == (4, 6)


def test_a_refusal_travels_between_processes():
    error = pickle.loads(pickle.dumps(AllocationError("negative", "epoch 3")))
    assert (error.reason, str(error)) == ("negative", "negative: epoch 3")


@pytest.mark.parametrize("spent", [-1, 11])
def test_an_impossible_opening_balance_is_refused(spent):
    with pytest.raises(AllocationError, match="bad_ledger"):
        Ledger(10, "tokens", spent)
