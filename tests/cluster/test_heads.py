"""The head that a run starts with: made for its target, or refused with the file and field before anything starts."""

import json
import shutil
from pathlib import Path

import pytest
from small_spec import small

from cluster.heads import prepare_head, speculation, tap
from cluster.spec import parse_spec
from drafter.files import load_head
from drafter.spec import DrafterSpec
from trainer.models import load_tokenizer, prepare_model
from trainer.tasks import build_pools
from trainer.types import BadInput


def spec_with(**drafter):
    return parse_spec({**small(), "drafter": {"method": "eagle3", **drafter}}, "run.yaml")


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Path:
    return prepare_model(spec_with().model, tmp_path_factory.mktemp("model"), 1, "float32")


def prepared(spec, target: Path, directory: Path) -> Path:
    tokenizer = load_tokenizer(target)
    return prepare_head(spec, target, build_pools(spec.task, tokenizer, 48), tokenizer, directory)


@pytest.fixture
def head_dir(target, tmp_path) -> Path:
    return prepared(spec_with(), target, tmp_path)


def test_a_head_of_random_weights_fits_its_target(target, head_dir):
    head = load_head(head_dir, json.loads((target / "config.json").read_text()))
    assert head.config.trained_steps == spec_with().drafter.train.steps


def test_a_reduced_vocabulary_holds_the_tokens_of_the_task_and_the_end(target, tmp_path):
    head = load_head(prepared(spec_with(draft_vocabulary=20), target, tmp_path))
    tokenizer = load_tokenizer(target)
    digits = {tokenizer.convert_tokens_to_ids(str(d)) for d in range(10)}
    assert len(head.draft_ids) == 20
    assert digits | {tokenizer.eos_token_id} <= set(head.draft_ids.tolist())


def test_training_is_on_unless_it_is_switched_off():
    """Gap 12: the released configuration speculates with a head that nobody trains."""
    assert DrafterSpec(method="eagle3").trains
    assert not DrafterSpec(method="ngram").trains


def test_nothing_is_asked_for_without_a_method(target, tmp_path):
    spec = parse_spec(small(), "run.yaml")
    assert prepared(spec, target, tmp_path) is None
    assert speculation(spec, None) is None
    assert tap(spec, None) is None


def test_the_learner_taps_what_the_head_reads(head_dir):
    config = tap(spec_with(), head_dir)
    assert config.aux_layers == load_head(head_dir).config.aux_layers
    assert config.bytes_per_token == (len(config.aux_layers) + 1) * 64 * 2


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("hidden_size", 128, "hidden_size"), ("vocab_size", 500, "vocab_size")],
)
def test_a_head_of_another_target_is_refused_by_its_field(field, value, message, target, head_dir):
    other = head_dir.parent / "other"
    shutil.copytree(target, other)
    config = json.loads((other / "config.json").read_text())
    config[field] = value
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=message):
        load_head(head_dir, config)
    with pytest.raises(BadInput, match=rf"config\.json: {message}"):
        prepare_head(spec_with(source=str(head_dir)), other, None, None, head_dir.parent)


def test_more_draft_tokens_than_the_head_was_trained_for_are_refused(target, head_dir):
    with pytest.raises(BadInput, match=r"max_draft_tokens = 8 is more than the train\.steps = 6"):
        spec_with(max_draft_tokens=8)
    spec = spec_with(source=str(head_dir), max_draft_tokens=8, train={"enabled": False})
    with pytest.raises(BadInput, match=r"8 draft tokens, but the head was trained for 1 \.\. 6"):
        prepared(spec, target, head_dir.parent)


def test_a_corrupt_head_is_refused_by_its_file(target, head_dir):
    weights = head_dir / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BadInput, match=r"model\.safetensors"):
        prepared(spec_with(source=str(head_dir)), target, head_dir.parent)


def test_a_head_of_the_other_form_is_refused(target, head_dir):
    with pytest.raises(BadInput, match="is a head for method eagle3, not eagle"):
        prepared(spec_with(source=str(head_dir), method="eagle"), target, head_dir.parent)


def test_a_family_without_hidden_states_is_refused_by_name(target, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(target, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    with pytest.raises(BadInput, match=r"drafter\.method: eagle3 does not fit .* model_type 'gpt2'"):
        prepare_head(spec_with(), other, build_pools(spec_with().task, load_tokenizer(target), 48), None, tmp_path)


@pytest.mark.parametrize(
    ("drafter", "message"),
    [
        ({"draft_tokens": 7}, r"draft_tokens = 7 is more than max_draft_tokens = 6"),
        ({"draft_tokens": [[1, 8, 4], [10, 20, 2]]}, "leave no gap"),
        ({"draft_tokens": [[1, 8, 9]]}, r"K = 9 is more than max_draft_tokens = 6"),
        ({"train": {"enabled": False}}, "a head of random weights that nobody trains"),
        ({"train": {"sleep": True}}, "frees GPU memory, and cluster.gpus_per_rollout_worker is 0"),
        ({"method": "ngram", "source": "somewhere"}, "source is of no use to method = ngram"),
    ],
)
def test_a_drafter_section_that_contradicts_itself_is_refused(drafter, message):
    with pytest.raises(BadInput, match=message):
        spec_with(**drafter)


def test_a_deterministic_run_does_not_speculate():
    data = {**small(), "drafter": {"method": "ngram"}}
    data["run"] = {**data["run"], "deterministic": True}
    with pytest.raises(BadInput, match=r"run\.deterministic excludes drafter\.method"):
        parse_spec(data, "run.yaml")
