"""The learner on real DeepSpeed: how the work is spread over ranks, and what they shard, changes nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from actors.learner import LearnerRank
from actors.learner_config import LearnerConfig
from trainer.spec import LearnerSpec, ModelSpec, ObjectiveSpec, TaskSpec, TinySpec
from trainer.types import Group, Prompt

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

TINY = ModelSpec(source="tiny", context_tokens=48, tiny=TinySpec(layers=2, hidden_size=64, intermediate_size=128))
TASK = TaskSpec.model_validate(
    {"sources": [{"kind": "reasoning_gym", "generator": "chain_sum", "train_prompts": 1}], "template": "{question}"}
)
PROMPTS = [Prompt(str(i), "x", "q", "a", tuple(range(5, 9 + i)), 0) for i in range(4)]
HELDOUT = [
    *(Prompt(str(i), "long", "q", "12345"[: i + 1], tuple(range(5, 9 + i)), 0) for i in range(5)),
    Prompt("5", "short", "q", "7", (5, 6), 0),
    Prompt("6", "unanswered", "q", "", (5, 6), 0),
]
ENVIRONMENT = {"env_vars": {"TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"}}
LEARNING_RATE = 1e-3


def group_of(epoch: int, prompt: int, lengths: list[int], rewards: list[float]) -> Group:
    rng = np.random.default_rng([epoch, prompt])
    tokens = sum(lengths)
    return Group(
        f"{epoch}/{prompt}", epoch, prompt, epoch, rng.integers(3, 90, tokens, np.int32),
        rng.normal(-4.5, 0.3, tokens).astype(np.float32), np.array(lengths, np.int32), np.array(rewards),
        np.zeros(len(lengths), bool),
    )  # fmt: skip


def batch(epoch: int) -> list[Group]:
    """Groups of unequal size, with a singleton and with one whose rewards are equal."""
    return [
        group_of(epoch, 0, [3, 9, 1, 6, 2], [1, 0, 0, 0.5, 1]),
        group_of(epoch, 1, [7], [1]),
        group_of(epoch, 2, [4, 4, 11], [0.1, 0.1, 0.1]),
        group_of(epoch, 3, [2, 5], [0, 1]),
    ]


ALL_EQUAL = [group_of(7, 0, [3, 2, 4], [0.1] * 3), group_of(7, 1, [5], [1.0]), group_of(7, 2, [2, 2], [0.0, 0.0])]
NOT_A_NUMBER = [group_of(8, 0, [3, 2], [float("nan"), 1.0]), group_of(8, 3, [2, 5], [0, 1])]


@dataclass
class Course:
    """What a learner did, and its exported weights at three points."""

    language_loss: list[dict[str, list[float]]]
    """Before any update, by rank."""
    figures: list[list[dict[str, float]]]
    """By update, by rank."""
    after_updates: dict[str, np.ndarray]
    all_equal: list[dict[str, float]]
    after_all_equal: dict[str, np.ndarray]
    dropped: list[dict[str, float]]
    after_dropped: dict[str, np.ndarray]
    after_one_more: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    from trainer.models import prepare_model

    return prepare_model(TINY, tmp_path_factory.mktemp("model"), 0, "float32")


@pytest.fixture(scope="module")
def course(ray_cluster, model_dir, tmp_path_factory):
    """The course of a learner with so many ranks and that ZeRO stage, carried out once, in actors of its own."""
    known: dict[tuple[int, int], Course] = {}

    def carry_out(ranks: int, zero_stage: int) -> Course:
        key = ranks, zero_stage
        if key not in known:
            known[key] = _course(model_dir, ranks, zero_stage, tmp_path_factory.mktemp("exports"))
        return known[key]

    return carry_out


def _course(model_dir: Path, ranks_n: int, zero_stage: int, directory: Path) -> Course:
    import ray

    # Two short rows fit into a micro-batch, so the ranks have different numbers of them; two steps per pass.
    spec = LearnerSpec(
        ranks=ranks_n, zero_stage=zero_stage, micro_batch_tokens=30, minibatches=2, passes=2,
        objective=ObjectiveSpec(
            name="grpo", advantage="leave_one_out", clip_low=0.9, clip_high=9, mismatch="tis", mismatch_high=50,
            kl_coefficient=0.1,
        ),
    )  # fmt: skip
    config = LearnerConfig(str(model_dir), "float32", spec, 1.0, 1, "cpu", 0, 2**20)
    actor = ray.remote(LearnerRank).options(num_cpus=0.5, runtime_env=ENVIRONMENT)
    ranks = [actor.remote(config, i, TASK, {"train": PROMPTS, "heldout": HELDOUT}) for i in range(ranks_n)]

    def all_ranks(method: str, *args: Any) -> list[Any]:
        return ray.get([getattr(rank, method).remote(*args) for rank in ranks], timeout=120)

    def exported(name: str) -> dict[str, np.ndarray]:
        all_ranks("export", str(directory / name))
        return load_file(directory / name / "model.safetensors")

    try:
        all_ranks("start", *ray.get(ranks[0].address.remote(), timeout=120))
        all_ranks("refer_to", str(model_dir))
        language_loss = all_ranks("language_loss")
        figures = [all_ranks("update", batch(epoch), LEARNING_RATE) for epoch in range(3)]
        after_updates = exported("updates")
        all_equal = all_ranks("update", ALL_EQUAL, LEARNING_RATE)
        after_all_equal = exported("equal")
        dropped = all_ranks("update", NOT_A_NUMBER, LEARNING_RATE)
        after_dropped = exported("dropped")
        all_ranks("update", batch(3), LEARNING_RATE)
        return Course(
            language_loss, figures, after_updates, all_equal, after_all_equal, dropped, after_dropped,
            exported("one more"),
        )  # fmt: skip
    finally:
        for rank in ranks:
            ray.kill(rank)


SETTINGS = [(1, 1), (2, 1), (2, 2), (2, 3)]
"""(ranks, ZeRO stage)."""


def test_one_rank_learns(course, model_dir):
    found = course(1, 1)
    start = load_file(model_dir / "model.safetensors")
    assert start.keys() == found.after_updates.keys()
    moved = max(np.abs(start[name] - found.after_updates[name]).max() for name in start)
    assert LEARNING_RATE < moved < 13 * LEARNING_RATE
    # Two passes of two minibatches; one of singletons and equal rewards alone makes no step.
    assert all(2 <= figures["updates"] <= 4 and figures["grad_norm"] > 0.01 for (figures,) in found.figures)
    # The engine's log-probabilities are made up.
    assert all(
        figures["mismatch_kl"] > 0.01 and 0 < figures["effective_sample_share"] < 0.99 for (figures,) in found.figures
    )


@pytest.mark.parametrize(("ranks", "zero_stage"), SETTINGS[1:])
def test_ranks_and_zero_stage_change_neither_figures_nor_weights(course, ranks, zero_stage):
    ours, reference = course(ranks, zero_stage), course(1, 1)
    for by_rank, (expected,) in zip(ours.figures, reference.figures, strict=True):
        for figures in by_rank:
            assert figures == pytest.approx(expected, rel=1e-4, abs=1e-6)
    for name, expected in reference.after_updates.items():
        np.testing.assert_allclose(ours.after_updates[name], expected, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("ranks", "zero_stage"), SETTINGS)
def test_the_language_loss_of_all_ranks_is_that_of_the_answers_one_by_one(course, model_dir, ranks, zero_stage):
    import torch

    from trainer.models import load_policy, load_tokenizer

    model, tokenizer = load_policy(model_dir, "float32"), load_tokenizer(model_dir)
    expected = {"long": np.zeros(2), "short": np.zeros(2)}
    for prompt in HELDOUT[:6]:
        answer = [*tokenizer(prompt.answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt.token_ids, *answer]])).logits[0, -len(answer) - 1 : -1]
        nats = torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum").item()
        expected[prompt.family] += [nats, len(answer)]
    found = course(ranks, zero_stage).language_loss
    for family, sums in expected.items():
        assert sum(np.array(part[family]) for part in found if family in part) == pytest.approx(sums, rel=1e-5)
    assert not any("unanswered" in part for part in found)


@pytest.mark.parametrize(("ranks", "zero_stage"), SETTINGS)
def test_a_batch_in_which_all_responses_fare_alike_makes_no_update(course, ranks, zero_stage):
    found = course(ranks, zero_stage)
    assert [figures["updates"] for figures in found.all_equal] == [0] * ranks
    assert_same(found.after_updates, found.after_all_equal)


@pytest.mark.parametrize(("ranks", "zero_stage"), SETTINGS)
def test_a_step_with_a_loss_that_is_not_finite_is_dropped_and_the_next_ones_are_made(course, ranks, zero_stage):
    found, reference = course(ranks, zero_stage), course(1, 1)
    for figures in found.dropped:  # one of the two minibatches, in both passes
        assert (figures["dropped"], figures["updates"]) == (2, 2)
        assert np.isfinite(list(figures.values())).all()
    for name, expected in reference.after_one_more.items():
        assert np.isfinite(found.after_one_more[name]).all()
        assert not np.array_equal(found.after_one_more[name], found.after_dropped[name]) or "norm" in name
        np.testing.assert_allclose(found.after_one_more[name], expected, rtol=0, atol=2e-5, err_msg=name)


def assert_same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert np.array_equal(tensor, theirs[name]), name
