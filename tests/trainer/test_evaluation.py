"""pass@k against counting, and what a summary adds up."""

import itertools

import numpy as np
import pytest

from trainer.evaluation import pass_at_k, summarize
from trainer.types import Group, Prompt


def group_of(rewards: list[float], prompt: int = 0, lengths: list[int] | None = None) -> Group:
    lengths = lengths or [1] * len(rewards)
    return Group(
        f"0/{prompt}", 0, prompt, 0, np.zeros(sum(lengths), np.int32), np.zeros(sum(lengths), np.float32),
        np.array(lengths, np.int32), np.array(rewards), np.zeros(len(rewards), bool),
    )  # fmt: skip


def prompt_of(family: str) -> Prompt:
    return Prompt(family, family, "q", "a", (1,), 0)


PROMPTS = [prompt_of("easy"), prompt_of("easy"), prompt_of("hard")]


@pytest.mark.parametrize("n", range(1, 7))
def test_pass_at_k_is_the_share_of_draws_with_a_right_sample(n):
    for correct, k in itertools.product(range(n + 1), range(1, n + 1)):
        draws = list(itertools.combinations([True] * correct + [False] * (n - correct), k))
        assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_is_unbiased_over_what_could_have_been_sampled():
    n, k, p = 5, 3, 0.3
    expected = 1 - (1 - p) ** k
    outcomes = itertools.product([0, 1], repeat=n)
    mean = sum(p ** sum(o) * (1 - p) ** (n - sum(o)) * pass_at_k(n, sum(o), k) for o in outcomes)
    assert mean == pytest.approx(expected)


@pytest.mark.parametrize(("n", "k"), [(4, 5), (0, 1), (4, 0), (4, -1)])
def test_a_k_that_the_samples_cannot_estimate_is_refused(n, k):
    with pytest.raises(ValueError, match=f"pass@{k} cannot be estimated from {n} samples"):
        pass_at_k(n, 0, k)


def test_large_counts_lose_nothing():
    assert pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5)
    assert pass_at_k(10_000, 10_000, 1) == 1.0
    assert pass_at_k(10_000, 0, 10_000) == 0.0


def test_a_summary_averages_over_prompts_and_by_family():
    groups = [group_of([1, 0], 0), group_of([1, 1], 1, [3, 5]), group_of([0, 0], 2)]
    found = summarize(groups, PROMPTS, k=2)
    assert found["pass@1"] == pytest.approx(0.5)
    assert found["pass@k"] == pytest.approx(2 / 3)
    assert found["pass@1_stderr"] == pytest.approx(np.std([0.5, 1, 0], ddof=1) / 3**0.5)
    assert (found["prompts"], found["k"]) == (3, 2)
    assert found["response_tokens_mean"] == pytest.approx(12 / 6)
    assert list(found["families"]) == ["easy", "hard"]
    assert found["families"]["easy"]["pass@1"] == pytest.approx(0.75)
    assert found["families"]["hard"] == {"pass@1": 0.0, "pass@1_stderr": 0.0, "pass@k": 0.0}


def test_a_partial_reward_counts_for_pass_at_1_and_not_for_pass_at_k():
    found = summarize([group_of([0.9, 0.5])], PROMPTS, k=1)
    assert (found["pass@1"], found["pass@k"]) == (pytest.approx(0.7), 0.0)


def test_the_order_of_groups_and_samples_does_not_matter():
    groups = [group_of([1, 0, 0], 0), group_of([1, 1, 0], 2)]
    turned = [group_of([0, 1, 1], 2), group_of([0, 0, 1], 0)]
    assert summarize(groups, PROMPTS, 2) == summarize(turned, PROMPTS, 2)
