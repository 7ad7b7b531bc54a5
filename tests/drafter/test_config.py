"""From the target's configuration to the head's shape."""

import pytest
from draft_cases import TARGET, config

from drafter.config import HeadConfig, default_aux_layers
from trainer.types import BadInput


def test_shapes_follow_the_target():
    head = config("eagle3", draft_vocab_size=20, trained_steps=5)
    assert (head.hidden_size, head.heads, head.kv_heads, head.head_dim, head.rope_theta) == (16, 4, 2, 6, 500.0)
    assert (head.aux_layers, head.feature_size, head.fc_inputs, head.draft_vocab_size) == ((2, 3, 5), 48, 48, 20)
    eagle = config("eagle")
    assert (eagle.aux_layers, eagle.feature_size, eagle.fc_inputs, eagle.draft_vocab_size) == ((), 16, 32, 31)


def test_a_llama_config_without_the_newer_fields():
    target = {name: value for name, value in TARGET.items() if name not in ("head_dim", "rope_parameters")}
    head = HeadConfig.for_target(target | {"model_type": "llama", "rope_theta": 7.0, "num_key_value_heads": None})
    assert (head.head_dim, head.kv_heads, head.rope_theta) == (4, 4, 7.0)


@pytest.mark.parametrize(
    ("layers", "chosen"), [(2, (1,)), (3, (1, 2)), (4, (1, 2, 3)), (6, (2, 3, 5)), (7, (2, 3, 4)), (32, (2, 16, 29))]
)
def test_auxiliary_layers_are_distinct_ascending_and_before_the_final_norm(layers, chosen):
    assert default_aux_layers(layers) == chosen


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type"),
        ({"hidden_size": None}, "hidden_size"),
        ({"vocab_size": "31"}, "vocab_size"),
        ({"num_key_value_heads": 3}, "kv_heads"),
        ({"head_dim": 5}, "head_dim"),
        ({"num_hidden_layers": 1}, "num_hidden_layers"),
        ({"rope_parameters": {"rope_theta": -1}}, "rope_theta"),
        ({"head_dim": None, "hidden_size": 18}, "hidden_size"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(BadInput, match=message):
        HeadConfig.for_target(TARGET | change)


def test_sizes_that_cannot_be_are_named():
    with pytest.raises(BadInput, match="draft_vocab_size"):
        config("eagle3", draft_vocab_size=32)
    with pytest.raises(BadInput, match="whole vocabulary"):
        config("eagle", draft_vocab_size=20)
    with pytest.raises(BadInput, match="trained_steps"):
        config("eagle", trained_steps=0)
    with pytest.raises(BadInput, match="form"):
        config("medusa")
