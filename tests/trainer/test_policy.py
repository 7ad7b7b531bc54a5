"""Scores of the output head: as torch computes them from all logits, whether anything is kept or not."""

import pytest
import torch
from torch import nn

import trainer.policy
from trainer.policy import OutputHead
from trainer.types import BadInput

TEMPERATURES = [1.0, 0.7]


def inputs(n: int = 23, width: int = 16, vocabulary: int = 40):
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(width, vocabulary, bias=False).double()
    hidden = 3 * torch.randn(n, width, generator=generator, dtype=torch.float64)
    return linear, hidden, torch.randint(0, vocabulary, (n,), generator=generator)


def expected(linear, hidden, tokens, temperature):
    logprobs = torch.log_softmax(linear(hidden) / temperature, -1)
    return logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), -(logprobs.exp() * logprobs).sum(-1)


def gradients(scores, linear, hidden, to_logprobs, to_entropy):
    hidden = hidden.clone().requires_grad_()
    logprobs, entropy = scores(hidden)
    loss = (logprobs * to_logprobs).sum() + (entropy * to_entropy).sum()
    return torch.autograd.grad(loss, [hidden, linear.weight])


@pytest.fixture(params=["kept", "recomputed"])
def keeping(request, monkeypatch):
    """Whether the backward pass finds what the forward pass computed; chunks of three rows either way."""
    monkeypatch.setattr(trainer.policy, "CHUNK_LOGITS", 3 * 40)
    if request.param == "recomputed":
        monkeypatch.setattr(trainer.policy, "KEPT_LOGITS", 0)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_scores_are_those_of_the_full_softmax(keeping, temperature):
    linear, hidden, tokens = inputs()
    ours = OutputHead(linear)(hidden, tokens, temperature)
    for found, wanted in zip(ours, expected(linear, hidden, tokens, temperature), strict=True):
        torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("entropy", [0.0, 0.3])
def test_gradients_are_those_of_the_full_softmax(keeping, temperature, entropy):
    linear, hidden, tokens = inputs()
    to_logprobs = torch.randn(len(tokens), generator=torch.Generator().manual_seed(1))
    to_entropy = torch.full((len(tokens),), entropy)
    head = OutputHead(linear)
    ours = gradients(lambda h: head(h, tokens, temperature), linear, hidden, to_logprobs, to_entropy)
    theirs = gradients(lambda h: expected(linear, h, tokens, temperature), linear, hidden, to_logprobs, to_entropy)
    for found, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_certain_token_has_no_entropy_and_no_gradient_that_is_not_a_number():
    linear, hidden, tokens = inputs()
    head = OutputHead(linear)
    found = gradients(lambda h: head(h, tokens, 1.0), linear, 1e4 * hidden, torch.ones(23), torch.ones(23))
    assert all(torch.isfinite(g).all() for g in found)


@pytest.mark.parametrize("kept", [True, False])
def test_no_second_tensor_of_the_size_of_the_logits_is_held(monkeypatch, kept):
    """At most one: that which is kept. Counted at torch's allocator, in numbers of float32."""
    n, width, vocabulary = 256, 8, 2**13
    if not kept:
        monkeypatch.setattr(trainer.policy, "KEPT_LOGITS", 0)
    monkeypatch.setattr(trainer.policy, "CHUNK_LOGITS", n * vocabulary // 16)
    head, hidden = OutputHead(nn.Linear(width, vocabulary, bias=False)), torch.randn(n, width, requires_grad=True)
    tokens = torch.zeros(n, dtype=torch.int64)
    with torch.profiler.profile(profile_memory=True) as profile:
        logprobs, _ = head(hidden, tokens, 1.0)
        logprobs.sum().backward()
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    full = 4 * n * vocabulary
    assert most < (1.4 if kept else 0.4) * full


def test_an_output_head_with_a_bias_is_refused():
    with pytest.raises(BadInput, match=r"model\.source"):
        OutputHead(nn.Linear(4, 8))
