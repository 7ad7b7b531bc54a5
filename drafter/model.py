"""The draft head: one Llama layer that guesses the target's next tokens, in the two forms that vLLM runs.

eagle3  fuses hidden states of several target layers; its own final norm and its own, possibly reduced, lm_head
        (Li et al. 2025, arXiv 2503.01840; vLLM `model_executor/models/llama_eagle3.py`)
eagle   fuses the target's last hidden state with the embedding; no norms but one; the target's lm_head
        (Li et al. 2024, arXiv 2401.15077; vLLM `model_executor/models/llama_eagle.py`)

The mathematics is vLLM's, operation by operation, because vLLM runs the head. Parameters carry vLLM's names. The
target's embedding and lm_head are given from outside: they change with every policy update and are never saved here.
"""

import torch
from torch import nn
from torch.nn import functional as F

from drafter.config import HeadConfig
from drafter.vocabulary import DraftVocabulary


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Projections and rotary embedding; what sees what is `drafter.attention`'s business."""

    def __init__(self, config: HeadConfig, input_size: int) -> None:
        super().__init__()
        self.head_dim, self.theta = config.head_dim, config.rope_theta
        self.q_proj = nn.Linear(input_size, config.heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(input_size, config.kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(input_size, config.kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.heads * config.head_dim, config.hidden_size, bias=False)

    def query(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """[tokens, heads, head_dim], rotated to `positions` [tokens]."""
        return rotated(self.q_proj(x).unflatten(-1, (-1, self.head_dim)), positions, self.theta)

    def key_value(self, x: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Two [tokens, kv_heads, head_dim]; the keys rotated."""
        key = rotated(self.k_proj(x).unflatten(-1, (-1, self.head_dim)), positions, self.theta)
        return key, self.v_proj(x).unflatten(-1, (-1, self.head_dim))


def rotated(x: torch.Tensor, positions: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotary embedding of [tokens, heads, head_dim], halves paired (neox style), as in Llama."""
    half, precise = x.shape[-1] // 2, torch.promote_types(x.dtype, torch.float32)
    frequencies = theta ** (-torch.arange(half, device=x.device, dtype=precise) / half)
    angles = positions[:, None].to(precise) * frequencies
    cos, sin = angles.cos()[:, None].to(x.dtype), angles.sin()[:, None].to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class Mlp(nn.Module):
    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        eagle3 = config.form == "eagle3"
        self.self_attn = Attention(config, 2 * config.hidden_size if eagle3 else config.hidden_size)
        self.mlp = Mlp(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_eps)
        if eagle3:
            self.input_layernorm = RMSNorm(config.hidden_size, config.rms_eps)
            self.hidden_norm = RMSNorm(config.hidden_size, config.rms_eps)


class DraftHead(nn.Module):
    """The trainable tensors, and the steps between them as vLLM carries them out."""

    draft_ids: torch.Tensor
    """int64 [draft_vocab_size], target ids in ascending order; no part of the state_dict."""

    def __init__(self, config: HeadConfig, vocabulary: DraftVocabulary | None = None) -> None:
        super().__init__()
        vocabulary = vocabulary or DraftVocabulary.full(config.vocab_size)
        config.check_vocabulary(vocabulary)
        self.config, self.vocabulary = config, vocabulary
        self.register_buffer("draft_ids", torch.from_numpy(vocabulary.ids), persistent=False)
        self.fc = nn.Linear(config.fc_inputs, config.hidden_size, bias=False)
        self.midlayer = Layer(config)
        if config.form == "eagle3":
            self.norm = RMSNorm(config.hidden_size, config.rms_eps)
            self.lm_head = nn.Linear(config.hidden_size, config.draft_vocab_size, bias=False)

    def fused(self, features: torch.Tensor) -> torch.Tensor:
        """The hidden state [tokens, hidden] that the first step is fed; later steps are fed the head's own."""
        return self.fc(features) if self.config.form == "eagle3" else features

    def mixed(self, embeds: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Input of the attention, and the residual stream beside it, from embedding and hidden state."""
        if self.config.form == "eagle3":
            return torch.cat([self.midlayer.input_layernorm(embeds), self.midlayer.hidden_norm(hidden)], -1), hidden
        mixed = self.fc(torch.cat([embeds, hidden], -1))
        return mixed, mixed  # vLLM's eagle head has no input norm

    def finished(self, attended: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """The head's hidden state [tokens, hidden] after attention [tokens, heads, head_dim]: the next step's input."""
        residual = residual + self.midlayer.self_attn.o_proj(attended.flatten(1))
        return residual + self.midlayer.mlp(self.midlayer.post_attention_layernorm(residual))

    def logits(self, hidden: torch.Tensor, target_head: torch.Tensor) -> torch.Tensor:
        """[tokens, draft_vocab_size]; `target_head` [draft_vocab_size, hidden] serves the eagle form."""
        if self.config.form == "eagle3":
            return self.lm_head(self.norm(hidden))
        return F.linear(hidden, target_head)

    @torch.no_grad()
    def initialise(self, target_head: torch.Tensor, generator: torch.Generator) -> None:
        """Random weights that learn fast: the layer starts as a pass-through of the deepest feature.

        The eagle3 lm_head starts as the target's rows `target_head` [draft_vocab_size, hidden], so that the layer has
        only to learn what the target's later layers would have done. `generator` lives on the CPU.
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                scale = 0.1 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                drawn = torch.randn(parameter.shape, generator=generator) * scale * parameter.shape[1] ** -0.5
                parameter.copy_(drawn)
        size = self.config.hidden_size
        self.fc.weight.mul_(0.1)
        self.fc.weight[:, -size:] += torch.eye(size, device=self.fc.weight.device)
        if self.config.form == "eagle3":
            self.lm_head.weight.copy_(target_head)
