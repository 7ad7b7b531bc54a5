"""Losses against what can be calculated by hand."""

import math

import pytest
import torch

from drafter.losses import LOSSES, hybrid, soft_cross_entropy, target_distribution, total_variation

LOGITS = torch.tensor([[1.0, 0.0, -1.0], [0.2, 0.1, 0.0]], dtype=torch.float64)
TARGET = torch.tensor([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]], dtype=torch.float64)


def test_soft_cross_entropy_has_the_gradient_of_the_forward_divergence():
    logits = LOGITS.clone().requires_grad_()
    soft_cross_entropy(logits, TARGET).sum().backward()
    torch.testing.assert_close(logits.grad, LOGITS.softmax(-1) - TARGET)
    assert soft_cross_entropy(LOGITS, TARGET)[1].item() == pytest.approx(-LOGITS[1].log_softmax(0)[1].item())


def test_total_variation_is_half_the_absolute_difference():
    expected = (LOGITS.softmax(-1) - TARGET).abs().sum(-1) / 2
    torch.testing.assert_close(total_variation(LOGITS, TARGET), expected)


def test_hybrid_lies_between_the_two_and_turns_to_total_variation_as_they_agree():
    ce, tv, both = soft_cross_entropy(LOGITS, TARGET), total_variation(LOGITS, TARGET), hybrid(LOGITS, TARGET)
    weight = torch.exp(-3 * (1 - tv))
    torch.testing.assert_close(both, weight * ce + (1 - weight) * tv)
    far = total_variation(torch.tensor([[50.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])).item()
    assert far == pytest.approx(1.0)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_smallest_at_the_target(name):
    at_target = LOSSES[name](TARGET[:1].log(), TARGET[:1])
    assert (at_target < LOSSES[name](LOGITS[:1], TARGET[:1])).all()


def test_target_is_restricted_renormalised_and_tempered():
    last, rows = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 9.0], [0.0, 9.0]])
    p = target_distribution(last, rows, 2.0)
    torch.testing.assert_close(p, torch.tensor([[math.e / (math.e + 1), 1 / (math.e + 1)]]))
