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

from trainer.advantages import ESTIMATORS
from trainer.batches import samples
from trainer.objectives import token_losses
from trainer.spec import ObjectiveSpec
from trainer.types import Group

NAMES = sorted(ESTIMATORS)
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
            rewards = [np.array(outcome) if i == q else np.zeros(size) for i, size in enumerate(sizes)]
            groups = [group_of(r, i) for i, r in enumerate(rewards)]
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


CLOSED_FORMS: dict[str, Callable[[int, float], float]] = {
    "leave_one_out": lambda n, p: 1.0,
    "group_mean": lambda n, p: (n - 1) / n,
    "z_score": z_score_weight,
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("loss", ["rgra", "grpo"])
@pytest.mark.parametrize(("n", "p"), [(2, 0.1), (3, 0.5), (4, 0.3), (6, 0.02)])
def test_the_expected_gradient_is_the_closed_form(name, loss, n, p):
    found = expected_weights([n], [p], ObjectiveSpec(name=loss, advantage=name))
    assert found == pytest.approx([CLOSED_FORMS[name](n, p)], rel=1e-5)


@pytest.mark.parametrize(
    ("n", "p", "weight"), [(2, 0.02, 0.71), (4, 0.02, 1.49), (2, 0.1, 0.71), (4, 0.1, 1.46), (4, 0.5, 1.40)]
)
def test_the_z_score_weighs_prompts_as_published(n, p, weight):
    assert expected_weights([n], [p], ObjectiveSpec(advantage="z_score")) == pytest.approx([weight], abs=0.005)


def test_the_worked_example_of_four_responses_at_three_tenths():
    values = {name: expected_weights([4], [0.3], ObjectiveSpec(advantage=name))[0] for name in NAMES}
    assert values == pytest.approx({"group_mean": 0.75, "leave_one_out": 1.0, "z_score": 1.416}, abs=5e-4)


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
