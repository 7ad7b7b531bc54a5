"""The policy as the learner sees it: token ids in, log-probabilities of response tokens out."""

from typing import Any

import torch
from torch import nn

from trainer.types import BadInput

CHUNK_LOGITS = 2**24
"""Logits computed at a time (64 MiB): each chunk reads the head's weight once more, so smaller ones cost time."""
KEPT_LOGITS = 2**28
"""Up to so many numbers (1 GiB) are kept for the backward pass; beyond, they are computed again, a chunk at a time."""


class Policy(nn.Module):
    """Wraps a Hugging Face causal language model; parameter names get the prefix `model.`."""

    def __init__(self, model: Any, temperature: float) -> None:
        """Raises BadInput for an output head with a bias."""
        super().__init__()
        self.model: Any = model
        if not isinstance(model.lm_head, OutputHead):
            model.lm_head = OutputHead(model.lm_head)
        self.temperature = temperature

    def forward(
        self, token_ids: torch.Tensor, targets: torch.Tensor, temperature: float | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability and entropy of every response token, both float32 [response tokens].

        `token_ids` int64 [rows, width], right-padded: under a causal mask padding on the right cannot be seen, so no
        attention mask is needed. `targets` bool [rows, width - 1]. Logits are computed for response tokens only and
        divided by the sampling temperature, as in the engine.
        """
        hidden = self.model.model(input_ids=token_ids, use_cache=False).last_hidden_state[:, :-1][targets]
        return self.model.lm_head(hidden, token_ids[:, 1:][targets], temperature or self.temperature)


class OutputHead(nn.Module):
    """In place of the model's linear output head, with its weight: scores of given tokens instead of all logits.

    A module of its own because DeepSpeed's ZeRO-3 gathers a weight when the module that holds it is called.
    """

    def __init__(self, linear: Any) -> None:
        super().__init__()
        if linear.bias is not None:
            raise BadInput("model.source: the model's output head has a bias, which tailrace does not support")
        self.weight = linear.weight
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, hidden: torch.Tensor, tokens: torch.Tensor | None = None, temperature: float = 1.0) -> Any:
        """Log-probability of `tokens` int64 [n] and entropy after `hidden` [n, width], float32 [n] each; without tokens
        the logits, as Hugging Face's own code expects of an output head."""
        if tokens is None:
            return nn.functional.linear(hidden, self.weight)
        return _Scores.apply(hidden, self.weight, tokens, temperature)


class _Scores(torch.autograd.Function):
    """log softmax(hidden W^T / T) at the tokens, and the entropy.

    torch would hold the logits, their log-softmax, and in the backward pass its gradient. Here one exponential per
    logit is taken and kept, and the backward pass turns it into the gradient in place; above KEPT_LOGITS nothing is
    kept.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, tokens: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        n, vocabulary = len(hidden), len(weight)
        logprobs, entropy, total = (hidden.new_empty(n, dtype=torch.float32) for _ in range(3))
        top = torch.empty_like(total)
        keeps = any(ctx.needs_input_grad[:2]) and n * vocabulary <= KEPT_LOGITS
        kept = hidden.new_empty((n, vocabulary), dtype=torch.float32) if keeps else None
        for rows in _chunks(n, vocabulary):
            logits = _logits(hidden[rows], weight, temperature)
            top[rows] = logits.amax(-1)
            logits -= top[rows].unsqueeze(-1)
            chosen = logits.gather(-1, tokens[rows].unsqueeze(-1)).squeeze(-1)
            exponentials = torch.exp(logits, out=None if kept is None else kept[rows])
            total[rows] = exponentials.sum(-1)
            logprobs[rows] = chosen - total[rows].log()
            entropy[rows] = total[rows].log() - torch.linalg.vecdot(exponentials, logits) / total[rows]
        ctx.save_for_backward(hidden, weight, tokens, top, total, entropy)
        ctx.kept, ctx.temperature = kept, temperature
        return logprobs, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, to_logprobs: torch.Tensor, to_entropy: torch.Tensor) -> Any:
        hidden, weight, tokens, top, total, entropy = ctx.saved_tensors
        to_hidden = torch.empty_like(hidden)
        to_weight = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
        uses_entropy = bool(to_entropy.any())
        for rows in _chunks(len(hidden), len(weight)):
            if ctx.kept is None:
                gradient = _logits(hidden[rows], weight, ctx.temperature).sub_(top[rows].unsqueeze(-1)).exp_()
            else:
                gradient = ctx.kept[rows]
            slope = to_logprobs[rows].unsqueeze(-1) / ctx.temperature
            if uses_entropy:
                # dH/dlogit = -p (log p + H); p log p is 0 where p is.
                gradient /= total[rows].unsqueeze(-1)
                surprise = torch.xlogy(gradient, gradient) + gradient * entropy[rows].unsqueeze(-1)
                gradient *= -slope
                gradient -= surprise * (to_entropy[rows].unsqueeze(-1) / ctx.temperature)
            else:
                gradient *= -slope / total[rows].unsqueeze(-1)
            gradient.scatter_add_(-1, tokens[rows].unsqueeze(-1), slope)
            gradient = gradient.to(weight.dtype)
            to_hidden[rows] = gradient @ weight
            if to_weight.dtype == weight.dtype:
                to_weight.addmm_(gradient.T, hidden[rows])
            else:  # hundreds of chunks added up in bfloat16 would lose digits
                to_weight += gradient.T @ hidden[rows]
        ctx.kept = None
        return to_hidden, to_weight.to(weight.dtype), None, None


def _logits(hidden: torch.Tensor, weight: torch.Tensor, temperature: float) -> torch.Tensor:
    """float32 [n, vocabulary], divided by the temperature within the product."""
    out = hidden.new_empty((len(hidden), len(weight)))
    return torch.addmm(out, hidden, weight.T, beta=0, alpha=1 / temperature).float()


def _chunks(n: int, vocabulary: int) -> list[slice]:
    size = max(1, CHUNK_LOGITS // vocabulary)
    return [slice(i, i + size) for i in range(0, n, size)]
