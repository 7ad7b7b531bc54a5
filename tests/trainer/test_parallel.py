"""Parallel averaging on plain tensors and torch's Adam: the properties that tell it from its rivals."""

import pytest
import torch

from trainer.parallel import averaged

RATE = 1e-2


class Theta:
    """A parameter vector with an optimizer state for each of two losses."""

    def __init__(self, states: int) -> None:
        torch.manual_seed(0)
        self.value = torch.randn(50, dtype=torch.float64, requires_grad=True)
        self.adams = [torch.optim.Adam([self.value], lr=RATE) for _ in range(states)]

    def step(self, gradient: torch.Tensor, state: int = 0) -> torch.Tensor:
        """The vector after a step of one optimizer."""
        self.value.grad = gradient.clone()
        self.adams[state].step()
        return self.value.detach().clone()

    def averaged_step(self, first: torch.Tensor, second: torch.Tensor) -> None:
        start = self.value.detach().clone()
        after_first = self.step(first, 0)
        self.value.data.copy_(start)
        after_second = self.step(second, 1)
        (both,) = averaged([start], [after_first], [after_second])
        self.value.data.copy_(both)


def gradients(steps: int, scale: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(int(scale * 10))
    return [scale * torch.randn(50, dtype=torch.float64, generator=generator) for _ in range(steps)]


def test_with_no_second_loss_the_step_is_half_the_first():
    ours, alone = Theta(2), Theta(1)
    start = alone.value.detach().clone()
    (gradient,) = gradients(1)
    ours.averaged_step(gradient, torch.zeros(50, dtype=torch.float64))
    torch.testing.assert_close(ours.value.detach() - start, (alone.step(gradient) - start) / 2)


def test_with_equal_losses_and_rates_it_is_one_adam():
    ours, alone = Theta(2), Theta(1)
    for gradient in gradients(5):
        ours.averaged_step(gradient, gradient)
        alone.step(gradient)
    torch.testing.assert_close(ours.value, alone.value)


def test_two_adam_states_let_a_small_gradient_count_as_much_as_a_large_one():
    """Under a sum of losses, the larger gradient decides the direction."""
    ours, summed, large_alone = Theta(2), Theta(1), Theta(1)
    for small, large in zip(gradients(5, 0.01), gradients(5, 1.0), strict=True):
        ours.averaged_step(small, large)
        summed.step(small + large)
        large_alone.step(large)
    assert (summed.value - large_alone.value).abs().mean() < 0.1 * RATE
    assert (ours.value - summed.value).abs().mean() > RATE


def test_tensors_of_unequal_number_are_refused():
    with pytest.raises(ValueError, match="zip"):
        averaged([torch.zeros(1)], [torch.zeros(1)], [])
