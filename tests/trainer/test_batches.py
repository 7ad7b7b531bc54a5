"""Cutting a batch changes nothing but the time that it takes."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.batches import PASS_TOKENS, Sample, collate, group_advantages, minibatches, samples, split
from trainer.objective import ObjectiveSpec
from trainer.objectives import batch_losses
from trainer.policy import Policy
from trainer.schedule import learning_rate
from trainer.types import Group

VOCABULARY = 11
lengths_of_rows = st.lists(st.integers(1, 60), max_size=40)


def group_of(lengths: list[int], number: int) -> Group:
    rng = np.random.default_rng(number)
    n, tokens = len(lengths), sum(lengths)
    return Group(
        f"0/{number}", 0, number, 0, rng.integers(0, VOCABULARY, tokens, np.int32),
        rng.normal(-1, 0.2, tokens).astype(np.float32), np.array(lengths, np.int32), rng.random(n), np.zeros(n, bool),
    )  # fmt: skip


def prompt_of(number: int) -> list[int]:
    return [1 + number % 5] * (1 + number % 3)


GROUPS = [group_of(lengths, i) for i, lengths in enumerate([[3, 1, 5, 2], [4], [6, 6], [1, 2, 3, 4, 5, 6]])]
"""Unequal sizes and lengths, one of them a singleton."""


# split


@given(lengths_of_rows, st.integers(1, 200), st.integers(1, 4))
def test_split_gives_every_row_once_and_every_rank_as_many_micro_batches(lengths, budget, ranks):
    shares = split(lengths, budget, ranks)
    assert len(shares) == ranks
    assert sorted(i for share in shares for rows in share for i in rows) == list(range(len(lengths)))
    assert len({len(share) for share in shares}) == 1
    for share in shares:
        filled = [bool(rows) for rows in share]
        assert filled == sorted(filled, reverse=True), "empty micro-batches come last"


@given(lengths_of_rows, st.integers(1, 200), st.integers(1, 4))
def test_padded_tokens_stay_within_the_budget_unless_one_row_is_longer(lengths, budget, ranks):
    for rows in (rows for share in split(lengths, budget, ranks) for rows in share if rows):
        assert len(rows) * max(lengths[i] for i in rows) <= budget or len(rows) == 1


@given(lengths_of_rows, st.integers(1, 200), st.integers(1, 4))
def test_the_ranks_differ_by_the_longest_row_at_most_in_tokens(lengths, budget, ranks):
    shares = [[i for rows in share for i in rows] for share in split(lengths, budget, ranks)]
    tokens = [sum(lengths[i] for i in share) for share in shares]
    assert max(tokens) - min(tokens) <= max(lengths, default=0)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=9), st.integers(1, 900))
def test_no_other_cut_of_the_sorted_rows_costs_less(lengths, budget):
    def cost(batches: list[list[int]]) -> float:
        padded = [(len(rows), len(rows) * max(rows)) for rows in batches]
        return sum(p + PASS_TOKENS if p <= budget or n == 1 else float("inf") for n, p in padded)

    (share,) = split(lengths, budget, 1)
    rows = sorted(lengths, reverse=True)
    every = itertools.chain.from_iterable(itertools.combinations(range(1, len(rows)), k) for k in range(len(rows)))
    cuts = [[rows[a:b] for a, b in itertools.pairwise([0, *inner, len(rows)])] for inner in every]
    assert cost([[lengths[i] for i in batch] for batch in share]) == min(map(cost, cuts))


def test_a_heavy_tail_is_not_padded_to_its_longest_row():
    lengths = [500, 90, 60, *[15] * 61]
    padded = sum(
        len(rows) * max(lengths[i] for i in rows) for share in split(lengths, 16384, 2) for rows in share if rows
    )
    assert padded < 1.2 * sum(lengths)


# collate


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), min_size=1, max_size=8))
def test_collated_rows_can_be_read_back(shapes):
    rng = np.random.default_rng(len(shapes))
    rows = [
        Sample(
            rng.integers(3, VOCABULARY, head + tail),
            head,
            rng.normal(size=tail).astype(np.float32),
            rng.normal(),
            i + 1.0,
        )
        for i, (head, tail) in enumerate(shapes)
    ]
    micro = collate(rows, pad_id=0)
    assert micro.token_ids.shape == (len(rows), max(map(sum, shapes)))
    assert (micro.token_ids.dtype, micro.targets.dtype) == (torch.int64, torch.bool)
    predicted = micro.token_ids[:, 1:][micro.targets]
    assert predicted.tolist() == [int(t) for row in rows for t in row.token_ids[row.prompt_length :]]
    assert micro.logprobs.tolist() == [x for row in rows for x in row.logprobs.tolist()]
    for row, line in zip(rows, micro.token_ids.tolist(), strict=True):
        assert line[: len(row.token_ids)] == row.token_ids.tolist()
        assert set(line[len(row.token_ids) :]) <= {0}
    for name in ("advantage", "weight"):
        flat = [np.float32(getattr(row, name)) for row in rows for _ in row.logprobs]
        assert getattr(micro, name + "s").tolist() == flat


def test_no_rows_make_one_padding_row_of_weight_zero(policy):
    micro = collate([], pad_id=3)
    assert set(micro.token_ids.flatten().tolist()) == {3}
    assert micro.weights.tolist() == micro.advantages.tolist() == [0.0]
    assert int(micro.targets.sum()) == len(micro.weights) == len(micro.logprobs)
    assert gradient(policy, [[]], [], ObjectiveSpec()).abs().max() == 0


# minibatches


@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 9))
def test_minibatches_cover_all_groups_none_empty_and_about_equal(groups, count, seed):
    parts = minibatches([GROUPS[0]] * groups, count, seed=[seed])
    assert sorted(i for part in parts for i in part) == list(range(groups))
    assert len(parts) == min(count, groups)
    sizes = [len(part) for part in parts]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    assert parts == minibatches([GROUPS[0]] * groups, count, seed=[seed])


def test_a_minibatch_is_a_sample_of_the_epoch_and_not_its_first_groups():
    """Groups come in the allocator's order of priority."""
    means = [np.mean(minibatches([GROUPS[0]] * 40, 4, seed=[seed])[0]) for seed in range(100)]
    assert np.mean(means) == pytest.approx(19.5, abs=2)
    assert minibatches([GROUPS[0]] * 5, 1, seed=[3]) == [[0, 1, 2, 3, 4]]


# Advantages of a batch.


def test_what_the_objective_takes_off_a_reward_comes_before_the_advantage():
    group = group_of([10, 20], 0)
    group.rewards[:] = 1.0
    group.believed = 0.0
    reference = group.logprobs - 0.5
    shaped = ObjectiveSpec(advantage="history", overlong_share=0.5, overlong_penalty=1.0)
    assert group_advantages([group], shaped, longest=20)[0] == pytest.approx([1.0, 0.0])
    divergent = ObjectiveSpec(advantage="history", kl="k1_reward", kl_coefficient=0.01)
    found = group_advantages([group], divergent, longest=20, reference=[reference])[0]
    assert found == pytest.approx([1 - 0.01 * 0.5 * 10, 1 - 0.01 * 0.5 * 20], rel=1e-5)


# The whole way from groups to a gradient.


@pytest.fixture(scope="module")
def policy() -> Policy:
    """A causal language model of the architecture that `tiny` has."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=64,
    )  # fmt: skip
    return Policy(Qwen3ForCausalLM(config).double(), temperature=0.7)


def gradient(policy: Policy, cut: list[list[int]], batch: list[Sample], objective: ObjectiveSpec) -> torch.Tensor:
    """Flat gradient of the batch's loss, accumulated over micro-batches of these rows."""
    policy.zero_grad()
    for rows in cut:
        micro = collate([batch[i] for i in rows], pad_id=0)
        logprobs, entropy = policy(micro.token_ids, micro.targets)
        (batch_losses(objective, False, logprobs, entropy, micro) * micro.weights).sum().backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters()])


def whole(policy: Policy, objective: ObjectiveSpec, groups: list[Group]) -> torch.Tensor:
    """The gradient without any cutting."""
    batch = samples(groups, [prompt_of(g.prompt) for g in groups], objective)
    return gradient(policy, [list(range(len(batch)))], batch, objective)


CUT = [
    *({"reduction": reduction} for reduction in ("prompt_mean", "sequence_mean", "token_mean", "fixed_length")),
    {"name": "grpo"}, {"name": "dapo"}, {"name": "gspo", "clip_high": 1.0, "clip_low": 1.0}, {"name": "cispo"},
    {"mismatch": "tis", "mismatch_level": "sequence", "mismatch_high": 1e6}, {"entropy_coefficient": 0.1},
]  # fmt: skip
"""gspo and a mismatch by sequence are the ones that look at whole responses."""


@pytest.mark.parametrize("fields", CUT, ids=str)
def test_the_gradient_does_not_depend_on_micro_batches_ranks_or_order(policy, fields):
    objective = ObjectiveSpec(**fields)
    expected = whole(policy, objective, GROUPS)
    assert expected.abs().max() > 1e-4
    batch = samples(GROUPS, [prompt_of(g.prompt) for g in GROUPS], objective)
    lengths = [len(sample.token_ids) for sample in batch]
    for budget, ranks in [(1, 1), (20, 1), (20, 2), (1000, 3)]:
        parts = [gradient(policy, share, batch, objective) for share in split(lengths, budget, ranks)]
        torch.testing.assert_close(sum(parts), expected, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(whole(policy, objective, GROUPS[::-1]), expected, rtol=1e-5, atol=1e-9)


def test_positive_only_has_no_gradient_from_below_the_baseline_but_that_of_the_divergence(policy):
    """Fidelity test 2, from groups to gradient: the response that failed alone, its siblings' tokens left out."""
    group = group_of([4, 3], 2)
    group.rewards[:] = [1.0, 0.0]

    def of_the_failure(**fields) -> torch.Tensor:
        objective = ObjectiveSpec(name="grpo_pos", **fields)
        reference = [group.logprobs - 0.3]
        batch = samples([group], [[1, 2]], objective, reference=reference)
        return gradient(policy, [[1]], batch, objective)

    assert of_the_failure(kl="none").abs().max() == 0
    assert of_the_failure(kl="k3", kl_coefficient=0.1).abs().max() > 1e-5


def test_a_group_without_differences_moves_nothing_but_counts_among_the_prompts(policy):
    same = group_of([3, 2], 7)
    same.rewards[:] = 0.5
    expected = whole(policy, ObjectiveSpec(), GROUPS) * len(GROUPS) / (len(GROUPS) + 1)
    torch.testing.assert_close(whole(policy, ObjectiveSpec(), [*GROUPS, same]), expected, rtol=1e-5, atol=1e-9)


def test_padding_on_the_right_cannot_be_seen(policy):
    (short,), long = samples([GROUPS[1]], [[1, 2]], ObjectiveSpec()), samples([GROUPS[3]], [[1]], ObjectiveSpec())
    alone, beside = collate([short], 0), collate([short, *long], 9)
    assert beside.token_ids.shape[1] > alone.token_ids.shape[1]
    found = [policy(micro.token_ids, micro.targets) for micro in (alone, beside)]
    for single, mixed in zip(*found, strict=True):
        torch.testing.assert_close(mixed[: len(single)], single)


def test_log_probabilities_are_those_of_the_temperature_that_sampled(policy):
    micro = collate(samples(GROUPS[:1], [[1, 2, 3]], ObjectiveSpec()), 0)
    logits = policy.model(input_ids=micro.token_ids).logits[:, :-1][micro.targets].float()
    taken = micro.token_ids[:, 1:][micro.targets]
    for temperature in (None, 1.0):
        expected = torch.distributions.Categorical(logits=logits / (temperature or 0.7))
        logprobs, entropy = policy(micro.token_ids, micro.targets, temperature)
        torch.testing.assert_close(logprobs, expected.log_prob(taken))
        torch.testing.assert_close(entropy, expected.entropy())


# Learning rates.


@given(st.sampled_from(["constant", "linear", "cosine"]), st.integers(1, 300), st.integers(0, 50), st.floats(0, 1))
def test_the_learning_rate_rises_to_its_peak_and_never_leaves_its_bounds(kind, total, warmup, floor):
    rates = [learning_rate(3.0, kind, step, total, warmup, floor) for step in range(max(total, warmup + 1) + 5)]
    assert all(3.0 * min(floor, 1 / (warmup or 1)) - 1e-9 <= rate <= 3.0 + 1e-9 for rate in rates)
    assert rates[:warmup] == pytest.approx([3.0 * (i + 1) / warmup for i in range(warmup)])
    assert rates[warmup] == pytest.approx(3.0)
    after = rates[warmup:]
    assert all(a >= b - 1e-9 for a, b in itertools.pairwise(after))


@pytest.mark.parametrize(
    ("kind", "middle", "end"), [("constant", 1.0, 1.0), ("linear", 0.55, 0.1), ("cosine", 0.55, 0.1)]
)
def test_the_learning_rate_has_its_named_shape(kind, middle, end):
    rates = [learning_rate(1.0, kind, step, 110, 10, floor=0.1) for step in (10, 60, 110, 500)]
    assert rates == pytest.approx([1.0, middle, end, end])
    quarter = learning_rate(1.0, kind, 35, 110, 10, floor=0.1)
    assert quarter == pytest.approx({"constant": 1.0, "linear": 0.775, "cosine": 0.1 + 0.9 * (2 + 2**0.5) / 4}[kind])
