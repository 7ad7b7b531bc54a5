"""Our policy: its price, its order, its floor, and that it beats CERO where the truth is known."""

import math

import numpy as np
import pytest
from allocator_runs import Case, cases, step, successes
from hypothesis import given
from hypothesis import strategies as st

from allocator import Allocator, AllocatorSpec
from allocator.moments import digamma, logit_nodes, trigamma


def spec(**more) -> AllocatorSpec:
    sizes = {"budget_rollouts": 400, "max_rollouts_per_epoch": 40, "unit_rollouts": 4, "max_units_per_prompt": 2}
    return AllocatorSpec(**{**sizes, "policy": "sluice", "coverage_share": 0.0, **more})


@pytest.mark.parametrize("x", [0.01, 0.35, 1.0, 7.5, 300.0])
def test_digamma_and_trigamma_are_the_derivatives_of_log_gamma(x):
    h = 1e-4 * x
    first = (math.lgamma(x + h) - math.lgamma(x - h)) / (2 * h)
    assert digamma(np.array([x]))[0] == pytest.approx(first, rel=1e-5, abs=1e-6)
    second = (digamma(np.array([x + h])) - digamma(np.array([x - h])))[0] / (2 * h)
    assert trigamma(np.array([x]))[0] == pytest.approx(second, rel=1e-5)


@pytest.mark.parametrize(
    ("a", "b"), [(1.0, 1.0), (0.02, 0.3), (0.2, 0.9), (2.0, 5.0), (9.0, 1.5), (0.5, 40.0), (40.0, 60.0), (3e3, 5e3)]
)
def test_quadrature_gives_the_moments_of_a_beta_variable(a, b):
    p, weight = logit_nodes(np.array([a]), np.array([b]))
    assert weight.sum() == pytest.approx(1)
    assert (p * weight).sum() == pytest.approx(a / (a + b), rel=0.01)
    assert (p * (1 - p) * weight).sum() == pytest.approx(a * b / ((a + b) * (a + b + 1)), rel=0.01)
    fourth = a * (a + 1) * b * (b + 1) / ((a + b) * (a + b + 1) * (a + b + 2) * (a + b + 3))
    assert ((p * (1 - p)) ** 2 * weight).sum() == pytest.approx(fourth, rel=0.02)


def test_at_its_price_the_remaining_budget_fills_all_utilities():
    allocator = Allocator(spec(), 30, 20, seed=0)
    for _ in range(5):
        step(allocator, 0)
        policy, pool = allocator._policy, allocator.pool
        value, share = pool.posterior.value(), pool.problem.equal_share_units
        rate = 4 * value / share
        price = policy.metrics()["price"] / share
        needed = np.maximum(np.log(rate / price) / rate - pool.exposure, 0).sum()
        assert needed == pytest.approx(pool.remaining_units, rel=1e-6)


@given(cases(policies=["sluice"]))
def test_a_rollout_budget_is_spent_to_the_unit_where_the_epochs_can_hold_it(case):
    allocator = case.allocator()
    for _ in range(case.epochs):
        step(allocator, case.seed)
    unit, prompts = case.spec.unit_rollouts, case.prompts
    capacity = min(case.spec.max_rollouts_per_epoch // unit, prompts * case.spec.max_units_per_prompt)
    if case.spec.currency == "rollouts" and case.spec.budget // unit <= capacity * case.epochs:
        assert allocator.exhausted


@given(cases(policies=["sluice"]), st.integers(0, 2**31))
def test_renaming_the_prompts_renames_the_first_decisions(case, shuffle_seed):
    """With the tie order and the families renamed too; later ones may differ where a sum over the pool rounds."""
    new_name = np.random.default_rng(shuffle_seed).permutation(case.prompts)
    families = np.array([f"family {prompt % 3}" for prompt in range(case.prompts)])
    renamed_families = np.empty_like(families)
    renamed_families[new_name] = families
    original = case.allocator()
    renamed = Allocator(
        case.spec, case.prompts, case.epochs, case.seed, families=list(renamed_families), max_response_tokens=6
    )
    state = renamed.state_dict()
    for key, value in original.state_dict().items():
        if isinstance(value, np.ndarray) and value.shape[:1] == (case.prompts,) and "first" not in key:
            state[key][new_name] = value
    renamed.load_state_dict(state)
    for epoch in range(min(case.epochs, 2)):
        before, after = original.decide(epoch), renamed.decide(epoch)
        np.testing.assert_array_equal(new_name[before.prompts], after.prompts)
        np.testing.assert_array_equal(before.rollouts, after.rollouts)
        won, spent = successes(before, case.seed), 2 * before.rollouts
        original.observe(epoch, before.prompts, won, before.rollouts - won, spent)
        renamed.observe(epoch, after.prompts, won, after.rollouts - won, spent)


def run(allocator: Allocator, rate: np.ndarray, epochs: int, lengths: np.ndarray | None = None) -> np.ndarray:
    """Rollouts per prompt after `epochs` of prompts that succeed at fixed rates, as often as expected."""
    spent = np.zeros(len(rate), int)
    for _ in range(epochs):
        group = allocator.decide(allocator.epoch)
        won = group.rollouts * rate[group.prompts]
        tokens = None if lengths is None else group.rollouts * lengths[group.prompts]
        allocator.observe(group.epoch, group.prompts, won, group.rollouts - won, tokens)
        spent[group.prompts] += group.rollouts
    return spent


def test_prompts_that_differ_in_reward_get_the_budget():
    rate = np.repeat([0.0, 0.5, 1.0], 10)
    spent = run(Allocator(spec(), 30, 12, seed=0), rate, 12)
    assert spent.sum() == 400
    assert spent[10:20].sum() > 0.5 * 400
    assert spent.min() >= 0


def test_an_epoch_leaves_what_is_not_worth_the_price():
    """Mastered and hopeless prompts were seen; the capacity would allow more, later epochs will do."""
    allocator = Allocator(spec(budget_rollouts=160, max_rollouts_per_epoch=80), 12, 40, seed=0)
    run(allocator, np.repeat([0.0, 1.0], 6), 4)
    assert len(allocator.decide(allocator.epoch).prompts) == 0


def test_the_last_epochs_spend_what_was_left():
    allocator = Allocator(spec(budget_rollouts=160, max_rollouts_per_epoch=80), 12, 40, seed=0)
    assert run(allocator, np.repeat([0.0, 1.0], 6), 40).sum() == 160


def test_a_family_seen_to_be_hopeless_makes_its_unseen_prompts_wait():
    families = ["hopeless"] * 100 + ["open"] * 100
    allocator = Allocator(spec(budget_rollouts=1600), 200, 40, seed=0, families=families)
    spent = run(allocator, np.repeat([0.0, 0.5], 100), 20)
    assert spent[:100].sum() < 0.35 * spent.sum()


def test_of_two_prompts_alike_the_shorter_one_gets_more_under_a_token_budget():
    lengths = np.repeat([2, 6], 10)
    token_spec = spec(budget_rollouts=None, budget_tokens=1600)
    allocator = Allocator(token_spec, 20, 12, seed=0, max_response_tokens=6)
    spent = run(allocator, np.full(20, 0.5), 12, lengths)
    assert spent[:10].sum() > 1.2 * spent[10:].sum()
    assert (spent * lengths).sum() <= 1600


def test_the_coverage_floor_reaches_prompts_that_would_wait():
    families = ["hopeless"] * 100 + ["open"] * 100
    reached = {}
    for share in (0.0, 0.4):
        allocator = Allocator(spec(budget_rollouts=1600, coverage_share=share), 200, 40, seed=0, families=families)
        reached[share] = np.count_nonzero(run(allocator, np.repeat([0.0, 0.5], 100), 20)[:100])
    assert reached[0.4] > 1.3 * reached[0.0]


def test_an_epoch_of_one_group_has_its_floor_now_and_then():
    families = ["hopeless"] * 20 + ["open"] * 20
    reached = {}
    for share in (0.0, 0.25):
        sizes = {"budget_rollouts": 400, "max_rollouts_per_epoch": 8, "coverage_share": share}
        allocator = Allocator(spec(**sizes), 40, 60, seed=0, families=families)
        reached[share] = np.count_nonzero(run(allocator, np.repeat([0.0, 0.5], 20), 45)[:20])
    assert reached[0.25] > reached[0.0]


def surrogate(policy: str, seed: int) -> float:
    """CERO's utility per prompt that a run reaches; 64 prompts, fixed p ~ Beta(.5, .5), 400 epochs."""
    case = Case(spec(policy=policy, unit_rollouts=1, budget_rollouts=12_800, max_rollouts_per_epoch=64), 64, 400, seed)
    rng = np.random.default_rng(seed)
    rate = rng.beta(0.5, 0.5, 64)
    allocator, exposure = case.allocator(), np.zeros(64)
    for epoch in range(400):
        group = allocator.decide(epoch)
        won = rng.binomial(group.rollouts, rate[group.prompts])
        allocator.observe(epoch, group.prompts, won, group.rollouts - won)
        exposure[group.prompts] += group.rollouts
    return float(-np.expm1(-4 * rate * (1 - rate) * exposure / 200).mean())


def test_it_reaches_more_of_ceros_own_utility_than_cero():
    seeds = range(3)
    assert np.mean([surrogate("sluice", s) for s in seeds]) > np.mean([surrogate("cero", s) for s in seeds])
