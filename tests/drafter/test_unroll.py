"""The unrolled head sees what it sees in vLLM: compared with a step-by-step simulation over a key-value cache."""

import dataclasses

import numpy as np
import pytest
import torch
from draft_cases import config, sequences, target
from torch.nn import functional as F

from drafter.attention import Memory, Segments, joined
from drafter.model import DraftHead
from drafter.packing import Pack, pack
from drafter.unroll import unrolled
from drafter.vocabulary import DraftVocabulary

STEPS = 4


class Simulated:
    """vLLM's head over one document, one token at a time, written from its source with explicit key-value lists."""

    def __init__(self, head: DraftHead, embedding: torch.Tensor, lm_head: torch.Tensor) -> None:
        self.c, self.w = head.config, {name: tensor.double() for name, tensor in head.state_dict().items()}
        self.embedding, self.lm_head = embedding.double(), lm_head.double()

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x * (x.pow(2).mean() + self.c.rms_eps).rsqrt() * self.w[name]

    def rotate(self, x: torch.Tensor, position: int) -> torch.Tensor:
        half = self.c.head_dim // 2
        angle = position * self.c.rope_theta ** (-torch.arange(half).double() / half)
        a, b = x[:, :half], x[:, half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], 1)

    def forward(self, hidden: torch.Tensor, token: int, position: int, cache: list) -> torch.Tensor:
        """One position through the head; its key and value are appended to the cache."""
        w, c, embed = self.w, self.c, self.embedding[token]
        if c.form == "eagle3":
            x = torch.cat([self.norm(embed, "midlayer.input_layernorm.weight"),
                           self.norm(hidden, "midlayer.hidden_norm.weight")])  # fmt: skip
            residual = hidden
        else:
            x = residual = w["fc.weight"] @ torch.cat([embed, hidden])
        q, k, v = ((w[f"midlayer.self_attn.{n}_proj.weight"] @ x).view(-1, c.head_dim) for n in "qkv")
        cache.append((self.rotate(k, position), v))
        q = self.rotate(q, position)
        attended = []
        for head in range(c.heads):
            shared = head // (c.heads // c.kv_heads)
            keys, values = (torch.stack([entry[i][shared] for entry in cache]) for i in (0, 1))
            attended.append((keys @ q[head] / c.head_dim**0.5).softmax(0) @ values)
        residual = residual + w["midlayer.self_attn.o_proj.weight"] @ torch.cat(attended)
        x = self.norm(residual, "midlayer.post_attention_layernorm.weight")
        gate, up = w["midlayer.mlp.gate_proj.weight"] @ x, w["midlayer.mlp.up_proj.weight"] @ x
        return residual + w["midlayer.mlp.down_proj.weight"] @ (F.silu(gate) * up)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.c.form == "eagle3":
            return self.w["lm_head.weight"] @ self.norm(hidden, "norm.weight")
        return self.lm_head @ hidden

    def chain(self, sequence, start: int, steps: int) -> list[torch.Tensor]:
        """Logits of the draft steps that follow position `start`, fed the tokens really sampled."""
        tokens, cache, hidden = sequence.token_ids, [], None
        for t in range(start + 1):
            feature = torch.from_numpy(sequence.features[t]).double()
            feature = self.w["fc.weight"] @ feature if self.c.form == "eagle3" else feature
            hidden = self.forward(feature, tokens[t + 1], t, cache)
        result = [self.logits(hidden)]
        for j in range(1, steps):
            hidden = self.forward(hidden, tokens[start + 1 + j], start + j, cache)
            result.append(self.logits(hidden))
        return result


@pytest.mark.parametrize("form", ["eagle3", "eagle"])
def test_logits_of_every_step_are_those_of_inference_with_a_cache(form, monkeypatch):
    monkeypatch.setattr("drafter.attention.SEGMENT", 4)  # so that documents are cut and buckets are padded
    monkeypatch.setattr("drafter.attention.BUCKET_COST", 20)
    embedding, lm_head = target()
    vocabulary = DraftVocabulary(np.arange(3, 23), 31) if form == "eagle3" else None
    head = DraftHead(config(form, draft_vocab_size=20 if form == "eagle3" else 31), vocabulary).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    batch = sequences(head.config, [(3, 12), (1, 3), (5, 8), (2, 19)])
    packed = pack(batch)
    assert len(packed.segments.buckets) > 1
    rows = lm_head[head.draft_ids].double()
    got = [head.logits(hidden, rows) for hidden in unrolled(head, doubled(packed), embedding.double(), STEPS)]
    simulated, chain = Simulated(head, embedding, rows), 0
    for sequence in batch:
        for start in range(sequence.prompt_length - 1, len(sequence) - 2):
            reach = len(sequence) - 2 - start
            assert packed.reach[chain] == reach
            for j, expected in enumerate(simulated.chain(sequence, start, min(STEPS, reach))):
                torch.testing.assert_close(got[j][chain], expected, rtol=0, atol=1e-9)
            chain += 1
    assert chain == packed.chains


def doubled(packed: Pack) -> Pack:
    return dataclasses.replace(packed, features=packed.features.double(), last=packed.last.double())


def test_gradients_of_the_attention_written_by_hand():
    segments = Segments.of(np.array([0, 7]), np.array([1, 0]), np.array([5, 4]), "cpu")
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(n, h, 4, dtype=torch.float64, requires_grad=True) for n, h in ((9, 4), (13, 2), (13, 2))
    )
    own = [(torch.randn(9, 2, 4).double(), torch.randn(9, 2, 4).double())]
    assert torch.autograd.gradcheck(lambda q, k, v: joined(q, Memory(k, v, segments).read(q), own), (query, key, value))


def test_recomputed_scores_give_the_same_gradients(monkeypatch):
    monkeypatch.setattr("drafter.attention.SEGMENT", 8)
    embedding, _ = target()
    head = DraftHead(config("eagle3"))
    torch.nn.init.normal_(head.lm_head.weight)
    gradients = []
    for limit in (1 << 24, 0):
        monkeypatch.setattr("drafter.attention.CHECKPOINT_SCORES", limit)
        head.zero_grad()
        packed = pack(sequences(head.config, [(3, 40), (1, 3)]))
        assert packed.segments.recompute == (limit == 0)
        torch.stack(list(unrolled(head, packed, embedding, 3))).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in head.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-8)
