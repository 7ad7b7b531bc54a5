"""vLLM loads a trained head, and accepts as many of its drafts as the trainer's own evaluation says."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from drafter.config import HeadConfig
from drafter.features import FeatureSequence
from drafter.files import save_head
from drafter.training import DrafterTrainer, TrainingSettings
from drafter.vocabulary import DraftVocabulary

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

K, RESPONSE_TOKENS, PROMPTS = 3, 40, 48


@pytest.fixture(scope="module")
def target_dir(tmp_path_factory) -> Path:
    from trainer.models import prepare_model
    from trainer.spec import ModelSpec, TinySpec

    shape = TinySpec(layers=4, hidden_size=64, intermediate_size=128, kv_heads=1)
    model = ModelSpec(source="tiny", context_tokens=96, tiny=shape)
    return prepare_model(model, tmp_path_factory.mktemp("model"), 5, "float32")


def greedy(target_dir: Path) -> tuple[torch.nn.Module, list[list[int]], list[list[int]]]:
    """The target, prompts, and its greedy responses to them."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(target_dir, dtype=torch.float32)
    rng = np.random.default_rng(0)
    prompts = torch.from_numpy(rng.integers(3, 90, (PROMPTS, 6)))
    out = model.generate(
        prompts, do_sample=False, max_new_tokens=RESPONSE_TOKENS, min_new_tokens=RESPONSE_TOKENS, pad_token_id=0
    )
    return model, prompts.tolist(), out[:, 6:].tolist()


def features(model, config: HeadConfig, prompts, responses) -> list[FeatureSequence]:
    tokens = torch.tensor([p + r for p, r in zip(prompts, responses, strict=True)])
    with torch.no_grad():
        hidden = model.model(tokens, output_hidden_states=True)
    last = hidden.last_hidden_state.numpy()
    wide = torch.cat([hidden.hidden_states[i] for i in config.aux_layers], -1).numpy() if config.aux_layers else last
    ids = tokens.numpy().astype(np.int32)
    return [FeatureSequence(str(i), 0, ids[i], 6, wide[i], last[i]) for i in range(len(ids))]


@pytest.mark.parametrize("form", ["eagle3", "eagle"])
def test_vllm_accepts_what_the_trainer_says_it_will(form, target_dir, tmp_path, monkeypatch):
    config_data = json.loads((target_dir / "config.json").read_text())
    model, prompts, responses = greedy(target_dir)
    counts = np.bincount(np.concatenate(responses), minlength=config_data["vocab_size"])
    vocabulary = DraftVocabulary.chosen(counts, 80, keep=[1]) if form == "eagle3" else None
    config = HeadConfig.for_target(
        config_data, form, draft_vocab_size=80 if form == "eagle3" else None, trained_steps=K
    )
    data = features(model, config, prompts, responses)
    embedding, lm_head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    settings = TrainingSettings(steps=K, temperature=0.2)
    trainer = DrafterTrainer(config, embedding, lm_head, settings, vocabulary)
    for step in range(40):
        trainer.micro_step([data[i % 32] for i in range(8 * step, 8 * step + 8)])
    right, drafts = trainer.evaluate(data, K)
    save_head(trainer.head, tmp_path / "head")
    measured_drafts, measured, tokens = generated(target_dir, tmp_path / "head", form, prompts, monkeypatch)
    assert tokens == responses, "speculation has changed a token"
    assert right[0] > 0.2 * drafts, "the head has learned nothing, so the comparison would be of zeros"
    assert abs(measured_drafts - drafts) <= 3, "the engine's drafts are the evaluation's, but for ties by rounding"
    np.testing.assert_allclose(measured[0], right[0], atol=3)
    # vLLM also counts what it accepts beyond the last token that was asked for.
    np.testing.assert_allclose(measured / drafts, right / drafts, atol=0.03)


def generated(target_dir, head_dir, form, prompts, monkeypatch):
    """Number of drafts, accepted tokens per position and the responses of a real engine."""
    environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1"}
    for name, value in environment.items():
        monkeypatch.setitem(os.environ, name, value)
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(target_dir), dtype="float32", max_model_len=96, enforce_eager=True, disable_log_stats=False,
        max_num_seqs=64, speculative_config={"method": form, "model": str(head_dir), "num_speculative_tokens": K},
    )  # fmt: skip
    params = SamplingParams(temperature=0, max_tokens=RESPONSE_TOKENS, ignore_eos=True, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    metrics = {metric.name: metric for metric in llm.get_metrics()}
    drafts = metrics["vllm:spec_decode_num_drafts"].value
    accepted = np.array(metrics["vllm:spec_decode_num_accepted_tokens_per_pos"].values, float)
    return drafts, accepted, [list(out.outputs[0].token_ids) for out in outputs]
