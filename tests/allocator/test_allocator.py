import copy
import dataclasses
import json
import time

import numpy as np
import pytest
from allocator_runs import LONGEST, Case, cases, same_state, step, successes, tokens
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from allocator import AllocationError, Allocator, AllocatorSpec
from allocator.journal import replay
from allocator.policies import POLICIES

SIZES = {"budget_rollouts": 200, "max_rollouts_per_epoch": 20, "unit_rollouts": 4, "max_units_per_prompt": 2}
SPEC = AllocatorSpec(policy="cero", **SIZES)


@given(cases())
def test_budget_capacity_and_cap_hold_in_every_epoch(case):
    allocator, spent = case.allocator(), {"rollouts": 0, "tokens": 0}
    for _ in range(case.epochs):
        allocation = step(allocator, case.seed)
        assert len(np.unique(allocation.prompts)) == len(allocation.prompts) == len(allocation.rollouts)
        assert allocation.prompts.dtype == allocation.rollouts.dtype == np.int64
        assert (allocation.rollouts > 0).all()
        assert (allocation.rollouts % case.spec.unit_rollouts == 0).all()
        assert allocation.rollouts.max(initial=0) <= case.spec.max_group_rollouts
        assert allocation.rollouts.sum() <= case.spec.max_rollouts_per_epoch
        spent["rollouts"] += int(allocation.rollouts.sum())
        spent["tokens"] += int(tokens(allocation, case.seed).sum())
        metrics = allocator.metrics()
        assert metrics["spent_rollouts"] == spent["rollouts"]
        assert metrics["spent_tokens"] == spent["tokens"]
        left = case.spec.budget - spent[case.spec.currency]
        assert metrics[f"remaining_{case.spec.currency}"] == left >= 0
        unit = case.spec.unit_rollouts * (LONGEST if case.spec.currency == "tokens" else 1)
        assert allocator.exhausted == (left < unit)


@given(cases(), st.integers(0, 25), st.booleans())
def test_a_run_saved_and_loaded_in_the_middle_continues_identically(case, stop, decided):
    straight, interrupted = case.allocator(), case.allocator()
    stop = min(stop, case.epochs - 1)
    for _ in range(stop):
        step(straight, case.seed)
        step(interrupted, case.seed)
    open_decision = interrupted.decide(stop) if decided else None
    state = interrupted.state_dict()
    assert all(isinstance(value, np.ndarray | int | float | str) for value in state.values())

    resumed = dataclasses.replace(case, seed=case.seed + 1).allocator()
    resumed.load_state_dict(state)
    assert same_state(resumed.state_dict(), state)
    if open_decision:
        np.testing.assert_array_equal(resumed.decide(stop).prompts, open_decision.prompts)
    for _ in range(stop, case.epochs):
        left, right = step(straight, case.seed), step(resumed, case.seed)
        np.testing.assert_array_equal(left.prompts, right.prompts)
        np.testing.assert_array_equal(left.rollouts, right.rollouts)
    assert same_state(straight.state_dict(), resumed.state_dict())
    assert straight.metrics() == resumed.metrics()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_saved_state_shares_no_memory_with_the_runs_it_came_from_and_went_to(policy):
    spec = AllocatorSpec(**{**SIZES, "policy": policy, "forgetting": 0.9})
    source, target = Allocator(spec, 12, 9, seed=0), Allocator(spec, 12, 9, seed=0)
    step(source, 0)
    state = source.state_dict()
    kept = copy.deepcopy(state)
    target.load_state_dict(state)
    step(source, 0)
    step(target, 0)
    assert same_state(state, kept)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_state_survives_a_file(policy, tmp_path):
    spec = AllocatorSpec(**{**SIZES, "policy": policy})
    allocator = Allocator(spec, 12, 9, seed=0)
    step(allocator, 0)
    np.savez(tmp_path / "allocator.npz", **allocator.state_dict())
    again = Allocator(spec, 12, 9, seed=5)
    with np.load(tmp_path / "allocator.npz") as file:
        again.load_state_dict(dict(file))
    assert same_state(again.state_dict(), allocator.state_dict())
    assert step(again, 1).prompts.tolist() == step(allocator, 1).prompts.tolist()


def test_deciding_again_gives_the_same_allocation_which_nobody_can_change():
    allocator = Allocator(SPEC, 12, 9, seed=0)
    first = allocator.decide(0)
    assert allocator.decide(0) is first
    with pytest.raises(ValueError, match="read-only"):
        first.rollouts[0] = 99


def test_groups_may_be_observed_in_any_order():
    forwards, backwards = Allocator(SPEC, 12, 9, seed=0), Allocator(SPEC, 12, 9, seed=0)
    group = forwards.decide(0)
    backwards.decide(0)
    won = np.linspace(0, 3.5, len(group.prompts))
    lost = group.rollouts - won
    forwards.observe(0, group.prompts, won, lost)
    backwards.observe(0, group.prompts[::-1], won[::-1], lost[::-1])
    assert same_state(forwards.state_dict(), backwards.state_dict())


def test_an_empty_epoch_is_decided_and_observed_like_any_other():
    allocator = Allocator(SPEC.model_copy(update={"initial_price": 1.0}), 12, 9, seed=0)
    assert len(allocator.decide(0).prompts) == 0
    allocator.observe(0, [], [], [])
    assert allocator.epoch == 1
    assert not allocator.exhausted


def test_a_budget_that_is_no_multiple_of_a_unit_is_refused_by_name():
    with pytest.raises(ValueError, match="budget_rollouts = 42 is not a multiple of unit_rollouts = 4"):
        AllocatorSpec(budget_rollouts=42, max_rollouts_per_epoch=40)


def test_a_remainder_of_tokens_too_small_for_a_unit_exhausts_the_budget():
    spec = AllocatorSpec(policy="cero", budget_tokens=10 * LONGEST, max_rollouts_per_epoch=40)
    allocator = Allocator(spec, 12, 5, seed=0, max_response_tokens=LONGEST)
    while not allocator.exhausted:
        group = allocator.decide(allocator.epoch)
        allocator.observe(group.epoch, group.prompts, 0 * group.rollouts, group.rollouts, LONGEST * group.rollouts)
    assert allocator.metrics()["remaining_tokens"] == 2 * LONGEST
    assert len(allocator.decide(allocator.epoch).prompts) == 0


BAD_OBSERVATIONS = {
    "observed_twice": lambda g: (0, g.prompts, 0 * g.rollouts, g.rollouts),
    "wrong_epoch": lambda g: (2, g.prompts, 0 * g.rollouts, g.rollouts),
    "bad_shape": lambda g: (1, g.prompts, 0 * g.rollouts[1:], g.rollouts),
    "bad_shape ": lambda g: (1, g.prompts, ["many"] * len(g.prompts), g.rollouts),
    "not_finite": lambda g: (1, g.prompts, g.rollouts * np.nan, g.rollouts),
    "negative": lambda g: (1, g.prompts, -1.0 * g.rollouts, 2 * g.rollouts),
    "too_many_successes": lambda g: (1, g.prompts, g.rollouts + 1, g.rollouts * 0),
    "wrong_counts": lambda g: (1, g.prompts, g.rollouts, g.rollouts),
    "unknown_prompt": lambda g: (1, g.prompts + 12, 0 * g.rollouts, g.rollouts),
    "wrong_prompts": lambda g: (1, np.roll(g.prompts, 1) * 0 + g.prompts[0], 0 * g.rollouts, g.rollouts),
}


@pytest.mark.parametrize("reason", BAD_OBSERVATIONS)
def test_a_bad_observation_is_refused_by_name_and_changes_nothing(reason):
    allocator = Allocator(SPEC, 12, 9, seed=0)
    step(allocator, 0)
    group = allocator.decide(1)
    before = allocator.state_dict()
    with pytest.raises(AllocationError, match=reason.strip()) as refused:
        allocator.observe(*BAD_OBSERVATIONS[reason](group))
    assert refused.value.reason == reason.strip()
    assert same_state(allocator.state_dict(), before)
    allocator.observe(1, group.prompts, 0 * group.rollouts, group.rollouts)


def test_a_missing_group_and_a_group_too_many_are_refused():
    allocator = Allocator(SPEC, 12, 9, seed=0)
    group = allocator.decide(0)
    other = np.setdiff1d(np.arange(12), group.prompts)[:1]
    for prompts in (group.prompts[1:], np.append(group.prompts, other), np.append(group.prompts[1:], other)):
        with pytest.raises(AllocationError, match="wrong_prompts"):
            allocator.observe(0, prompts, np.zeros(len(prompts)), np.full(len(prompts), 8.0))


def test_epochs_are_decided_in_order_up_to_the_last():
    allocator = Allocator(SPEC, 12, 2, seed=0)
    with pytest.raises(AllocationError, match=r"wrong_epoch.*epoch 0 is to be decided"):
        allocator.decide(1)
    with pytest.raises(AllocationError, match=r"wrong_epoch.*epoch 0 is to be decided"):
        allocator.observe(0, [], [], [])
    allocator.decide(0)
    with pytest.raises(AllocationError, match=r"wrong_epoch.*epoch 0 is to be observed"):
        allocator.decide(1)
    step(allocator, 0)
    step(allocator, 0)
    with pytest.raises(AllocationError, match=r"wrong_epoch.*all 2 planned epochs are over"):
        allocator.decide(2)


@pytest.mark.parametrize(
    ("change", "prompts", "epochs", "named"),
    [
        ({"policy": "uniform"}, 12, 9, "spec.policy"),
        ({"budget_rollouts": 300}, 12, 9, "spec.budget_rollouts"),
        ({}, 13, 9, "prompts = 13"),
        ({}, 12, 8, "epochs = 8"),
    ],
)
def test_a_state_of_another_run_is_refused_and_changes_nothing(change, prompts, epochs, named):
    allocator = Allocator(SPEC, 12, 9, seed=0)
    step(allocator, 0)
    before = allocator.state_dict()
    with pytest.raises(AllocationError, match=f"other_run.*{named}"):
        allocator.load_state_dict(Allocator(SPEC.model_copy(update=change), prompts, epochs, seed=0).state_dict())
    assert same_state(allocator.state_dict(), before)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pool.posterior.successes", np.full(12, np.nan)),
        ("policy.priority", np.zeros(11)),
        ("policy.tie_rank", np.zeros(12)),
        ("pool.epoch", 10),
        ("decided", 2),
        ("spent_rollouts", 204),
        ("spent_tokens", -3),
        ("pool.exposure", np.full(12, -1, np.int32)),
        ("policy.unheard_of", 1),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(key, value):
    allocator = Allocator(SPEC, 12, 9, seed=0)
    step(allocator, 0)
    before = allocator.state_dict()
    with pytest.raises(AllocationError, match=r"bad_state|bad_ledger"):
        allocator.load_state_dict(before | {key: value})
    assert same_state(allocator.state_dict(), before)


@pytest.mark.parametrize(("prompts", "epochs"), [(0, 5), (5, 0)])
def test_a_run_without_prompts_or_epochs_is_refused(prompts, epochs):
    with pytest.raises(AllocationError, match="bad_size"):
        Allocator(SPEC, prompts, epochs, seed=0)


def test_prompts_that_changed_between_checkpoint_and_resume_are_refused():
    saved, changed = (Allocator(SPEC, 12, 9, seed=0, prompt_set=name) for name in ("these", "others"))
    with pytest.raises(AllocationError, match=r"other_run.*prompt_set = 'these'"):
        changed.load_state_dict(saved.state_dict())


@pytest.mark.parametrize("counted", [None, [1, 2], np.full(2, -1), np.full(2, 8 * LONGEST + 1), np.zeros(2)])
def test_a_token_budget_needs_possible_tokens(counted):
    spec = AllocatorSpec(policy="uniform", budget_tokens=2_000, max_rollouts_per_epoch=16)
    allocator = Allocator(spec, 12, 9, seed=0, max_response_tokens=LONGEST)
    group = allocator.decide(0)
    counted = counted[: len(group.prompts) - 1] if isinstance(counted, list) else counted
    before = allocator.state_dict()
    with pytest.raises(AllocationError, match="bad_tokens"):
        allocator.observe(0, group.prompts, 0 * group.rollouts, group.rollouts, counted)
    assert same_state(allocator.state_dict(), before)


def test_a_token_budget_too_small_for_a_unit_or_without_a_longest_response_is_refused():
    spec = AllocatorSpec(budget_tokens=4 * LONGEST - 1, max_rollouts_per_epoch=16)
    with pytest.raises(AllocationError, match="budget_too_small"):
        Allocator(spec, 12, 9, seed=0, max_response_tokens=LONGEST)
    with pytest.raises(AllocationError, match=r"bad_size.*max_response_tokens"):
        Allocator(spec, 12, 9, seed=0)


def test_families_are_one_per_prompt():
    with pytest.raises(AllocationError, match="bad_size: 2 families for 12 prompts"):
        Allocator(SPEC, 12, 9, seed=0, families=["a", "b"])


def journal_of(case) -> list[dict]:
    """What a run writes, and what a reader gets back from its lines."""
    allocator = case.allocator()
    ids = [f"id{prompt}" for prompt in range(case.prompts)]
    families = [f"family {prompt % 3}" for prompt in range(case.prompts)]
    events = [
        {"event": "allocator", "spec": case.spec.model_dump(), "prompts": case.prompts, "epochs": case.epochs,
         "seed": case.seed, "families": families, "prompt_set": "", "max_response_tokens": LONGEST, "prompt_ids": ids}
    ]  # fmt: skip
    for epoch in range(case.epochs):
        group = allocator.decide(epoch)
        decided = {"prompts": [ids[p] for p in group.prompts], "rollouts": group.rollouts.tolist()}
        won, spent = successes(group, case.seed), tokens(group, case.seed)
        events += [{"event": "decided", "epoch": epoch, **decided}, {"event": "dispatched"}]
        events.append({"event": "rolled_out", "epoch": epoch, "reward_sums": won.tolist(), "tokens": spent.tolist()})
        allocator.observe(epoch, group.prompts, won, group.rollouts - won, spent)
    return json.loads(json.dumps(events))


@given(cases())
def test_a_replayed_journal_gives_the_decisions_bit_by_bit(case):
    events = journal_of(case)
    again = list(replay(events))
    assert len(again) == case.epochs
    live = case.allocator()
    for epoch, (_, allocation) in enumerate(again):
        np.testing.assert_array_equal(allocation.prompts, live.decide(epoch).prompts)
        step(live, case.seed)
    assert same_state(again[-1][0].state_dict(), live.state_dict())


def test_a_journal_that_says_something_else_is_refused():
    spec = AllocatorSpec(**SIZES)
    events = journal_of(Case(spec, 12, 4, seed=0))
    repeated = [events[0], events[1], *events[1:]]
    assert len(list(replay(repeated))) == 4
    with pytest.raises(AllocationError, match="not_a_journal"):
        list(replay(events[1:]))
    with pytest.raises(AllocationError, match="not_a_journal: epoch 1 was sampled without a decision"):
        list(replay([*events[:4], *events[5:]]))
    with pytest.raises(AllocationError, match="wrong_epoch"):
        list(replay([*events[:4], *events[7:]]))
    events[4]["rollouts"][0] += 4
    with pytest.raises(AllocationError, match="other_decision: epoch 1"):
        list(replay(events))


def epoch_s(prompts: int, rollouts: int, policy: str, epochs: int) -> list[float]:
    """Processor seconds of decision and update of each epoch, half of the responses correct."""
    spec = AllocatorSpec(policy=policy, budget_rollouts=500 * rollouts, max_rollouts_per_epoch=int(1.03 * rollouts))
    allocator = Allocator(spec, prompts, 500, seed=0)
    took_s = []
    for _ in range(epochs):
        start = time.process_time()
        group = allocator.decide(allocator.epoch)
        allocator.observe(group.epoch, group.prompts, group.rollouts / 2, group.rollouts / 2)
        took_s.append(time.process_time() - start)
    return took_s


@pytest.mark.parametrize("policy", ["sluice", "cero"])
def test_nine_thousand_prompts_take_two_milliseconds_an_epoch(policy):
    assert np.median(epoch_s(9_000, 512, policy, 50)) < 2e-3


@pytest.mark.parametrize("policy", ["sluice", "cero"])
def test_a_million_prompts_take_a_tenth_of_a_second_an_epoch_and_a_second_to_save(policy, tmp_path):
    assert np.median(epoch_s(1_000_000, 4_096, policy, 7)) < 0.1
    spec = AllocatorSpec(policy=policy, budget_rollouts=2_048_000, max_rollouts_per_epoch=4_200)
    allocator = Allocator(spec, 1_000_000, 500, seed=0)
    start = time.process_time()
    save_file({k: v for k, v in allocator.state_dict().items() if isinstance(v, np.ndarray)}, tmp_path / "state")
    assert time.process_time() - start < 1


@pytest.mark.parametrize("policy", ["sluice", "cero"])
def test_a_state_has_less_than_64_bytes_per_prompt(policy):
    spec = AllocatorSpec(policy=policy, budget_tokens=10**6, max_rollouts_per_epoch=528)
    state = Allocator(spec, 10_000, 500, seed=0, max_response_tokens=10).state_dict()
    assert sum(value.nbytes for value in state.values() if isinstance(value, np.ndarray)) < 64 * 10_000
