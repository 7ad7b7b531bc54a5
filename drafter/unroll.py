"""Training-time test: the head unrolled over its own outputs, seeing exactly what it will see in vLLM.

vLLM's proposer (`v1/spec_decode/llm_base_proposer.py`) runs step 0 over all new positions with the target's features,
then one position at a time over the head's own hidden state; the keys and values of both stay in the cache until the
target has verified the draft. So step j of the chain from c sees step 0's keys up to c and its own of steps 1 .. j, at
positions c + 1 .. c + j (EAGLE-3, arXiv 2503.01840, section 3.2; HASS, arXiv 2408.15766).

Tokens are those really sampled (teacher forcing): a chain counts only while its drafts agree with them anyway.
"""

from collections.abc import Iterator

import torch

from drafter.attention import Memory, joined
from drafter.model import DraftHead
from drafter.packing import Pack


def unrolled(head: DraftHead, pack: Pack, embedding: torch.Tensor, steps: int) -> Iterator[torch.Tensor]:
    """The head's hidden states [chains, hidden], one tensor per step; `head.logits` makes logits of them.

    Row i of step j predicts the token at `pack.starts[i] + 2 + j`; rows whose `reach` is not above j hold nothing of
    meaning. `embedding` is the target's, [vocab, hidden].
    """
    attention, starts = head.midlayer.self_attn, pack.starts
    embeds = embedding[pack.token_ids].to(pack.features.dtype)
    after = torch.arange(1, len(embeds) + 1, device=starts.device).clamp_(max=len(embeds) - 1)
    mixed, residual = head.mixed(embeds[after], head.fused(pack.features))
    memory = Memory(*attention.key_value(mixed, pack.positions), pack.segments)
    mixed, residual = mixed.index_select(0, starts), residual.index_select(0, starts)
    hidden = residual
    drafted: list[tuple[torch.Tensor, torch.Tensor]] = []
    for step in range(steps):
        positions = pack.positions[starts] + step
        if step:
            mixed, residual = head.mixed(embeds[(starts + 1 + step).clamp_(max=len(embeds) - 1)], hidden)
            drafted.append(attention.key_value(mixed, positions))
        query = attention.query(mixed, positions)
        hidden = head.finished(joined(query, memory.read(query), drafted), residual)
        yield hidden
