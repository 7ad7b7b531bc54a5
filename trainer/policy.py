"""The policy as the learner sees it: token ids in, log-probabilities of response tokens out."""

from typing import Any

import torch
from torch import nn


class Policy(nn.Module):
    """Wraps a Hugging Face causal language model; parameter names get the prefix `model.`."""

    def __init__(self, model: Any, temperature: float) -> None:
        super().__init__()
        self.model: Any = model
        self.temperature = temperature

    def forward(
        self, token_ids: torch.Tensor, targets: torch.Tensor, temperature: float | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability and entropy (no gradient) of every response token, both float32 [response tokens].

        `token_ids` int64 [rows, width], right-padded: under a causal mask padding on the right cannot be seen, so no
        attention mask is needed. `targets` bool [rows, width - 1]. Logits are computed for response tokens only and
        divided by the sampling temperature, as in the engine.
        """
        hidden = self.model.model(input_ids=token_ids, use_cache=False).last_hidden_state[:, :-1][targets]
        logits = self.model.lm_head(hidden).float() / (temperature or self.temperature)
        logprobs = torch.log_softmax(logits, dim=-1)
        with torch.no_grad():
            entropy = -(logprobs.exp() * logprobs).sum(-1)
        return logprobs.gather(-1, token_ids[:, 1:][targets].unsqueeze(-1)).squeeze(-1), entropy
