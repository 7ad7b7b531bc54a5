"""Policy losses: when two of them are the same, and how tokens are weighted."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.objectives import token_losses, token_weights
from trainer.spec import ObjectiveSpec

RGRA, GRPO = ObjectiveSpec(name="rgra"), ObjectiveSpec(name="grpo")
REDUCTIONS = ["prompt_mean", "sequence_mean", "token_mean"]
lengths_of_groups = st.lists(
    st.lists(st.integers(1, 50), min_size=1, max_size=6).map(lambda n: np.array(n, np.int32)), min_size=1, max_size=8
)


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of a policy with 5 states and 7 actions; states visited and actions taken by 40 tokens; advantages."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    taken = torch.stack([torch.randint(0, n, (40,), generator=generator) for n in (5, 7)])
    return logits, taken, torch.randn(40, generator=generator, dtype=torch.float64)


def logprobs_of(logits: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(logits, -1)[taken[0], taken[1]]


def gradient(objective: ObjectiveSpec, logits: torch.Tensor, old: torch.Tensor, taken: torch.Tensor, a: torch.Tensor):
    """Of the mean loss, at `logits`, for tokens sampled at `old`."""
    logits = logits.clone().requires_grad_()
    loss = token_losses(objective, logprobs_of(logits, taken), logprobs_of(old, taken), a).mean()
    return torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize("seed", range(5))
def test_rgra_and_grpo_have_the_same_gradient_at_ratio_one_and_not_after_a_step(seed):
    old, taken, advantages = batch(seed)
    first = [gradient(objective, old, old, taken, advantages) for objective in (RGRA, GRPO)]
    torch.testing.assert_close(first[0], first[1], rtol=1e-12, atol=1e-14)
    assert first[0].abs().max() > 1e-3
    new = old - 3 * first[0]
    second = [gradient(objective, new, old, taken, advantages) for objective in (RGRA, GRPO)]
    assert (second[0] - second[1]).abs().max() > 1e-3


def test_a_step_along_either_gradient_raises_the_chance_of_what_paid():
    old, taken, advantages = batch(0)
    for objective in (RGRA, GRPO):
        new = old - 0.1 * gradient(objective, old, old, taken, advantages)
        gain = (advantages * (logprobs_of(new, taken) - logprobs_of(old, taken))).mean()
        assert gain > 0


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [
        (1.0, 2.0, -2.0),
        (1.29, 2.0, -2.0),
        (1.31, 2.0, 0.0),  # has risen enough
        (0.5, 2.0, -2.0),  # has fallen although it paid
        (1.5, -2.0, 2.0),  # has risen although it cost
        (0.91, -2.0, 2.0),
        (0.89, -2.0, 0.0),  # has fallen enough
    ],
)
def test_grpo_stops_pushing_outside_its_own_side_of_the_clip(ratio, advantage, slope):
    objective = ObjectiveSpec(name="grpo", clip_low=0.1, clip_high=0.3)
    rho = torch.tensor([ratio], dtype=torch.float64, requires_grad=True)
    loss = token_losses(objective, rho.log(), torch.zeros(1, dtype=torch.float64), torch.tensor([advantage])).sum()
    assert torch.autograd.grad(loss, rho)[0].item() == pytest.approx(slope)


def test_rgra_has_no_use_for_the_old_policy():
    old, taken, advantages = batch(1)
    other = batch(2)[0]
    assert torch.equal(gradient(RGRA, old, old, taken, advantages), gradient(RGRA, old, other, taken, advantages))


@given(lengths_of_groups, st.sampled_from(REDUCTIONS))
def test_the_weights_of_all_tokens_add_up_to_one(lengths, reduction):
    weights = token_weights(lengths, reduction)
    assert [len(w) for w in weights] == [len(n) for n in lengths]
    assert sum((w * n).sum() for w, n in zip(weights, lengths, strict=True)) == pytest.approx(1)


@given(lengths_of_groups)
def test_each_reduction_counts_what_it_is_named_after_equally(lengths):
    total = {name: [w * n for w, n in zip(token_weights(lengths, name), lengths, strict=True)] for name in REDUCTIONS}
    responses = sum(map(len, lengths))
    assert [group.sum() for group in total["prompt_mean"]] == pytest.approx([1 / len(lengths)] * len(lengths))
    assert np.concatenate(total["sequence_mean"]) == pytest.approx(np.full(responses, 1 / responses))
    per_token = np.concatenate(token_weights(lengths, "token_mean"))
    assert np.ptp(per_token) == 0
    for group in token_weights(lengths, "prompt_mean"):
        assert np.ptp(group) == 0


@given(lengths_of_groups, st.sampled_from(REDUCTIONS), st.data())
def test_weights_follow_their_groups_into_any_order(lengths, reduction, data):
    order = data.draw(st.permutations(range(len(lengths))))
    ours = token_weights(lengths, reduction)
    theirs = token_weights([lengths[i] for i in order], reduction)
    for i, weights in zip(order, theirs, strict=True):
        assert weights == pytest.approx(ours[i])
