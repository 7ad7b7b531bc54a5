"""Speculation never changes what is sampled, whatever drafts, however much, and whenever another drafter comes."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from actors.engine_config import EngineConfig
from actors.speculation import Speculation
from drafter.config import HeadConfig
from drafter.features import FeatureSequence
from drafter.files import named_weights, save_head
from drafter.model import DraftHead
from drafter.training import DrafterTrainer, TrainingSettings
from drafter.vocabulary import DraftVocabulary
from trainer.models import prepare_model
from trainer.spec import ModelSpec, TinySpec

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]
ENVIRONMENT = {"env_vars": {"TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"}}
K_MAX, TOKENS, RESPONSES = 4, 16, 14_000
"""14,000 responses of up to 16 tokens: more than 200,000 sampled tokens per method and K."""
LEVEL = 1e-4
"""Of the chi-square test at each position, divided by the number of positions."""
METHODS = ("eagle3", "eagle", "ngram")


def sharpened(path: Path) -> Path:
    """The model with logits seven times as large: at temperature 1 drafts are then accepted, and rejected, often."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(path / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 7
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def trained_head(path: Path, form: str, target: Path) -> DraftHead:
    """A head that has seen a few of the target's samples; eagle3 with a reduced vocabulary."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    torch.manual_seed(0)
    prompts = torch.tensor([[5, 6, 7]] * 64)
    tokens = model.generate(prompts, do_sample=True, top_k=0, max_new_tokens=24, min_new_tokens=24, pad_token_id=0)
    data = json.loads((target / "config.json").read_text())
    size = 60 if form == "eagle3" else None
    config = HeadConfig.for_target(data, form, draft_vocab_size=size, trained_steps=K_MAX)
    with torch.no_grad():
        states = model.model(tokens, output_hidden_states=True)
    last = states.last_hidden_state.numpy()
    wide = torch.cat([states.hidden_states[i] for i in config.aux_layers], -1).numpy() if config.aux_layers else last
    ids = tokens.numpy().astype(np.int32)
    sequences = [FeatureSequence(f"{i:x}", 0, ids[i], 3, wide[i], last[i]) for i in range(len(ids))]
    counts = np.bincount(ids.ravel(), minlength=config.vocab_size)
    vocabulary = DraftVocabulary.chosen(counts, 60, keep=[1]) if form == "eagle3" else None
    embedding, lm_head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    trainer = DrafterTrainer(config, embedding, lm_head, TrainingSettings(steps=K_MAX), vocabulary)
    for step in range(200):
        trainer.micro_step([sequences[(8 * step + i) % 64] for i in range(8)])
    save_head(trainer.head, path)
    return trainer.head


@pytest.fixture(scope="module")
def hosts(ray_cluster, tmp_path_factory):
    """A plain engine and one per method, on one small sharp model; and the weights of two eagle3 heads."""
    import ray
    from engine_host import EngineHost

    from actors.buckets import pack

    directory = tmp_path_factory.mktemp("speculation")
    tiny = TinySpec(layers=4, hidden_size=64, intermediate_size=128, kv_heads=1)
    model = ModelSpec(source="tiny", context_tokens=64, tiny=tiny)
    target = sharpened(prepare_model(model, directory, 1, "float32"))
    heads = {form: trained_head(directory / form, form, target) for form in ("eagle3", "eagle")}

    def host(speculation: Speculation | None, core: int):
        config = EngineConfig(str(target), "float32", 64, 256, 2**26, 0.5, 1, 1, 0, speculation=speculation)
        return ray.remote(EngineHost).options(num_cpus=0, runtime_env=ENVIRONMENT).remote(config)

    found = {"plain": host(None, 0), "ngram": host(Speculation("ngram", None, "adaptive", K_MAX, False), 1)}
    for core, form in enumerate(heads):
        found[form] = host(Speculation(form, str(directory / form), "adaptive", K_MAX, True), core)
    assert ray.get([found[name].off.remote() for name in METHODS]) == [None] * 3
    torch.manual_seed(3)
    other = DraftHead(heads["eagle3"].config, heads["eagle3"].vocabulary)
    trained, worse, eagle = (
        ray.put(pack(list(named_weights(head)), torch.float32)) for head in (heads["eagle3"], other, heads["eagle"])
    )
    weights = {"trained": trained, "other": worse, "eagle_trained": eagle}
    yield SimpleNamespace(**found, **weights, target=target, directory=directory)
    for actor in found.values():
        ray.kill(actor)


@pytest.fixture(scope="module")
def plain_samples(hosts) -> np.ndarray:
    import ray

    return ray.get(hosts.plain.sample.remote([[5, 6, 7]] * RESPONSES, TOKENS, 1.0))[0]


def indistinguishable(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Two-sample chi-square of the tokens at every position, rare tokens pooled; -1 (ended) is a token too."""
    for position in range(ours.shape[1]):
        counts = np.stack([np.bincount(s[:, position] + 1, minlength=128) for s in (ours, theirs)]).astype(float)
        frequent = counts.sum(0) >= 20
        table = np.column_stack([counts[:, frequent], counts[:, ~frequent].sum(1)])
        table = table[:, table.sum(0) > 0]
        expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
        statistic, freedom = ((table - expected) ** 2 / expected).sum(), table.shape[1] - 1
        p = float(torch.special.gammaincc(torch.tensor(freedom / 2.0), torch.tensor(statistic / 2)))
        assert p > LEVEL / ours.shape[1], f"position {position}: chi-square {statistic:.0f} of {freedom}, p = {p:.1e}"


@pytest.mark.parametrize("k", range(1, K_MAX + 1))
def test_the_distribution_is_the_same_for_every_method_and_k(k, hosts, plain_samples):
    import ray

    prompts = [[5, 6, 7]] * RESPONSES
    calls = {method: getattr(hosts, method).sample.remote(prompts, TOKENS, 1.0, k) for method in METHODS}
    for method, call in calls.items():
        sampled, row = ray.get(call)
        assert (sampled >= 0).sum() >= 200_000
        assert row["accepted_tokens"] > 1000, f"{method}: hardly a draft was accepted, nothing is tested"
        assert row["accepted_tokens"] < 0.9 * row["draft_tokens"], f"{method}: hardly a draft was rejected"
        indistinguishable(sampled, plain_samples)


def test_the_distribution_is_the_same_while_drafters_change_in_mid_generation(hosts, plain_samples):
    import ray

    updates = [hosts.trained, hosts.other] * 10
    sampled, row = ray.get(hosts.eagle3.sample.remote([[5, 6, 7]] * RESPONSES, TOKENS, 1.0, 2, updates))
    assert row["accepted_tokens"] > 1000
    indistinguishable(sampled, plain_samples)


def test_a_wrong_sampler_would_be_noticed(plain_samples):
    """The test itself: two halves of a sample agree, one response in twenty that is always the same is noticed."""
    half = len(plain_samples) // 2
    ours, tilted = plain_samples[:half], plain_samples[half:].copy()
    indistinguishable(ours, tilted)
    tilted[::20] = ours[0]
    with pytest.raises(AssertionError, match="position"):
        indistinguishable(ours, tilted)


def test_at_temperature_0_every_token_of_200_prompts_is_the_same(hosts):
    import ray

    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 90, rng.integers(2, 12)).tolist() for _ in range(200)]
    plain = ray.get(hosts.plain.sample.remote(prompts, 32, 0.0))[0]
    for method in METHODS:
        for how in ("adaptive", *range(1, K_MAX + 1)):
            if method == "ngram" and how == "adaptive":
                how = "ngram"
            sampled, row = ray.get(getattr(hosts, method).sample.remote(prompts, 32, 0.0, how))
            np.testing.assert_array_equal(sampled, plain, err_msg=f"{method}, K = {how}")
            assert row["accepted_tokens"] > 0
    _, learned = ray.get(hosts.eagle3.sample.remote(prompts, 32, 0.0, 2))
    mixed, row = ray.get(hosts.eagle3.sample.remote(prompts, 32, 0.0, "ngram"))  # looked up by the scheduler
    np.testing.assert_array_equal(mixed, plain)
    assert row["accepted_tokens"] > 0
    _, again = ray.get(hosts.eagle3.sample.remote(prompts, 32, 0.0, 2))
    assert again["accepted_tokens"] == learned["accepted_tokens"], "n-grams go on proposing where the head should"


@pytest.mark.parametrize("form", ["eagle3", "eagle"])
def test_at_temperature_0_a_drafter_update_in_mid_generation_changes_no_token(form, hosts):
    """The eagle form shares the target's output head, which a reload must not touch."""
    import ray

    rng = np.random.default_rng(1)
    prompts = [rng.integers(3, 90, 6).tolist() for _ in range(64)]
    plain = ray.get(hosts.plain.sample.remote(prompts, 48, 0.0))[0]
    updates = [hosts.trained, hosts.other, hosts.trained] if form == "eagle3" else [hosts.eagle_trained] * 3
    changed, _ = ray.get(getattr(hosts, form).sample.remote(prompts, 48, 0.0, 2, updates))
    np.testing.assert_array_equal(changed, plain)


def test_a_published_drafter_drafts_as_the_one_on_disk(hosts):
    """Through vLLM's draft weight update, also of a reduced vocabulary: as much is accepted, less of a worse one."""
    import ray

    def accept_length(ref) -> float:
        updates = [ref] if ref is not None else []
        ray.get(hosts.eagle3.sample.remote([[5, 6, 7]] * 64, 12, 1.0, 2, updates))
        return ray.get(hosts.eagle3.sample.remote([[5, 6, 7]] * 1024, 16, 1.0, 2))[1]["accept_length"]

    published, worse = accept_length(hosts.trained), accept_length(hosts.other)
    assert worse < published - 0.05
    assert accept_length(hosts.trained) == pytest.approx(published, abs=0.04)


def test_every_engine_proves_its_sampler_in_under_a_second(hosts):
    import ray

    for method in METHODS:
        found, seconds = ray.get(getattr(hosts, method).proof.remote())
        assert found == [None]
        assert seconds < 1


def test_an_engine_whose_sampler_is_not_mended_does_not_speculate(hosts):
    """vLLM 0.32 on CPU samples garbage at a temperature above 0 without the plugin's mend."""
    import ray
    from engine_host import EngineHost

    speculation = Speculation("eagle3", str(hosts.directory / "eagle3"), "adaptive", K_MAX, True)
    config = EngineConfig(str(hosts.target), "float32", 64, 256, 2**26, 0.5, 1, 1, 0, speculation=speculation)
    host = ray.remote(EngineHost).options(num_cpus=0, runtime_env=ENVIRONMENT).remote(config, mended=False)
    assert "speculative sampling differs from plain sampling" in ray.get(host.off.remote())
    _, row = ray.get(host.sample.remote([[5, 6, 7]] * 32, 16, 1.0))
    assert row["draft_tokens"] == 0
    ray.kill(host)
