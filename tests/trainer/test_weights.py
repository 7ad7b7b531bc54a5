"""Weights to start from: merged as asked, and refused when they are not there or do not fit."""

import pytest
import torch

from trainer.models import load_policy, prepare_model, tiny_config
from trainer.spec import ModelSpec, TinySpec
from trainer.types import BadInput
from trainer.weights import check_weights, merged_weights


def made(directory, seed=0, layers=1):
    shape = TinySpec(layers=layers, hidden_size=32, intermediate_size=32, kv_heads=1)
    return prepare_model(ModelSpec(source="tiny", context_tokens=16, tiny=shape), directory, seed, "float32")


def test_a_merge_is_the_weighted_mean(tmp_path):
    paths = [made(tmp_path, seed) for seed in (0, 1)]
    merged = merged_weights([str(path) for path in paths], [0.25, 0.75])
    first, second = (dict(load_policy(path, "float32").named_parameters()) for path in paths)
    assert merged.keys() == first.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, 0.25 * first[name].detach() + 0.75 * second[name].detach())


def test_weights_that_do_not_fit_are_refused_by_the_name_of_the_first_difference(tmp_path):
    config = tiny_config(TinySpec(layers=2, hidden_size=32, intermediate_size=32, kv_heads=1), 16)
    with pytest.raises(
        BadInput, match=r"recipe\.1\.start: .* does not fit the model: model\.layers\.1\.\S+ is None there"
    ):
        check_weights(made(tmp_path), "recipe.1.start", config)
    check_weights(made(tmp_path, layers=2), "recipe.1.start", config)
    check_weights(made(tmp_path), "recipe.1.start", None)


def test_a_directory_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"recipe\.0\.start: .*gone: no such directory"):
        check_weights(tmp_path / "gone", "recipe.0.start", None)
    with pytest.raises(BadInput, match=r"recipe\.0\.start: .* lacks config\.json"):
        check_weights(tmp_path, "recipe.0.start", None)
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(BadInput, match="no usable config"):
        check_weights(tmp_path, "recipe.0.start", None)
