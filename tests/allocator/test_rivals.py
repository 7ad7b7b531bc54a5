"""Every policy keeps the contract; every rival follows its paper's rule, on examples solved by hand or brute force."""

import dataclasses
import itertools

import numpy as np
import pytest
from allocator_runs import cases, same_state, tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from allocator import Allocation, Allocator, AllocatorSpec
from allocator.cero import Cero
from allocator.policies import POLICIES
from allocator.rivals.split import filled
from allocator.utility import saturation_rate, utility


def opened(policy: str, prompts: int, epochs: int, pace: int, capacity: int = 0, unit: int = 4, cap: int = 2, **spec):
    """An allocator with a budget of `pace` units per epoch."""
    capacity = capacity or pace
    return Allocator(
        AllocatorSpec(
            policy=policy, budget_rollouts=pace * epochs * unit, unit_rollouts=unit, max_units_per_prompt=cap,
            max_rollouts_per_epoch=capacity * unit, **spec,
        ),
        prompts, epochs, seed=0,
    )  # fmt: skip


def observe(allocator: Allocator, won) -> Allocation:
    """One epoch in which prompt i succeeds `won(i, rollouts)` times."""
    group = allocator.decide(allocator.epoch)
    successes = np.array([won(i, n) for i, n in zip(group.prompts, group.rollouts, strict=True)], dtype=float)
    allocator.observe(group.epoch, group.prompts, successes, group.rollouts - successes, tokens(group, 0))
    return group


def play(allocator: Allocator, seed: int) -> Allocation:
    """One epoch with rewards of 0 and 1, among them groups of all failures and all successes."""
    luck = np.random.default_rng([seed, allocator.epoch]).random(10_000)
    return observe(allocator, lambda i, n: np.rint(n * np.clip(2 * luck[i] - 0.5, 0, 1)))


def with_rates(allocator: Allocator, successes, failures) -> Allocator:
    """Beliefs about every prompt [M] as after so many successes and failures."""
    state = allocator.state_dict()
    state["pool.posterior.successes"], state["pool.posterior.failures"] = (
        np.array(counts, float) for counts in (successes, failures)
    )
    if "policy.rate" in state:
        state["policy.rate"] = np.array(successes, float) / (np.array(successes) + np.array(failures))
    allocator.load_state_dict(state)
    return allocator


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=25)
@given(data=st.data())
def test_every_proposal_is_within_cap_and_capacity_names_a_prompt_once_and_changes_nothing(policy, data):
    case = data.draw(cases(policies=[policy]))
    allocator, unit = case.allocator(), case.spec.unit_rollouts
    for _ in range(case.epochs):
        before = allocator._policy.state_dict()
        proposal = allocator._policy.propose()
        assert same_state(allocator._policy.state_dict(), before)
        assert proposal.prompts.dtype == proposal.units.dtype == np.int64
        assert len(np.unique(proposal.prompts)) == len(proposal.prompts) == len(proposal.units)
        assert ((proposal.units >= 1) & (proposal.units <= case.spec.max_units_per_prompt)).all()
        assert proposal.units.sum() * unit <= case.spec.max_rollouts_per_epoch
        play(allocator, case.seed)
        assert allocator.metrics()[f"remaining_{case.spec.currency}"] >= 0
    assert not allocator.holds_update


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=25)
@given(data=st.data())
def test_every_policy_saved_and_loaded_in_the_middle_continues_identically(policy, data):
    case = data.draw(cases(policies=[policy]))
    stop = data.draw(st.integers(0, case.epochs - 1))
    straight = case.allocator()
    for _ in range(stop):
        play(straight, case.seed)
    state = straight.state_dict()
    resumed = dataclasses.replace(case, seed=case.seed + 1).allocator()
    resumed.load_state_dict(state)
    assert resumed.holds_update == straight.holds_update
    for _ in range(stop, case.epochs):
        left, right = play(straight, case.seed), play(resumed, case.seed)
        np.testing.assert_array_equal(left.prompts, right.prompts)
        np.testing.assert_array_equal(left.rollouts, right.rollouts)
        assert resumed.holds_update == straight.holds_update
    assert same_state(straight.state_dict(), resumed.state_dict())


EVEN = ["uniform", "cero_fixed", "cero_greedy", "knapsack", "dapo", "gvm", "vip", "mopps"]


@pytest.mark.parametrize("policy", EVEN)
@settings(max_examples=25)
@given(data=st.data())
def test_an_even_pace_spends_the_budget_to_the_unit(policy, data):
    case = data.draw(cases(policies=[policy], as_published=True))
    allocator, unit = case.allocator(), case.spec.unit_rollouts
    budget = case.spec.budget_rollouts // unit
    capacity = min(case.spec.max_rollouts_per_epoch // unit, case.prompts * case.spec.max_units_per_prompt)
    spent = [int(play(allocator, case.seed).rollouts.sum()) // unit for _ in range(case.epochs)]
    assert all(abs(units - min(budget / case.epochs, capacity)) < 1 for units in spent)
    assert sum(spent) == budget or budget > case.epochs * capacity


def test_random_matched_spends_what_cero_spends_on_other_prompts_every_epoch():
    cero, matched = (opened(policy, 400, 60, pace=16, capacity=24) for policy in ("cero", "random_matched"))
    dealt = []
    for _ in range(60):
        own, dual = Cero.propose(matched._policy), matched.state_dict()["policy.priority"]
        assert matched._policy.propose().units.tolist() == own.units.tolist()
        left, right = (observe(allocator, lambda i, n: n / 2) for allocator in (cero, matched))
        assert (matched.state_dict()["policy.priority"] < dual)[own.prompts].all()
        dealt.append(right.prompts.tolist())
        if cero.epoch <= 15:  # until here no prompt of CERO's came twice: its price knows nothing of the rewards
            assert left.rollouts.tolist() == right.rollouts.tolist()
        assert len(right.prompts) == 0 or left.prompts.tolist() != right.prompts.tolist()
    assert dealt[0] != dealt[1]
    assert len({i for epoch in dealt for i in epoch}) < sum(map(len, dealt))


def test_cero_fixed_takes_the_largest_duals_whatever_the_price_would_say():
    allocator = opened("cero_fixed", 20, 40, pace=8, capacity=16, initial_price=1.0)
    for _ in range(40):
        dual = allocator.state_dict()["policy.priority"]
        chosen = play(allocator, 3).prompts
        assert len(chosen) == 4
        assert dual[chosen].min() >= np.delete(dual, chosen).max()


def test_cero_greedy_takes_the_largest_gains_in_utility():
    allocator = opened("cero_greedy", 20, 40, pace=8)
    for _ in range(40):
        pool = allocator.pool
        rate = saturation_rate(pool.posterior.value(), 1.0, pool.problem.equal_share_units)
        gain = utility(rate, pool.exposure + 2) - utility(rate, pool.exposure)
        chosen = play(allocator, 3).prompts
        assert gain[chosen].min() >= np.delete(gain, chosen).max() - 1e-12


@settings(max_examples=50)
@given(st.lists(st.integers(0, 8), min_size=2, max_size=6), st.integers(1, 4), st.integers(1, 3), st.data())
def test_knapsack_is_the_best_of_all_splits(won, cap, unit, data):
    units = data.draw(st.integers(len(won), len(won) * cap))
    p = np.array(won) / 8
    allocator = opened("knapsack", len(won), 3, pace=len(won) * cap, unit=unit, cap=cap)
    with_rates(allocator, won, 8 - np.array(won))

    def value(split):
        n = unit * np.array(split)
        return ((1 - p**n - (1 - p) ** n) * p * (1 - p) ** 2).sum()

    splits = itertools.product(range(1, cap + 1), repeat=len(won))
    best = max(value(split) for split in splits if sum(split) == units)
    split = allocator._policy._split(np.arange(len(won)), units)
    assert split.sum() == units
    assert ((split >= 1) & (split <= cap)).all()
    assert value(split) == pytest.approx(best, abs=1e-12)


def test_knapsack_gives_what_is_to_spare_to_prompts_never_solved():
    allocator = with_rates(opened("knapsack", 4, 3, pace=11, cap=4), [8, 0, 4, 0], [0, 8, 4, 8])
    assert allocator._policy._split(np.arange(4), 11).tolist() == [1, 4, 4, 2]


def test_knapsack_goes_by_the_last_visit_alone():
    allocator = opened("knapsack", 4, 9, pace=6)
    for epoch in range(9):
        group = observe(allocator, lambda i, n, epoch=epoch: (i + epoch) % 4)
        expected = (group.prompts + epoch) % 4 / group.rollouts
        np.testing.assert_array_equal(allocator.state_dict()["policy.rate"][group.prompts], expected)


@given(
    st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=30), st.sampled_from([(0.0, 0), (0.25, 1), (1.0, 1)]),
    st.integers(2, 50), st.data(),
)  # fmt: skip
def test_a_share_is_within_one_of_proportional_to_its_weight_unless_it_is_clipped(weights, lower, high, data):
    """The Lagrange condition: (n_i - offset) / weight_i is one number for all i that are not at a bound."""
    (offset, low), weight = lower, np.array(weights)
    total = data.draw(st.integers(len(weights) * low, len(weights) * high))
    share = filled(offset, weight, low, high, total)
    assert share.sum() == total
    assert ((share >= low) & (share <= high)).all()
    least = np.where(share > low, (share - 1 - offset) / weight, 0)
    most = np.where(share < high, (share + 1 - offset) / weight, np.inf)
    assert least.max() <= most.min() * (1 + 1e-9)


def test_vip_meets_the_lagrange_condition_of_its_sum_of_variances():
    """d/dn a / (n - 1) = -a / (n - 1)^2 is the same for all prompts whose groups are not at a bound."""
    won = np.array([1, 40, 150, 500, 850, 990])
    allocator = with_rates(opened("vip", 6, 2, pace=3000, unit=1, cap=2000), won, 1000 - won)
    p = allocator.posterior_mean
    n = allocator._policy._split(np.arange(6), 3000)
    np.testing.assert_allclose(p * (1 - p) / (n - 1) ** 2, (p * (1 - p))[3] / (n[3] - 1) ** 2, rtol=0.05)


def test_gvm_favours_rare_success_but_not_the_hopeless():
    won = np.array([1, 300, 5_000, 9_000])
    allocator = with_rates(opened("gvm", 4, 2, pace=2000, unit=1, cap=2000), won, 10_000 - won)
    p = allocator.posterior_mean
    weight = 1 / np.sqrt(p + 0.001 / p)
    n = allocator._policy._split(np.arange(4), 2000)
    np.testing.assert_allclose(n, 2000 * weight / weight.sum(), atol=1)
    assert n[1] > n[2] > n[3] > n[0]


@pytest.mark.parametrize("policy", ["knapsack", "gvm", "vip"])
def test_a_batch_is_the_next_prompts_of_the_uniform_cycle(policy):
    allocator = opened(policy, 30, 9, pace=10, cap=4)
    order, seen = allocator.state_dict()["policy.order"], 0
    for _ in range(9):
        batch = order[(seen + np.arange(4)) % 30]  # 10 units / mean group of 2.5
        assert set(play(allocator, 1).prompts) <= set(batch)
        seen += 4


def test_mopps_takes_the_prompts_believed_nearest_to_one_half():
    won = np.array([5, 100, 480, 515, 700, 999]) * 1_000
    allocator = with_rates(opened("mopps", 6, 9, pace=6), won, 1_000_000 - won)
    assert allocator.decide(0).prompts.tolist() == [3, 2, 4]


def test_mopps_chooses_among_the_next_sixteen_candidates_for_each_group():
    allocator = opened("mopps", 50, 9, pace=4)
    order = allocator.state_dict()["policy.order"]
    for epoch in range(9):
        candidates = order[(32 * epoch + np.arange(32)) % 50]
        assert set(play(allocator, 1).prompts) <= set(candidates)


def test_mopps_draws_anew_in_every_epoch():
    allocator = opened("mopps", 64, 9, pace=8)
    first, second = (observe(allocator, lambda i, n: n / 2).prompts.tolist() for _ in range(2))
    assert first != second


@given(st.integers(0, 99), st.integers(2, 12))
def test_dapo_holds_until_a_batch_of_groups_has_an_advantage(seed, groups):
    allocator = opened("dapo", 40, 30, pace=2 * groups)
    effective = 0
    for _ in range(29):
        group = allocator.decide(allocator.epoch)
        won = np.random.default_rng([seed, group.epoch]).choice([0, 0, 3, 8], len(group.prompts))
        allocator.observe(group.epoch, group.prompts, won, group.rollouts - won)
        effective += int((won == 3).sum())
        assert allocator.holds_update == (effective < groups)
        effective *= allocator.holds_update
    play(allocator, seed)
    assert not allocator.holds_update  # the run is over: the learner gets what there is


def test_reinforce_ada_samples_every_prompt_until_it_has_both_rewards_or_enough():
    """Prompt i succeeds in its rounds as bit r of i: 0 never, 15 always, 8 = 0b1000 in the last of four only."""
    allocator = opened("reinforce_ada", 16, 9, pace=16, unit=1, cap=4)
    dealt = np.zeros(16, int)
    for held in (True, True, True, False):
        group = observe(allocator, lambda i, n: i >> dealt[i] & 1)
        assert (group.rollouts == 1).all()
        dealt[group.prompts] += 1
        assert allocator.holds_update == held
    mixed = [next((r + 1 for r in range(1, 4) if (i >> r ^ i) & 1), 4) for i in range(16)]
    assert dealt.tolist() == mixed
    assert len(allocator.decide(4).prompts) == 16


def test_pilot_commit_commits_to_the_band_and_passes_the_rest_over():
    won = [0, 1, 4, 6, 7, 8]
    allocator = opened("pilot_commit", 6, 9, pace=6, capacity=12, unit=8, cap=3)
    pilot = observe(allocator, lambda i, n: won[i])
    assert sorted(pilot.prompts) == list(range(6))
    assert pilot.rollouts.tolist() == [8] * 6
    assert allocator.holds_update
    commit = observe(allocator, lambda i, n: n)
    assert sorted(commit.prompts) == [1, 2, 3]
    assert commit.rollouts.tolist() == [16] * 3
    assert not allocator.holds_update
    assert len(allocator.decide(2).prompts) == 6


def test_pilot_commit_spreads_a_commit_beyond_the_capacity_over_epochs():
    allocator = opened("pilot_commit", 6, 9, pace=6, cap=4)
    for held in (True, True, True, False):
        assert observe(allocator, lambda i, n: n / 2).rollouts.sum() == 24
        assert allocator.holds_update == held


def test_without_a_second_unit_there_is_nothing_to_hold_for():
    for policy in ("pilot_commit", "reinforce_ada"):
        allocator = opened(policy, 20, 9, pace=6, cap=1)
        for _ in range(9):
            assert len(play(allocator, 0).prompts) == 6
            assert not allocator.holds_update


def test_what_a_second_stage_leaves_of_the_pace_goes_to_the_next_batch():
    allocator = opened("reinforce_ada", 50, 20, pace=10, capacity=20)
    leaving = allocator.decide(0).prompts[:7]
    sizes = [len(observe(allocator, lambda i, n: n / 2 if i in leaving else n).prompts) for _ in range(2)]
    assert sizes == [10, 3]
    assert len(allocator.decide(2).prompts) == 3 * 10 - 13
