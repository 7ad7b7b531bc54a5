"""pass@k against counting, what a summary adds up, intervals, the language loss and the verdict."""

import itertools

import numpy as np
import pytest

from trainer.evaluation import pass_at_k, summarize, verdict, with_language_loss, worked_answers
from trainer.models import character_tokenizer
from trainer.types import Group, Prompt


def group_of(rewards: list[float], prompt: int = 0, lengths: list[int] | None = None) -> Group:
    lengths = lengths or [1] * len(rewards)
    return Group(
        f"0/{prompt}", 0, prompt, 0, np.zeros(sum(lengths), np.int32), np.zeros(sum(lengths), np.float32),
        np.array(lengths, np.int32), np.array(rewards), np.zeros(len(rewards), bool),
    )  # fmt: skip


def prompt_of(family: str, answer: str = "a", number: int = 0) -> Prompt:
    return Prompt(f"{family}-{number}", family, "q", answer, (1,), 0)


def evaluation_of(right: list[int], samples: int, k: int, first: int = 0) -> dict:
    """Of prompts numbered from `first`, with so many right responses each."""
    prompts = [prompt_of("x", number=first + i) for i in range(len(right))]
    groups = [group_of([1] * c + [0] * (samples - c), i) for i, c in enumerate(right)]
    return summarize(groups, prompts, [1, k], 1.0)


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
    groups = [group_of([1, 0, 0], 0), group_of([1, 1, 0], 1, [3, 5, 1]), group_of([0, 0, 0], 2)]
    groups[1].truncated[:] = [False, True, True]
    found = summarize(groups, PROMPTS, [1, 2, 3], 1.0)
    assert found["pass@1"] == pytest.approx((1 / 3 + 2 / 3) / 3)
    assert found["pass@2"] == pytest.approx((2 / 3 + 1) / 3)
    assert found["pass@3"] == found["pass@k"] == pytest.approx(2 / 3)
    assert found["pass@1_stderr"] == pytest.approx(np.std([1 / 3, 2 / 3, 0], ddof=1) / 3**0.5)
    assert (found["prompts"], found["k"]) == (3, 3)
    assert found["response_tokens_mean"] == pytest.approx(15 / 9)
    assert found["truncated_share"] == pytest.approx(2 / 9)
    assert list(found["families"]) == ["easy", "hard"]
    assert found["families"]["easy"]["pass@1"] == pytest.approx(0.5)
    names = ("pass@1", "pass@1_stderr", "pass@2", "pass@3", "pass@k")
    assert found["families"]["hard"] == dict.fromkeys(names, 0.0)
    assert (found["counts"]["samples"], found["counts"]["right"]) == ([3, 3, 3], [1, 2, 0])
    assert found["ci"].keys() == {"pass@1", "pass@2", "pass@3", "pass@k"}
    assert all(low <= found[name] <= high for name, (low, high) in found["ci"].items())


def test_a_partial_reward_counts_for_pass_at_1_and_not_for_pass_at_k():
    found = summarize([group_of([0.9, 0.5])], PROMPTS, [1], 1.0)
    assert (found["pass@1"], found["pass@k"]) == (pytest.approx(0.7), 0.0)


def test_the_order_of_groups_and_samples_does_not_matter():
    groups = [group_of([1, 0, 0], 0), group_of([1, 1, 0], 2)]
    turned = [group_of([0, 1, 1], 2), group_of([0, 0, 1], 0)]
    assert summarize(groups, PROMPTS, [2], 1.0) == summarize(turned, PROMPTS, [2], 1.0)


def test_a_k_above_the_samples_is_refused_and_so_is_an_evaluation_of_nothing():
    with pytest.raises(ValueError, match="pass@3 cannot be estimated from 2 samples"):
        summarize([group_of([1, 0])], PROMPTS, [1, 3], 1.0)
    with pytest.raises(ValueError, match="without groups"):
        summarize([], PROMPTS, [1], 1.0)


def test_entropy_is_what_the_sampled_tokens_surprise_and_is_left_out_at_other_temperatures():
    group = group_of([0, 0], 0, [1, 3])
    group.logprobs[:] = np.log([0.5, 0.25, 0.25, 1.0])
    assert summarize([group], PROMPTS, [1], 1.0)["entropy"] == pytest.approx(5 * np.log(2) / 4)
    assert summarize([group], PROMPTS, [1], 0.6)["entropy"] is None
    group.logprobs = np.zeros(0, np.float32)  # as an engine that was not asked for them gives them
    assert summarize([group], PROMPTS, [1], 1.0)["entropy"] is None


def test_distinct_solutions_are_right_and_differ_in_their_tokens():
    group = group_of([1, 1, 1, 0], 0, [2, 2, 1, 2])
    group.token_ids[:] = [7, 8, 7, 8, 7, 9, 9]
    assert summarize([group, group_of([0] * 4, 1)], PROMPTS, [1], 1.0)["distinct_correct_mean"] == (2 + 0) / 2


def test_intervals_hold_what_they_estimate_about_as_often_as_they_say():
    """40 prompts with success rates uniform in [0, 1], so that the truth is 1/2 for pass@1 and 1 - 1/5 for pass@4."""
    rng = np.random.default_rng(0)
    held = {"pass@1": 0, "pass@4": 0}
    for _ in range(200):
        found = evaluation_of(rng.binomial(4, rng.random(40)).tolist(), samples=4, k=4)
        for name, truth in (("pass@1", 0.5), ("pass@4", 0.8)):
            low, high = found["ci"][name]
            held[name] += low <= truth <= high
    assert all(180 <= count <= 199 for count in held.values()), held


def test_one_prompt_has_no_interval():
    assert evaluation_of([1], samples=2, k=2)["ci"] is None


def test_the_examples_of_the_language_loss_are_prompt_answer_and_end():
    tokenizer = character_tokenizer(context_tokens=64)
    prompts = [prompt_of("easy", "42"), prompt_of("none", ""), prompt_of("hard", "7")]
    found = worked_answers(prompts, tokenizer)
    assert [(family, start) for family, _, start in found] == [("easy", 1), ("hard", 1)]
    ids = found[0][1]
    assert (ids[0], tokenizer.decode(ids[1:-1]), ids[-1]) == (1, "42", tokenizer.eos_token_id)
    assert worked_answers(prompts[1:2], tokenizer) == []


def test_the_language_loss_is_per_token_within_a_family_and_then_a_mean_over_families():
    base = summarize([group_of([1, 0], 0), group_of([1, 0], 2)], PROMPTS, [1], 1.0)
    parts = [{"easy": [3.0, 2.0], "corpus only": [1.0, 4.0]}, {"easy": [1.0, 6.0]}, {}]
    found = with_language_loss(base, parts)
    assert found["families"]["easy"]["language_loss"] == 0.5
    assert found["families"]["easy"]["pass@1"] == 0.5
    assert found["families"]["corpus only"] == {"language_loss": 0.25}
    assert "language_loss" not in found["families"]["hard"]
    assert found["language_loss"] == 0.375
    assert with_language_loss(base, [{}])["language_loss"] is None


@pytest.mark.parametrize(
    ("base", "after", "expected"),
    [
        ([1, 0] * 20, [4, 2] * 20, "expansion"),
        ([1, 1] * 20, [8, 0] * 20, "sharpening"),
        ([4, 4] * 20, [1, 1] * 20, "neither"),
        ([4, 4] * 20, [8, 0] * 20, "undecided"),  # pass@1 is the same
        ([1, 1] * 20, [4, 4] * 20, "undecided"),  # pass@8 was 1 and stays 1
        ([1, 0, 3], [0, 1, 4], "undecided"),
    ],
)
def test_the_verdict_by_hand(base, after, expected):
    found = verdict(evaluation_of(base, 8, 8), evaluation_of(after, 8, 8))
    assert (found["verdict"], found["paired"]) == (expected, True)
    assert found["difference"]["pass@1"] == pytest.approx((np.mean(after) - np.mean(base)) / 8)
    assert found["difference"]["pass@8"] == pytest.approx(np.mean(np.array(after) > 0) - np.mean(np.array(base) > 0))


def test_a_difference_by_prompt_is_sharper_than_one_of_two_sets_of_prompts():
    """Every prompt gains one response of eight: by prompt that has no spread at all."""
    rates = [0, 1, 2, 3, 4, 5, 6, 7] * 3
    base, better = evaluation_of(rates, 8, 8), [rate + 1 for rate in rates]
    paired = verdict(base, evaluation_of(better, 8, 8))
    apart = verdict(base, evaluation_of(better, 8, 8, first=100))
    assert paired["ci"]["pass@1"] == pytest.approx([1 / 8, 1 / 8])
    assert not apart["paired"]
    assert apart["ci"]["pass@1"][0] < 0 < 1 / 8 < apart["ci"]["pass@1"][1]


def test_without_a_k_above_1_or_a_second_prompt_there_is_no_verdict():
    assert verdict(evaluation_of([1, 2], 4, 1), evaluation_of([3, 4], 4, 4)) is None
    assert verdict(evaluation_of([1], 4, 4), evaluation_of([3], 4, 4)) is None
