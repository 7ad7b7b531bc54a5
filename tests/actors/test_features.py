"""Features tapped from the learner's forward pass belong to the tokens that they are kept with."""

import numpy as np
import pytest
import torch
from transformers import Qwen3ForCausalLM

from actors.features import FeatureTap, TapConfig
from trainer.batches import Sample, collate
from trainer.models import tiny_config
from trainer.policy import Policy
from trainer.spec import TinySpec

AUX = (1, 2, 3)
BYTES = 4 * 64 * 2


@pytest.fixture(scope="module")
def policy() -> Policy:
    torch.manual_seed(0)
    tiny = TinySpec(layers=4, hidden_size=64, intermediate_size=128, kv_heads=1)
    return Policy(Qwen3ForCausalLM(tiny_config(tiny, 64)), 1.0)


def sample(n: int, prompt: int, seed: int) -> Sample:
    ids = np.random.default_rng(seed).integers(3, 90, n)
    return Sample(ids, prompt, np.zeros(n - prompt, np.float32), 1.0, 1.0)


def tapped(policy: Policy, batch: list[Sample], budget_bytes: int = 2**20, aux: tuple[int, ...] = AUX) -> list:
    model = policy.model
    tap = FeatureTap(TapConfig(aux, budget_bytes, BYTES), model)
    tap.begin(epoch=7, parts=1)
    tap.choose(range(len(batch)), [len(s.token_ids) for s in batch])
    micro = collate(batch, pad_id=0)
    policy(micro.token_ids, micro.targets)
    tap.keep(range(len(batch)), batch)
    for module in model.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return tap.taken()


def test_padding_shifts_no_feature_against_its_token(policy):
    """Gap 5: the released code pads prompts on the left and keeps unpadded states, shifted by the padding."""
    batch = [sample(20, 5, 1), sample(9, 3, 2), sample(14, 6, 3)]
    for kept in tapped(policy, batch):
        with torch.no_grad():
            alone = policy.model.model(torch.tensor(kept.token_ids[None].astype(np.int64)), output_hidden_states=True)
        wanted = torch.cat([alone.hidden_states[i][0] for i in AUX], -1).numpy()
        np.testing.assert_allclose(kept.features, wanted, atol=4e-3)
        np.testing.assert_allclose(kept.last, alone.last_hidden_state[0].numpy(), atol=4e-3)


def test_the_learners_own_pass_feeds_the_buffer(policy):
    """Gap 2: the released code's collection during the log-probability pass never runs."""
    batch = [sample(20, 5, 1), sample(9, 3, 2)]
    kept = tapped(policy, batch)
    assert sorted(len(s) for s in kept) == [9, 20]
    assert {s.epoch for s in kept} == {7}
    assert {s.prompt_length for s in kept} == {5, 3}


def test_responses_of_one_prompt_share_a_name_so_that_they_are_held_out_together(policy):
    first = sample(12, 5, 1)
    second = Sample(np.concatenate([first.token_ids[:5], [9, 9, 9]]), 5, np.zeros(3, np.float32), 1.0, 1.0)
    a, b, c = tapped(policy, [first, second, sample(8, 5, 4)])
    names = sorted(s.id for s in (a, b, c))
    assert len(set(names)) == 2


def test_an_epochs_features_stay_within_their_budget(policy):
    batch = [sample(20, 5, i) for i in range(6)]
    kept = tapped(policy, batch, budget_bytes=50 * BYTES)
    assert 0 < sum(map(len, kept)) <= 50


def test_without_auxiliary_layers_the_last_state_is_the_feature(policy):
    (kept,) = tapped(policy, [sample(12, 5, 1)], aux=())
    assert kept.features is kept.last


def test_nothing_is_kept_outside_an_update(policy):
    """As in a pretrain stage, whose batches pass the tap too."""
    tap, batch = FeatureTap(TapConfig(AUX, 2**20, BYTES), policy.model), [sample(9, 3, 2)]
    tap.choose([0], [9])
    micro = collate(batch, pad_id=0)
    policy(micro.token_ids, micro.targets)
    tap.keep([0], batch)
    assert tap.taken() == []
