"""Policy losses: when two of them are the same, and how tokens are weighted."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.batches import MicroBatch
from trainer.objective import PRESETS, ObjectiveSpec
from trainer.objectives import batch_losses, kl_losses, mismatch_weights, token_losses, token_weights

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
    rows = torch.arange(len(a)) // 4
    loss = token_losses(objective, logprobs_of(logits, taken), logprobs_of(old, taken), a, rows).mean()
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
    fixed = token_weights(lengths, "fixed_length", longest=50)
    assert np.concatenate(fixed) == pytest.approx(np.full(sum(map(len, lengths)), 1 / (50 * sum(map(len, lengths)))))
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


RATIOS = ["none", "token_clip", "dual_clip", "gspo", "cispo"]


def with_ratio(ratio: str, **fields) -> ObjectiveSpec:
    return ObjectiveSpec(ratio=ratio, reduction="sequence_mean", **fields)


@pytest.mark.parametrize("ratio", RATIOS)
def test_every_ratio_has_the_same_gradient_at_ratio_one(ratio):
    old, taken, advantages = batch(3)
    advantages = advantages[torch.arange(40) // 4]  # one per response
    expected = gradient(with_ratio("none"), old, old, taken, advantages)
    torch.testing.assert_close(gradient(with_ratio(ratio), old, old, taken, advantages), expected)


def test_whole_objectives_of_the_paper_agree_at_ratio_one_with_equal_divergence():
    """Fidelity test 1: RGRA and GRPO as presets, KL included; they differ after one step."""
    old, taken, advantages = batch(4)
    reference = batch(5)[0]

    def whole(name: str, logits: torch.Tensor, on_policy: bool) -> torch.Tensor:
        logits = logits.clone().requires_grad_()
        micro = micro_batch(old, taken, advantages, reference)
        losses = batch_losses(ObjectiveSpec(name=name), on_policy, logprobs_of(logits, taken), torch.zeros(40), micro)
        return torch.autograd.grad(losses.mean(), logits)[0]

    first = [whole(name, old, True) for name in ("rgra_paper", "grpo")]
    torch.testing.assert_close(*first)
    new = old - 3 * first[0]
    assert (whole("rgra_paper", new, False) - whole("grpo", new, False)).abs().max() > 1e-3


def micro_batch(old, taken, advantages, reference) -> MicroBatch:
    none = torch.zeros(0)
    logprobs = logprobs_of(old, taken)
    return MicroBatch(
        none, none, logprobs, advantages, torch.ones(40), logprobs, logprobs_of(reference, taken), torch.arange(40) // 4
    )


def terms(objective: ObjectiveSpec, on_policy: bool = False) -> list[float]:
    """The loss of two tokens by hand-set figures: log pi -1 and -2, pi_old -1.5 and -1, engine -2 and -1, reference -3
    and -1, entropy 0.5 and 0.25, advantages 2 and -1, responses of their own."""
    none = torch.zeros(0)

    def flat(*values: float) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)

    micro = MicroBatch(
        none, none, flat(-2, -1), flat(2, -1), flat(0.5, 0.5), flat(-1.5, -1), flat(-3, -1), torch.tensor([0, 1])
    )
    return batch_losses(objective, on_policy, flat(-1, -2), flat(0.5, 0.25), micro).tolist()


def test_every_term_of_the_loss_has_the_value_written_by_hand():
    e = np.exp
    assert terms(ObjectiveSpec()) == pytest.approx([2, -2])
    assert terms(ObjectiveSpec(entropy_coefficient=0.1)) == pytest.approx([2 - 0.05, -2 - 0.025])
    assert terms(ObjectiveSpec(kl="k2", kl_coefficient=0.1)) == pytest.approx([2 + 0.1 * 2, -2 + 0.1 * 0.5])
    k3 = [e(-2) + 2 - 1, e(1) - 1 - 1]
    assert terms(ObjectiveSpec(kl="k3", kl_coefficient=0.1)) == pytest.approx([2 + 0.1 * k3[0], -2 + 0.1 * k3[1]])
    free = {"clip_low": 1.0, "clip_high": 100.0}
    assert terms(ObjectiveSpec(ratio="token_clip", **free)) == pytest.approx([-2 * e(0.5), e(-1)])
    assert terms(ObjectiveSpec(ratio="token_clip", **free), on_policy=True) == pytest.approx([-2, 1])


def test_without_a_ratio_the_mismatch_is_of_the_policy_as_it_is_and_with_one_of_the_policy_as_it_was():
    e = np.exp
    assert terms(ObjectiveSpec(mismatch="tis", mismatch_high=100)) == pytest.approx([2 * e(1), -2 * e(-1)])
    free = {"clip_low": 1.0, "clip_high": 100.0, "mismatch": "tis", "mismatch_high": 100}
    both = terms(ObjectiveSpec(ratio="token_clip", **free))
    assert both == pytest.approx([-2 * e(0.5) * e(0.5), e(-1) * e(0)])


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_a_finite_gradient_off_policy(preset):
    old, taken, advantages = batch(6)
    logits = (old + 0.1 * batch(7)[0]).requires_grad_()
    micro = micro_batch(old, taken, advantages, batch(8)[0])
    logprobs = torch.log_softmax(logits, -1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)[taken[0]]
    losses = batch_losses(ObjectiveSpec(name=preset), False, logprobs_of(logits, taken), entropy, micro)
    found = torch.autograd.grad(losses.mean(), logits)[0]
    assert torch.isfinite(found).all()
    assert found.abs().max() > 0


@pytest.mark.parametrize(("ratio", "advantage", "slope"), [(9.0, -2.0, 2.0), (11.0, -2.0, 0.0), (1.1, 2.0, -2.0)])
def test_dual_clip_bounds_what_a_bad_response_can_cost(ratio, advantage, slope):
    rho = torch.tensor([ratio], dtype=torch.float64, requires_grad=True)
    objective = with_ratio("dual_clip", dual_clip=10.0)
    loss = token_losses(objective, rho.log(), torch.zeros(1, dtype=torch.float64), torch.tensor([advantage])).sum()
    assert torch.autograd.grad(loss, rho)[0].item() == pytest.approx(slope)


def test_gspo_clips_whole_responses_by_the_geometric_mean_of_their_ratios():
    """The first response's tokens have ratios 2 and 1/2, mean 1: nothing is clipped. Those of the second have 2."""
    logprobs = torch.log(torch.tensor([2.0, 0.5, 2.0, 2.0])).requires_grad_()
    objective = with_ratio("gspo", clip_low=0.2, clip_high=0.2)
    losses = token_losses(objective, logprobs, torch.zeros(4), torch.ones(4), torch.tensor([0, 0, 1, 1]))
    assert losses.tolist() == pytest.approx([-1.0, -1.0, -1.2, -1.2])
    assert torch.autograd.grad(losses.sum(), logprobs)[0].tolist() == pytest.approx([-1.0, -1.0, 0.0, 0.0])


def test_cispo_bounds_the_weight_of_a_token_and_keeps_its_gradient():
    logprobs = torch.log(torch.tensor([9.0, 0.5])).requires_grad_()
    objective = with_ratio("cispo", clip_low=1.0, clip_high=5.0)
    losses = token_losses(objective, logprobs, torch.zeros(2), torch.tensor([1.0, -1.0]))
    assert torch.autograd.grad(losses.sum(), logprobs)[0].tolist() == pytest.approx([-6.0, 0.5])


def test_gradient_of_k2_is_that_of_the_exact_reverse_divergence():
    """Fidelity test 6, in expectation over all tokens of a small vocabulary, against a numeric derivative."""
    logits, reference = batch(9)[0][:1], torch.log_softmax(batch(10)[0][:1], -1)

    def exact(z: torch.Tensor) -> torch.Tensor:
        logprobs = torch.log_softmax(z, -1)
        return (logprobs.exp() * (logprobs - reference)).sum()

    z = logits.clone().requires_grad_()
    logprobs = torch.log_softmax(z, -1)
    estimate = (logprobs.detach().exp() * kl_losses("k2", logprobs, reference)).sum()
    (found,) = torch.autograd.grad(estimate, z)
    h = 1e-6
    for i in range(7):
        step = torch.zeros_like(logits)
        step[0, i] = h
        assert found[0, i].item() == pytest.approx(
            ((exact(logits + step) - exact(logits - step)) / (2 * h)).item(), abs=1e-7
        )
    other = torch.log_softmax(z, -1)
    wrong = (other.detach().exp() * kl_losses("k3", other, reference)).sum()
    assert (torch.autograd.grad(wrong, z)[0] - found).abs().max() > 1e-3, "k3 has the forward divergence's gradient"


def test_k1_as_a_loss_has_no_gradient_in_expectation():
    """Fidelity test 6: why k1 is offered in the reward and not as a loss."""
    z = batch(11)[0][:1].clone().requires_grad_()
    logprobs = torch.log_softmax(z, -1)
    k1 = logprobs - torch.log_softmax(batch(12)[0][:1], -1)
    (found,) = torch.autograd.grad((logprobs.detach().exp() * k1).sum(), z)
    assert found.abs().max() < 1e-12


def test_mismatch_weights_are_truncated_or_masked_by_token_or_by_response():
    learner, engine = torch.log(torch.tensor([3.0, 0.5, 1.5, 1.0])), torch.zeros(4)
    rows = torch.tensor([0, 0, 1, 1])

    def weights(**fields) -> list[float]:
        return mismatch_weights(ObjectiveSpec(mismatch_high=2.0, **fields), learner, engine, rows).tolist()

    assert weights(mismatch="tis") == pytest.approx([2.0, 0.5, 1.5, 1.0])
    assert weights(mismatch="mis", mismatch_low=0.6) == pytest.approx([0.0, 0.0, 1.5, 1.0])
    assert weights(mismatch="tis", mismatch_level="sequence") == pytest.approx([1.5] * 4)
    assert weights(mismatch="mis", mismatch_level="sequence", mismatch_low=0.6) == pytest.approx([1.5] * 4)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_resolved_preset_reads_back_as_itself(preset):
    objective = ObjectiveSpec(name=preset)
    assert ObjectiveSpec.model_validate(objective.model_dump()) == objective


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "grop"}, "did you mean grpo"),
        ({"name": "RLOO"}, "did you mean rloo"),
        ({"name": 7}, "there is no preset '7'"),
        ({"clip_high": 0.3}, "clip_high = 0.3 has no effect with ratio: none"),
        ({"name": "gspo", "reduction": "token_mean"}, "needs reduction: sequence_mean"),
        ({"name": "reinforce", "sign": "positive"}, "sign: positive has no effect"),
        ({"kl": "k2"}, "contradict each other"),
        ({"kl_coefficient": 0.1}, "contradict each other"),
        ({"name": "maxrl", "kl": "k1_reward", "kl_coefficient": 0.1}, "tells right from wrong by the reward itself"),
        ({"name": "raft", "overlong_share": 0.1, "overlong_penalty": 1}, "tells right from wrong by the reward itself"),
        ({"mismatch_high": 3.0}, "mismatch_high = 3.0 has no effect"),
        ({"pass_k": 8}, "pass_k = 8 has no effect"),
        ({"overlong_share": 0.1}, "need each other"),
        ({"name": "grpo", "dual_clip": 4.0}, "dual_clip = 4.0 has no effect"),
    ],
)
def test_choices_that_make_no_sense_are_refused_with_the_reason(fields, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveSpec.model_validate(fields)


def test_a_preset_with_one_choice_taken_back_is_no_contradiction():
    assert ObjectiveSpec(name="dapo", ratio="none").clip_high == 0.28
    assert ObjectiveSpec(name="grpo", kl="none").kl_coefficient == 0
    assert ObjectiveSpec(name="grpo", kl_coefficient=0).kl == "none"
    assert ObjectiveSpec(name="dapo", overlong_share=0).overlong_penalty == 0
