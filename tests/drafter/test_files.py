"""A head on disk: what comes back, and what is refused by name."""

import json

import numpy as np
import pytest
import torch
from draft_cases import TARGET, VOCAB, config
from safetensors.torch import load_file, save_file

from drafter.checkpoints import BackgroundSaver, load_state, save_state
from drafter.files import CONFIG, WEIGHTS, check_draft_tokens, load_head, named_weights, save_head
from drafter.model import DraftHead
from drafter.vocabulary import DraftVocabulary
from trainer.types import BadInput


@pytest.fixture
def saved(tmp_path):
    head = DraftHead(config("eagle3", draft_vocab_size=20), DraftVocabulary(np.arange(5, 25), VOCAB))
    save_head(head, tmp_path / "head")
    return head, tmp_path / "head"


@pytest.mark.parametrize("form", ["eagle3", "eagle"])
def test_a_saved_head_comes_back(form, tmp_path):
    head = DraftHead(config(form))
    for _ in range(2):  # over an older one, too
        save_head(head, tmp_path / "head")
    back = load_head(tmp_path / "head", TARGET)
    assert back.config == head.config
    assert [path.name for path in tmp_path.iterdir()] == ["head"], "nothing is left beside"
    for (name, tensor), (other, again) in zip(named_weights(head), named_weights(back), strict=True):
        assert name == other
        assert torch.equal(tensor, again)


def test_a_reduced_vocabulary_comes_back(saved):
    _, path = saved
    assert load_head(path, TARGET).vocabulary.ids.tolist() == list(range(5, 25))
    assert {"d2t", "t2d", "lm_head.weight", "midlayer.self_attn.q_proj.weight"} <= load_file(path / WEIGHTS).keys()


@pytest.mark.parametrize(("field", "value"), [("hidden_size", 32), ("vocab_size", 40), ("num_hidden_layers", 8)])
def test_another_target_is_refused(saved, field, value):
    with pytest.raises(BadInput, match=f"{CONFIG}: {field.replace('num_hidden', 'target')}"):
        load_head(saved[1], TARGET | {field: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm.weight": None}, "norm.weight is missing"),
        ({"norm.weight": torch.ones(3)}, "norm.weight is"),
        ({"fc.weight": torch.full((16, 48), float("nan"))}, "fc.weight holds"),
        ({"extra": torch.ones(1)}, "extra is no tensor"),
        ({"d2t": None}, "d2t"),
        ({"d2t": torch.arange(20) * 5}, "vocabulary"),
        ({"t2d": torch.zeros(VOCAB, dtype=torch.bool)}, "t2d"),
    ],
)
def test_tensors_that_do_not_fit_are_named(saved, change, message):
    path = saved[1]
    tensors = load_file(path / WEIGHTS) | change
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path / WEIGHTS)
    with pytest.raises(BadInput, match=rf"{WEIGHTS}: .*{message}"):
        load_head(path, TARGET)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting"),
        ("[]", "list"),
        ("{}", "tailrace is missing"),
        ('{"tailrace": {"form": "x"}, "architectures": []}', "form"),
    ],
)
def test_a_broken_config_is_named(saved, text, message):
    (saved[1] / CONFIG).write_text(text)
    with pytest.raises(BadInput, match=rf"{CONFIG}: .*{message}"):
        load_head(saved[1])


def test_a_config_field_that_does_not_fit_is_named(saved):
    data = json.loads((saved[1] / CONFIG).read_text())
    (saved[1] / CONFIG).write_text(json.dumps(data | {"num_key_value_heads": 3}))
    with pytest.raises(BadInput, match=rf"{CONFIG}: .*kv_heads"):
        load_head(saved[1])


def test_missing_and_truncated_files_are_named(saved, tmp_path):
    with pytest.raises(BadInput, match=CONFIG):
        load_head(tmp_path / "nowhere")
    weights = saved[1] / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BadInput, match=WEIGHTS):
        load_head(saved[1])


def test_more_draft_tokens_than_trained_for_are_refused():
    shape = config("eagle3", trained_steps=3)
    check_draft_tokens(shape, 3)
    for k in (0, 4):
        with pytest.raises(BadInput, match="draft tokens"):
            check_draft_tokens(shape, k)


def test_what_is_saved_in_the_background_is_the_state_of_the_call(tmp_path):
    saver, tensor = BackgroundSaver(), torch.zeros(1000)
    saver.save({"a": tensor}, tmp_path / "state")
    tensor += 1
    saver.close()
    assert not load_state(tmp_path / "state")["a"].any()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failed_background_save_is_raised(tmp_path):
    saver = BackgroundSaver()
    saver.save({"a": torch.zeros(1)}, tmp_path / "nowhere" / "state")
    with pytest.raises(Exception, match="No such file"):
        saver.wait()
    saver.close()


def test_a_truncated_state_is_named(tmp_path):
    save_state({"a": torch.zeros(100)}, tmp_path / "state")
    (tmp_path / "state").write_bytes((tmp_path / "state").read_bytes()[:50])
    with pytest.raises(BadInput, match="state"):
        load_state(tmp_path / "state")
