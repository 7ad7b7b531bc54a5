"""How far off-policy an update was, in numbers: each against its definition."""

import math

import numpy as np
import pytest
import torch

from trainer.batches import MicroBatch
from trainer.objective import ObjectiveSpec
from trainer.objectives import mismatch_weights, policy_ratio, token_losses
from trainer.off_policy import COLUMNS, clips, drift, shares

TOKENS = 60


def micro_batch(engine: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor) -> MicroBatch:
    """Responses of four tokens."""
    n = len(engine)
    ids, rows = torch.zeros(n, dtype=torch.int64), torch.arange(n) // 4
    return MicroBatch(ids, ids, engine, advantages, torch.full((n,), 1 / n), old, torch.zeros(n), rows)


def drawn(seed: int = 0) -> tuple[torch.Tensor, MicroBatch]:
    """Log-probabilities of a learner that has moved, and a batch of which a third has no advantage."""
    new, engine, old, advantages = torch.randn(4, TOKENS, generator=torch.Generator().manual_seed(seed))
    advantages[::3] = 0
    return 0.3 * new - 2, micro_batch(0.3 * engine - 2, 0.3 * old - 2, advantages)


def figures(objective: ObjectiveSpec, on_policy: bool, logprobs: torch.Tensor, micro: MicroBatch) -> dict[str, float]:
    return shares(drift(objective, on_policy, logprobs, micro).sum(1).numpy())


def test_divergence_and_effective_sample_size_are_those_of_their_formulas():
    delta = [0.0, 0.5, -0.25, 1.0]
    engine = torch.full((4,), -2.0)
    found = figures(ObjectiveSpec(), True, engine + torch.tensor(delta), micro_batch(engine, engine, torch.ones(4)))
    weights = [math.exp(d) for d in delta]
    assert found["mismatch_kl"] == pytest.approx(sum(w - 1 - d for w, d in zip(weights, delta, strict=True)) / 4)
    assert found["effective_sample_share"] == pytest.approx(sum(weights) ** 2 / (4 * sum(w * w for w in weights)))
    assert found["ratio_clipped_share"] == found["mismatch_clipped_share"] == 0


def test_the_divergence_is_in_expectation_that_of_the_learner_from_the_engine():
    engine, learner = torch.log_softmax(torch.randn(2, 7, generator=torch.Generator().manual_seed(1)), -1)
    micro = micro_batch(engine, engine, torch.ones(7))
    k3 = drift(ObjectiveSpec(), True, learner, micro)[COLUMNS.index("kl")]
    exact = (engine.exp() * (engine - learner)).sum().item()
    assert (engine.exp() * k3).sum().item() == pytest.approx(exact, rel=1e-5)


def test_equal_weights_leave_every_sample_and_one_large_weight_leaves_one():
    engine = torch.full((8,), -3.0)
    micro = micro_batch(engine, engine, torch.ones(8))
    assert figures(ObjectiveSpec(), True, engine + 0.7, micro)["effective_sample_share"] == pytest.approx(1)
    far = engine.clone()
    far[3] += 30
    assert figures(ObjectiveSpec(), True, far, micro)["effective_sample_share"] == pytest.approx(1 / 8)


@pytest.mark.parametrize(
    ("ratio", "fields"),
    [("token_clip", {}), ("token_clip", {"clip_high": 0.28}), ("dual_clip", {"dual_clip": 1.5}), ("gspo", {})],
)
def test_a_clipped_token_is_one_whose_loss_has_no_gradient(ratio, fields):
    objective = ObjectiveSpec(ratio=ratio, reduction="sequence_mean", **fields)
    logprobs, micro = drawn()
    advantages = micro.advantages[::4].repeat_interleave(4)  # one per response, as they come
    own = logprobs.requires_grad_()
    losses = token_losses(objective, own, micro.old_logprobs, advantages, micro.rows)
    (slopes,) = torch.autograd.grad(losses.sum(), own)
    rho = policy_ratio(objective, logprobs.detach(), micro.old_logprobs, micro.rows)
    found = clips(objective, rho, advantages)
    assert torch.equal(found, (slopes == 0) & (advantages != 0))
    assert 0 < found.sum() < TOKENS


def test_under_cispo_a_clipped_token_is_one_whose_weight_is_cut():
    objective = ObjectiveSpec(ratio="cispo", reduction="token_mean", clip_low=0.3, clip_high=0.4)
    logprobs, micro = drawn()
    own = logprobs.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(token_losses(objective, own, micro.old_logprobs, torch.ones(TOKENS)).sum(), own)
    rho = torch.exp(logprobs - micro.old_logprobs)
    cut = ~torch.isclose(-slopes, rho)
    assert torch.equal(clips(objective, rho, micro.advantages), cut)
    assert 0 < cut.sum() < TOKENS


@pytest.mark.parametrize("mismatch", ["tis", "mis"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_tokens_cut_by_a_mismatch_correction_are_those_whose_weight_is_not_their_ratio(mismatch, level):
    objective = ObjectiveSpec(mismatch=mismatch, mismatch_level=level, mismatch_low=0.7, mismatch_high=1.4)
    logprobs, micro = drawn()
    free = objective.model_copy(update={"mismatch": "tis", "mismatch_low": 0.0, "mismatch_high": 1e9})
    weights, ratios = (mismatch_weights(o, logprobs, micro.logprobs, micro.rows) for o in (objective, free))
    cut = (weights != ratios).double().mean().item()
    assert 0 < cut < 1
    assert figures(objective, False, logprobs, micro)["mismatch_clipped_share"] == pytest.approx(cut)


def test_with_both_the_ratio_is_to_the_old_policy_and_the_correction_from_it_to_the_engine():
    objective = ObjectiveSpec(name="cero_paper")
    logprobs, micro = drawn()
    far = micro_batch(micro.old_logprobs - 3, micro.old_logprobs, micro.advantages)
    found = figures(objective, False, micro.old_logprobs, far)
    assert (found["ratio_clipped_share"], found["mismatch_clipped_share"]) == (0, 1)
    assert figures(objective, False, logprobs, micro)["ratio_clipped_share"] > 0


def test_on_policy_no_rounding_of_the_engine_counts_as_clipped():
    logprobs, micro = drawn()
    assert figures(ObjectiveSpec(name="grpo"), True, logprobs, micro)["ratio_clipped_share"] == 0


def test_the_sums_of_micro_batches_are_those_of_the_batch():
    objective = ObjectiveSpec(name="cero_paper")
    logprobs, micro = drawn()
    whole = drift(objective, False, logprobs, micro).sum(1)
    parts = []
    for part in (slice(0, 24), slice(24, TOKENS)):
        piece = micro_batch(micro.logprobs[part], micro.old_logprobs[part], micro.advantages[part])
        parts.append(drift(objective, False, logprobs[part], piece).sum(1))
    np.testing.assert_allclose(sum(parts), whole)


def test_a_batch_without_tokens_of_an_engine_has_figures_all_the_same():
    assert set(shares(np.zeros(len(COLUMNS))).values()) == {0.0}


def test_nothing_of_it_has_a_gradient():
    logprobs, micro = drawn()
    assert not drift(ObjectiveSpec(name="cero_paper"), False, logprobs.requires_grad_(), micro).requires_grad
