"""What each estimator does to the expected gradient.

For binary rewards and a group of n, E[gradient estimate] = c(n, p) x gradient of the success probability p, with a
closed form of c for every estimator.
"""

import itertools
from collections.abc import Callable
from math import comb, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.advantages import ESTIMATORS, advantages, history, pass_at_k, prompt_weight, shaped, shrinkage
from trainer.batches import samples
from trainer.objective import ObjectiveSpec
from trainer.objectives import token_losses
from trainer.types import Group

NAMES = ["group_mean", "leave_one_out", "z_score"]
"""Of one group, with advantages that add up to zero."""
EVERY = [*sorted(ESTIMATORS), "batch_z", "pass_at_k", "history", "shrinkage"]
rewards_of_a_group = st.lists(st.floats(0, 1), min_size=1, max_size=20).map(np.array)


def group_of(rewards: np.ndarray, number: int = 0, tokens: int = 1) -> Group:
    """Responses of equal length; the first token is the action: 1 right, 0 wrong."""
    n = len(rewards)
    token_ids = np.repeat((rewards > 0.5).astype(np.int32), tokens)
    return Group(
        f"0/{number}", 0, number, 0, token_ids, np.zeros(n * tokens, np.float32), np.full(n, tokens, np.int32),
        np.asarray(rewards, np.float64), np.zeros(n, bool),
    )  # fmt: skip


def expected_weights(sizes: list[int], p: list[float], objective: ObjectiveSpec) -> list[float]:
    """By prompt, E[estimated gradient] / gradient of p, over all outcomes of all groups, times the number of prompts.

    Prompt q is answered by a coin of its own with logit z_q, so that p_q = sigmoid(z_q). The prompts' outcomes are
    independent and their gradients separate, so each prompt's outcomes are enumerated beside one outcome of the others.
    """
    z = torch.tensor([np.log(x / (1 - x)) for x in p], dtype=torch.float64, requires_grad=True)
    result = []
    for q, n in enumerate(sizes):
        total = 0.0
        for outcome in itertools.product([0.0, 1.0], repeat=n):
            # The others' rewards differ among themselves, so that whatever is borrowed from them is really borrowed.
            rewards = [np.array(outcome) if i == q else np.arange(size) % 2.0 for i, size in enumerate(sizes)]
            groups = [group_of(r, i) for i, r in enumerate(rewards)]
            for group in groups:
                group.believed = 0.4
            batch = samples(groups, [[0]] * len(sizes), objective)
            prompt_of = torch.tensor([i for i, size in enumerate(sizes) for _ in range(size)])
            right = torch.tensor([float(sample.token_ids[-1]) for sample in batch], dtype=torch.float64)
            logprobs = torch.nn.functional.logsigmoid(z[prompt_of] * (2 * right - 1))
            advantages, weights = (torch.tensor([getattr(s, k) for s in batch]) for k in ("advantage", "weight"))
            loss = (token_losses(objective, logprobs, logprobs.detach(), advantages) * weights).sum()
            (gradient,) = torch.autograd.grad(-loss, z)
            wins = int(sum(outcome))
            total += p[q] ** wins * (1 - p[q]) ** (n - wins) * gradient[q].item()
        result.append(total / (p[q] * (1 - p[q])) * len(sizes))
    return result


def z_score_weight(n: int, p: float) -> float:
    mean = sum(comb(n, k) * p**k * (1 - p) ** (n - k) * sqrt(k * (n - k)) for k in range(n + 1))
    return sqrt(n * (n - 1)) * mean / (n**2 * p * (1 - p))


def best_weight(n: int, p: float) -> float:
    """The kept response is right unless all are wrong, and then none is kept: P(some right) / (n p)."""
    return (1 - (1 - p) ** n) / (n * p)


def pass_at_k_weight(n: int, p: float, k: int = 2) -> float:
    """From the printed advantages, response by response."""
    total = 0.0
    for right in range(1, n):
        wrong = n - right
        rate = 1 - comb(wrong, k) / comb(n, k)
        scale = sqrt(rate * (1 - rate))
        if scale:
            of_right, of_wrong = (1 - rate) / scale, (1 - rate - comb(wrong - 1, k - 1) / comb(n - 1, k - 1)) / scale
            total += comb(n, right) * p**right * (1 - p) ** wrong * (right * of_right / p - wrong * of_wrong / (1 - p))
    return total / n


CLOSED_FORMS: dict[str, Callable[[int, float], float]] = {
    "leave_one_out": lambda n, p: 1.0,
    "group_mean": lambda n, p: (n - 1) / n,
    "z_score": z_score_weight,
    "maxrl": lambda n, p: (1 - (1 - p) ** (n - 1)) / p,
    "raw": lambda n, p: 1.0,
    "best": best_weight,
    "pass_at_k": pass_at_k_weight,
    "history": lambda n, p: 1.0,
    "shrinkage": lambda n, p: 1.0,
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
@pytest.mark.parametrize("loss", ["rgra", "dr_grpo"])
@pytest.mark.parametrize(("n", "p"), [(2, 0.1), (3, 0.5), (4, 0.3), (6, 0.02)])
def test_the_expected_gradient_is_the_closed_form(name, loss, n, p):
    objective = ObjectiveSpec(
        name=loss, advantage=name, reduction="prompt_mean", pass_k=2 if name == "pass_at_k" else 4
    )
    expected = pytest.approx(CLOSED_FORMS[name](n, p), rel=1e-5)
    assert expected_weights([n], [p], objective) == [expected]
    assert prompt_weight(objective, n, p) == expected


@pytest.mark.parametrize("name", ["shrinkage", "history", "leave_one_out"])
def test_these_weigh_a_prompt_by_one_whatever_its_siblings_are(name):
    objective = ObjectiveSpec(advantage=name)
    assert expected_weights([2, 5, 3], [0.3, 0.1, 0.8], objective) == pytest.approx([1, 1, 1])


@pytest.mark.parametrize(("n", "p", "weight"), [(2, 0.02, 1.00), (4, 0.02, 2.94), (4, 0.1, 2.71), (4, 0.5, 1.75)])
def test_maxrl_weighs_prompts_as_published(n, p, weight):
    assert prompt_weight(ObjectiveSpec(name="maxrl"), n, p) == pytest.approx(weight, abs=0.005)


def test_history_gives_a_group_of_one_an_unbiased_gradient():
    assert expected_weights([1], [0.3], ObjectiveSpec(advantage="history")) == pytest.approx([1.0])


@pytest.mark.parametrize(
    ("n", "p", "weight"), [(2, 0.02, 0.71), (4, 0.02, 1.49), (2, 0.1, 0.71), (4, 0.1, 1.46), (4, 0.5, 1.40)]
)
def test_the_z_score_weighs_prompts_as_published(n, p, weight):
    assert expected_weights([n], [p], ObjectiveSpec(advantage="z_score")) == pytest.approx([weight], abs=0.005)


def test_the_worked_example_of_four_responses_at_three_tenths():
    names = [*NAMES, "maxrl"]
    values = {name: expected_weights([4], [0.3], ObjectiveSpec(advantage=name))[0] for name in names}
    assert values == pytest.approx(
        {"group_mean": 0.75, "leave_one_out": 1.0, "z_score": 1.416, "maxrl": 2.190}, abs=5e-4
    )


def test_leave_one_out_with_prompt_mean_weighs_prompts_equally_whatever_their_group_size():
    sizes, p = [2, 5, 3], [0.3, 0.1, 0.8]
    prompt_mean = ObjectiveSpec(advantage="leave_one_out", reduction="prompt_mean")
    assert expected_weights(sizes, p, prompt_mean) == pytest.approx([1, 1, 1])
    for reduction in ("sequence_mean", "token_mean"):
        flat = ObjectiveSpec(advantage="leave_one_out", reduction=reduction)
        assert expected_weights(sizes, p, flat) == pytest.approx([3 * n / sum(sizes) for n in sizes])


def test_the_other_estimators_weigh_a_larger_group_more_even_with_prompt_mean():
    for name in ("group_mean", "z_score"):
        small, large = expected_weights([2, 6], [0.3, 0.3], ObjectiveSpec(advantage=name))
        assert large > 1.5 * small


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reward", [0.0, 0.3, 1.0])
def test_a_group_of_one_has_advantage_zero(name, reward):
    assert ESTIMATORS[name](np.array([reward])).tolist() == [0.0]


@pytest.mark.parametrize(("name", "value"), [("leave_one_out", 1.0), ("group_mean", 0.5), ("z_score", 0.5**0.5)])
def test_a_pair_of_right_and_wrong_has_the_documented_advantages(name, value):
    assert ESTIMATORS[name](np.array([1.0, 0.0])) == pytest.approx([value, -value], rel=1e-5)


@given(rewards_of_a_group)
def test_leave_one_out_is_the_reward_minus_the_mean_of_the_others(rewards):
    found = ESTIMATORS["leave_one_out"](rewards)
    for i, advantage in enumerate(found):
        others = np.delete(rewards, i)
        assert advantage == pytest.approx(rewards[i] - others.mean() if len(others) else 0.0, abs=1e-12)


@given(rewards_of_a_group, st.sampled_from(NAMES), st.data())
def test_advantages_are_finite_sum_to_zero_and_follow_the_responses(rewards, name, data):
    found = ESTIMATORS[name](rewards)
    assert np.isfinite(found).all()
    assert found.sum() == pytest.approx(0, abs=1e-6)
    order = data.draw(st.permutations(range(len(rewards))))
    assert ESTIMATORS[name](rewards[order]) == pytest.approx(found[order], rel=1e-6, abs=1e-9)


@given(st.integers(1, 20), st.floats(0, 1), st.sampled_from(NAMES))
def test_equal_rewards_give_no_advantage(n, reward, name):
    """Exactly none, because the learner makes no step on a batch in which every advantage is zero."""
    assert not np.any(ESTIMATORS[name](np.full(n, reward)))


def test_advantages_of_pass_at_k_are_those_printed():
    """Three right of eight with k = 4: R = 1 - C(5, 4) / C(8, 4)."""
    rate = 1 - 5 / 70
    scale = sqrt(rate * (1 - rate))
    found = pass_at_k(np.array([1, 1, 1, 0, 0, 0, 0, 0], float), 4)
    assert found[:3] == pytest.approx([(1 - rate) / scale] * 3)
    assert found[3:] == pytest.approx([(1 - rate - comb(4, 3) / comb(7, 3)) / scale] * 5)
    assert found.sum() == pytest.approx(0)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    "groups", [[[0.0]], [[1.0]], [[0.0, 1.0]], [[1.0, 1.0], [0.0]], [[0.5], [0.0, 1.0], [0.0, 0.0, 0.0]]]
)
def test_every_estimator_is_finite_on_singletons_pairs_and_equal_rewards(name, groups):
    rewards = [np.array(r) for r in groups]
    found = advantages(ObjectiveSpec(advantage=name), rewards, [0.5] * len(rewards))
    assert [len(a) for a in found] == [len(r) for r in rewards]
    assert all(np.isfinite(a).all() for a in found)


PAIR = {
    "leave_one_out": [1, -1], "group_mean": [0.5, -0.5], "z_score": [0.5**0.5, -(0.5**0.5)], "maxrl": [1, -1],
    "raw": [1, 0], "best": [1, 0], "pass_at_k": [0, 0], "history": [0.6, -0.4], "batch_z": [1, -1],
    "shrinkage": [1, -1],
}  # fmt: skip
"""Of a right and a wrong response alone in the batch; pass@2 of the two is certain, and believed was 0.4."""


@pytest.mark.parametrize("name", EVERY)
def test_a_pair_has_the_documented_values(name):
    (found,) = advantages(
        ObjectiveSpec(advantage=name, **({"pass_k": 2} if name == "pass_at_k" else {})), [np.array([1.0, 0.0])], [0.4]
    )
    assert found == pytest.approx(PAIR[name], rel=1e-4)


def test_batch_z_divides_by_the_deviation_of_all_rewards():
    rewards = [np.array([1.0, 0.0]), np.array([1.0, 1.0, 0.0])]
    found = advantages(ObjectiveSpec(advantage="batch_z"), rewards, [0.5, 0.5])
    deviation = np.array([1, 0, 1, 1, 0]).std()
    assert np.concatenate(found) == pytest.approx(np.array([1 / 2, -1 / 2, 1 / 3, 1 / 3, -2 / 3]) / deviation, rel=1e-4)


SINGLETON = {"raw": 0.8, "best": 1.0, "history": 0.3, "shrinkage": 0.8 - 0.25}
"""Of reward 0.8, believed 0.5, beside a group with mean 0.25; all other estimators give zero."""


@pytest.mark.parametrize("name", EVERY)
def test_a_singleton_has_the_documented_value(name):
    single, _ = advantages(ObjectiveSpec(advantage=name), [np.array([0.8]), np.array([0.0, 0.5])], [0.5, 0.5])
    assert single == pytest.approx([SINGLETON.get(name, 0.0)])


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=5), min_size=1, max_size=6), st.data())
def test_batch_estimators_follow_their_groups_into_any_order(groups, data):
    rewards = [np.array(r) for r in groups]
    believed = [0.1 * i for i in range(len(groups))]
    order = data.draw(st.permutations(range(len(groups))))
    for name in ("batch_z", "shrinkage", "history"):
        ours = advantages(ObjectiveSpec(advantage=name), rewards, believed)
        theirs = advantages(ObjectiveSpec(advantage=name), [rewards[i] for i in order], [believed[i] for i in order])
        for i, found in zip(order, theirs, strict=True):
            assert found == pytest.approx(ours[i], abs=1e-9)


def test_shrinkage_trusts_other_prompts_where_prompts_are_alike_and_siblings_where_they_differ():
    noisy = [np.array([0.0, 1.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0, 1.0]), np.array([1.0, 0.0])]
    assert shrinkage(noisy)[2] == pytest.approx([0.5, -0.5])
    apart = [np.ones(4), np.zeros(4), np.array([1.0, 0.0])]
    assert shrinkage(apart)[2] == pytest.approx([1.0, -1.0])


def test_positive_only_has_nothing_from_responses_below_their_baseline():
    """Fidelity test 2: apart from a KL term, whose loss has no advantage in it."""
    rewards = [np.array([1.0, 0.0, 0.0, 1.0]), np.array([0.2, 0.9])]
    found = advantages(ObjectiveSpec(name="grpo_pos"), rewards, [0.5, 0.5])
    whole = advantages(ObjectiveSpec(name="grpo"), rewards, [0.5, 0.5])
    for kept, every in zip(found, whole, strict=True):
        assert kept.tolist() == np.maximum(every, 0).tolist()
        assert (every < 0).any()


def test_raft_keeps_the_best_response_of_a_group_alone_and_none_that_was_not_rewarded():
    found = advantages(ObjectiveSpec(name="raft"), [np.array([0.0, 1.0, 1.0]), np.zeros(3)], [0.5, 0.5])
    assert [a.tolist() for a in found] == [[0, 1, 0], [0, 0, 0]]


def test_history_subtracts_what_was_believed_before():
    assert history([np.array([1.0, 0.0])], [0.3])[0] == pytest.approx([0.7, -0.3])


def test_a_clip_cuts_both_sides_of_an_advantage():
    objective = ObjectiveSpec(name="cero_paper", advantage_clip=0.5)
    (found,) = advantages(objective, [np.array([1.0, 0.0, 0.0])], [0.5])
    assert found.tolist() == [0.5, -0.5, -0.5]


def test_overlong_responses_lose_linearly_up_to_the_whole_penalty():
    objective = ObjectiveSpec(overlong_share=0.2, overlong_penalty=1.0)
    found = shaped(np.ones(4), np.array([50, 80, 90, 100]), objective, longest=100)
    assert found == pytest.approx([1.0, 1.0, 0.5, 0.0])
