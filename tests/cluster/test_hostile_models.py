"""Damaged and malicious model directories: `plan` and the loaders use what is whole, or name what is not.

No code and no pickle of theirs ever runs."""

import json
import os
import pickle
import shutil
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hostile import Bomb, answered, assert_names, damaged, dumped, mutated, untouched
from small_spec import small

from cluster import plan as plan_module
from cluster.capacity import Node
from trainer.models import load_config, load_policy, load_tokenizer, parameter_count, prepare_model
from trainer.spec import ModelSpec
from trainer.types import BadInput
from trainer.weights import check_weights

TINY = {"layers": 1, "hidden_size": 32, "intermediate_size": 32, "kv_heads": 1}
LOUD = "from pathlib import Path\nPath({mark!r}).mkdir()\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    model = ModelSpec.model_validate({"source": "tiny", "tiny": TINY, "context_tokens": 64})
    return prepare_model(model, tmp_path_factory.mktemp("models"), seed=0, dtype="float32")


@pytest.fixture
def model_dir(whole, tmp_path, monkeypatch) -> Path:
    """A copy of the tiny model, and a spec that uses it."""
    (tmp_path / "outside").mkdir()
    shutil.copyfile(whole / "model.safetensors", tmp_path / "outside" / "stolen.safetensors")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(plan_module, "nodes_of", lambda address: [Node(2, 0, 2**33)])
    data = small()
    data["model"] = {"source": str(tmp_path / "model"), "context_tokens": 64}
    Path("spec.yaml").write_text(dumped(data))
    return shutil.copytree(whole, tmp_path / "model")


def loaded(path: Path) -> str:
    """As a run would use the directory; the whole policy too."""
    model = ModelSpec(source=str(path), context_tokens=64)
    try:
        prepare_model(model, path.parent / "cache", seed=0, dtype="float32")
        load_tokenizer(path)
        parameter_count(model)
        check_weights(path, "recipe.0.start", load_config(path))
    except BadInput as error:
        assert_names(str(error)[:5000], str(path.parent))
        return "refused"
    return "loaded"


def restore(whole: Path, path: Path) -> None:
    shutil.rmtree(path)
    shutil.copytree(whole, path)


def damage(path: Path, rng: Random) -> None:
    file = path / rng.choice(
        ("config.json", "config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
    )
    if file.suffix == ".json" and rng.random() < 0.7:
        file.write_text(dumped(mutated(json.loads(file.read_text()), rng)))
    else:
        content = file.read_bytes()
        head = min(len(content), 4000)  # of the weights: where their header is
        file.write_bytes(damaged(content[:head], rng) + content[head:])


def test_damaged_directories(whole, model_dir, tmp_path):
    rng, outcomes = Random(41), []
    with untouched(tmp_path / "outside"), untouched(tmp_path / "work"):
        for _ in range(100):
            damage(model_dir, rng)
            outcomes.append(loaded(model_dir))
            restore(whole, model_dir)
    assert len(outcomes) == 100
    assert {"loaded", "refused"} == set(outcomes)


def test_damaged_directories_in_a_plan(whole, model_dir, tmp_path):
    rng, codes = Random(42), []
    with untouched(tmp_path / "outside"):
        for _ in range(30):
            damage(model_dir, rng)
            result = answered("plan", "spec.yaml")
            codes.append(result.exit_code)
            assert result.exit_code in (0, 2)
            restore(whole, model_dir)
    assert len(codes) == 30
    assert {0, 2} == set(codes)


INDEXES = {
    "a path upwards": {"weight_map": {"a": "../outside/stolen.safetensors"}},
    "an absolute path": {"weight_map": {"a": "/etc/passwd"}},
    "a pickle": {"weight_map": {"a": "pytorch_model.bin"}}, "a number": {"weight_map": {"a": 1}},
    "a list": [], "nothing": {},
    "no map": {"weight_map": None}, "an empty map": {"weight_map": {}},
    "a missing shard": {"weight_map": {"a": "x.safetensors"}},
    "an empty name": {"weight_map": {"a": ""}}, "a list for a name": {"weight_map": {"a": []}},
    "NUL": {"weight_map": {"a": "\0"}},
}  # fmt: skip


@pytest.mark.parametrize("index", INDEXES.values(), ids=INDEXES)
def test_an_index_that_leads_elsewhere_is_refused(model_dir, index):
    (model_dir / "model.safetensors").unlink()
    (model_dir / "model.safetensors.index.json").write_text(json.dumps(index))
    assert loaded(model_dir) == "refused"


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pkl", "weights.ckpt"]
)
def test_pickled_weights_are_refused_and_never_read(model_dir, tmp_path, name):
    bomb = pickle.dumps(Bomb(tmp_path / "ran"))
    (model_dir / name).write_bytes(bomb)
    (model_dir / "training_args.bin").write_bytes(bomb)
    assert loaded(model_dir) == "loaded"  # its safetensors are there
    load_policy(model_dir, "float32")
    (model_dir / "model.safetensors").unlink()
    assert loaded(model_dir) == "refused"
    with pytest.raises(OSError, match="safetensors"):
        load_policy(model_dir, "float32")
    (model_dir / "model.safetensors").write_bytes(bomb)
    assert loaded(model_dir) == "refused"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("model_type", ["qwen3", "custom"])
@pytest.mark.parametrize("place", ["config", "tokenizer", "both"])
def test_code_of_a_model_never_runs(model_dir, tmp_path, monkeypatch, place, model_type):
    """Nor is anybody asked whether it may: transformers would, and take a `y` from wherever the input comes from."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    for name in ("configuration_x", "modeling_x", "tokenization_x"):
        (model_dir / f"{name}.py").write_text(LOUD.format(mark=str(tmp_path / "ran")))
    autos = {
        "AutoConfig": "configuration_x.C",
        "AutoModelForCausalLM": "modeling_x.M",
        "AutoTokenizer": ["tokenization_x.T"] * 2,
    }
    for name in {"config": ["config.json"], "tokenizer": ["tokenizer_config.json"]}.get(
        place, ["config.json", "tokenizer_config.json"]
    ):
        data = json.loads((model_dir / name).read_text())
        data["auto_map"] = autos
        if name == "config.json":
            data["model_type"] = model_type
        elif model_type == "custom":
            data["tokenizer_class"] = "T"
        (model_dir / name).write_text(json.dumps(data))
    loaded(model_dir)
    answered("plan", "spec.yaml")
    assert not (tmp_path / "ran").exists()


ODD_CONFIGS: list[dict[str, Any]] = [
    {"num_hidden_layers": 10**9}, {"num_hidden_layers": -1}, {"num_hidden_layers": "2"}, {"hidden_size": 10**12},
    {"vocab_size": 2**62}, {"num_attention_heads": 0}, {"attn_implementation": "someone/kernel"},
    {"dtype": "os.system"},
    {"_attn_implementation": "someone/kernel"}, {"quantization_config": {"quant_method": "gptq"}},
    {"architectures": ["os"]},
    {"model_type": "../../x"}, {"max_position_embeddings": None}, {"rope_parameters": {"rope_type": "x"}},
    {"layer_types": [1]},
]  # fmt: skip


@pytest.mark.parametrize("change", ODD_CONFIGS, ids=str)
def test_configs_that_mean_no_good(model_dir, change):
    path = model_dir / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    loaded(model_dir)
    assert answered("plan", "spec.yaml").exit_code in (0, 2)


def test_an_adapter_is_refused(model_dir):
    """With peft installed, its base would be fetched from wherever it says."""
    (model_dir / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/else"}))
    assert loaded(model_dir) == "refused"


def test_a_whole_directory_is_loaded(model_dir):
    assert loaded(model_dir) == "loaded"
    assert answered("plan", "spec.yaml").exit_code == 0
    assert os.listdir(model_dir)
    assert all(torch.isfinite(p).all() for p in load_policy(model_dir, "float32").parameters())
