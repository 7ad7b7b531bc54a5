"""Gap 4: which feature goes with which token, on a real model; the released online trainer is off by one."""

import numpy as np
import pytest
import torch
from draft_cases import TARGET, config
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from drafter.features import FeatureSequence
from drafter.losses import target_distribution
from drafter.packing import pack

SHAPE = {name: value for name, value in TARGET.items() if name not in ("model_type", "rope_parameters")}


@pytest.mark.parametrize(
    "make", [lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE)), lambda: LlamaForCausalLM(LlamaConfig(**SHAPE))]
)
def test_features_at_t_pair_with_token_t_plus_1_and_predict_token_t_plus_2(make):
    torch.manual_seed(0)
    model, prompt_length = make(), 4
    tokens = torch.randint(0, 31, (1, 15))
    shape = config("eagle3")
    with torch.no_grad():
        whole = model(tokens, output_hidden_states=True)
        wide = torch.cat([whole.hidden_states[i] for i in shape.aux_layers], -1)[0]
        last = whole.hidden_states[-1][0]
        packed = pack([FeatureSequence("a", 0, tokens[0].int().numpy(), prompt_length, wide.numpy(), last.numpy())])
        said = target_distribution(packed.last, model.lm_head.weight, 1.0)
        for chain, t in enumerate(packed.starts.tolist()):
            # What the target knew when it had read tokens 0 .. t, and no more, is the feature at t.
            known = model(tokens[:, : t + 1], output_hidden_states=True)
            feature = torch.cat([known.hidden_states[i][0, -1] for i in shape.aux_layers])
            torch.testing.assert_close(packed.features[t], feature, rtol=1e-4, atol=1e-5)
            # The first draft is judged by the target's word on token t + 2, given tokens 0 .. t + 1.
            word = model(tokens[:, : t + 2]).logits[0, -1].softmax(-1)
            torch.testing.assert_close(said[chain], word, rtol=1e-4, atol=1e-5)
    # The first chain starts where the prompt is read and one token sampled; the last can still predict one token.
    assert packed.starts.tolist() == list(range(prompt_length - 1, 13))
    assert packed.reach.tolist() == list(np.arange(10, 0, -1))
