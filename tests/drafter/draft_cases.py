"""Small heads, random targets and random sequences for the drafter's tests."""

import numpy as np
import torch

from drafter.config import HeadConfig
from drafter.features import FeatureSequence

VOCAB, HIDDEN = 31, 16
TARGET = {
    "model_type": "qwen3", "hidden_size": HIDDEN, "intermediate_size": 24, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 6, "num_hidden_layers": 6, "vocab_size": VOCAB, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 128, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}  # fmt: skip


def config(form: str, **changes) -> HeadConfig:
    return HeadConfig.for_target(TARGET, form, **changes)


def target(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A random embedding and lm_head, both [VOCAB, HIDDEN]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(VOCAB, HIDDEN, generator=generator), torch.randn(VOCAB, HIDDEN, generator=generator)


def sequences(shape: HeadConfig, sizes: list[tuple[int, int]], seed: int = 0) -> list[FeatureSequence]:
    """One random sequence per (prompt tokens, response tokens)."""
    rng = np.random.default_rng(seed)
    result = []
    for i, (prompt, response) in enumerate(sizes):
        tokens = prompt + response
        last = rng.normal(size=(tokens, shape.hidden_size)).astype(np.float32)
        wide = rng.normal(size=(tokens, shape.feature_size)).astype(np.float32)
        ids = rng.integers(0, shape.vocab_size, tokens).astype(np.int32)
        result.append(FeatureSequence(f"s{i}", 0, ids, prompt, last if shape.form == "eagle" else wide, last))
    return result
