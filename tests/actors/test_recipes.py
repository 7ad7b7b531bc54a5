"""Stages of a recipe on real DeepSpeed: parallel averaging, weights to start from, the second Adam state."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_learner import ENVIRONMENT, PROMPTS, TASK, TINY, batch

from actors.learner import LearnerRank
from actors.learner_config import LearnerConfig
from trainer.spec import LearnerSpec
from trainer.stages import ParallelStage, SftStage

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]
RATE = 1e-3
Weights = dict[str, np.ndarray]


class Ranks:
    """A learner's ranks in actors of their own, under one ZeRO stage."""

    def __init__(self, model_dir: Path, ranks: int, zero_stage: int, scratch: Path) -> None:
        import ray

        spec = LearnerSpec(ranks=ranks, zero_stage=zero_stage, micro_batch_tokens=60, max_grad_norm=1e6)
        config = LearnerConfig(str(model_dir), "float32", spec, 1.0, 1, "cpu", 0, 2**20)
        actor = ray.remote(LearnerRank).options(num_cpus=0.5, runtime_env=ENVIRONMENT)
        self.actors = [actor.remote(config, i, TASK, {"train": PROMPTS, "heldout": []}) for i in range(ranks)]
        self.scratch, self.start_dir = scratch, model_dir
        self.all("start", *ray.get(self.actors[0].address.remote(), timeout=120))

    def all(self, method: str, *args: Any) -> Any:
        import ray

        return ray.get([getattr(rank, method).remote(*args) for rank in self.actors], timeout=120)[0]

    def weights(self) -> Weights:
        self.all("export", str(self.scratch / "now"))
        return load_file(self.scratch / "now" / "model.safetensors")

    def restart(self) -> None:
        """The weights of the start and a fresh optimizer."""
        self.all("load_weights", [str(self.start_dir)], [1.0])

    def parallel(self, combine: str, groups: list, step: int = 0, rate: float = RATE, sft_rate: float = RATE) -> dict:
        sft = {"batch_examples": 3, "learning_rate": None if combine == "sum_losses" else RATE}
        stage = ParallelStage.model_validate({"stage": "parallel", "epochs": 1, "combine": combine, "sft": sft})
        return self.all("parallel", groups, rate, stage, step, sft_rate, 0)

    def sft(self) -> dict:
        """The first batch of a parallel stage as a step of its own; the warm-up of 20 steps ends with the first."""
        stage = SftStage(stage="sft", steps=20, batch_examples=3, learning_rate=RATE)
        return self.all("teach", stage, range(1), 20, 0)


@pytest.fixture(scope="module", params=[(1, 1), (2, 2), (2, 3)], ids=["zero1", "zero2", "zero3"])
def ranks(request, ray_cluster, tmp_path_factory):
    import ray

    from trainer.models import prepare_model

    model_dir = prepare_model(TINY, tmp_path_factory.mktemp("model"), 0, "float32")
    found = Ranks(model_dir, *request.param, tmp_path_factory.mktemp("exports"))
    yield found
    for actor in found.actors:
        ray.kill(actor)


@pytest.fixture(autouse=True)
def _from_the_start(ranks):
    ranks.restart()


def moves(ranks: Ranks, *steps: Any) -> Weights:
    """What these calls change, from the start."""
    ranks.restart()
    start = ranks.weights()
    for step in steps:
        step()
    return {name: tensor - start[name] for name, tensor in ranks.weights().items()}


def assert_close(ours: Weights, theirs: Weights, scale: float = 1.0) -> None:
    """Adam's first step makes 1e-5 of rounding where a gradient is as small as its epsilon."""
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor, scale * theirs[name], rtol=0, atol=RATE / 20, err_msg=name)


def differ(ours: Weights, theirs: Weights) -> bool:
    return max(np.abs(ours[name] - theirs[name]).max() for name in ours) > RATE / 10


def test_without_a_step_of_sft_an_average_moves_half_of_rl(ranks):
    alone = moves(ranks, lambda: ranks.all("update", batch(0), RATE))
    assert_close(moves(ranks, lambda: ranks.parallel("average", batch(0), sft_rate=0.0)), alone, 0.5)


def test_without_a_gradient_of_rl_an_average_moves_half_of_sft(ranks):
    alone = moves(ranks, ranks.sft)
    assert_close(moves(ranks, lambda: ranks.parallel("average", [])), alone, 0.5)


def test_an_average_moves_the_mean_of_both_moves_from_the_same_weights(ranks):
    rl = moves(ranks, lambda: ranks.all("update", batch(0), RATE))
    sft = moves(ranks, ranks.sft)
    both = moves(ranks, lambda: ranks.parallel("average", batch(0)))
    assert_close(both, {name: (rl[name] + sft[name]) / 2 for name in rl})


class PlainTorch:
    """Parallel averaging by torch alone: whole batches, losses written out, an AdamW for each, nothing sharded."""

    def __init__(self, model_dir: Path) -> None:
        import torch

        from trainer.models import load_policy, load_tokenizer
        from trainer.solutions import References

        self.model = load_policy(model_dir, "float32")
        self.references = References(PROMPTS, load_tokenizer(model_dir), "one", TINY.context_tokens, 0)
        self.adams = [torch.optim.AdamW(self.model.parameters(), lr=RATE, weight_decay=0.0) for _ in range(2)]

    def update(self, groups: list, step: int) -> None:
        import torch

        parameters = list(self.model.parameters())
        start = [p.detach().clone() for p in parameters]
        gradients = [torch.autograd.grad(loss, parameters) for loss in (self.rl_loss(groups), self.sft_loss(step))]
        ends = []
        for adam, of_loss in zip(self.adams, gradients, strict=True):
            for p, value, gradient in zip(parameters, start, of_loss, strict=True):
                p.data.copy_(value)
                p.grad = gradient
            adam.step()
            ends.append([p.detach().clone() for p in parameters])
        for p, reinforced, taught in zip(parameters, *ends, strict=True):
            p.data.copy_((reinforced + taught) / 2)

    def logprobs(self, prompt: list[int], response: list[int]) -> Any:
        import torch

        logits = self.model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
        return torch.log_softmax(logits, -1)[range(len(response)), response]

    def rl_loss(self, groups: list) -> Any:
        """RGRA: siblings' mean off the reward, tokens of a prompt alike, prompts alike."""
        loss = 0.0
        for group in groups:
            for rollout in group if len(group) > 1 else []:
                siblings = (group.rewards.sum() - rollout.reward) / (len(group) - 1)
                logprobs = self.logprobs(list(PROMPTS[group.prompt].token_ids), rollout.token_ids.tolist())
                loss -= (rollout.reward - siblings) * logprobs.sum() / int(group.lengths.sum()) / len(groups)
        return loss

    def sft_loss(self, step: int) -> Any:
        import torch

        examples = self.references.batch(step, 3)
        return -torch.cat([self.logprobs(ids[:start], ids[start:]) for ids, start in examples]).mean()


def test_three_averaged_updates_are_those_of_plain_torch_with_two_adams(ranks):
    """The first step of Adam is the gradient's sign; from the second on moments of either side count."""
    plain = PlainTorch(ranks.start_dir)
    for step in range(3):
        plain.update(batch(step), step)
        ranks.parallel("average", batch(step), step)
        ours, theirs = ranks.weights(), dict(plain.model.named_parameters())
        gaps = np.concatenate([np.abs(ours[name] - theirs[name].detach().numpy()).ravel() for name in ours])
        # Rounding decides the few whose gradient is as small as Adam's epsilon.
        assert gaps.max() < RATE / 4
        assert gaps.mean() < RATE / 1e3


def test_the_ways_to_combine_differ_and_a_sum_makes_one_step(ranks):
    found = {
        how: moves(ranks, lambda how=how: ranks.parallel(how, batch(0)))
        for how in ("average", "sum_losses", "alternate")
    }
    assert differ(found["average"], found["sum_losses"])
    assert differ(found["alternate"], found["sum_losses"])
    assert max(np.abs(tensor).max() for tensor in found["sum_losses"].values()) < 1.01 * RATE
    assert_close(moves(ranks, lambda: ranks.parallel("sum_losses", [])), moves(ranks, ranks.sft))


def test_a_checkpoint_holds_both_adam_states(ranks, tmp_path):
    ranks.parallel("average", batch(0), step=0)
    ranks.all("save", str(tmp_path))
    ranks.parallel("average", batch(1), step=1)
    onward = ranks.weights()
    ranks.restart()
    ranks.all("load", str(tmp_path))
    ranks.parallel("average", batch(1), step=1)
    assert_close(ranks.weights(), onward)


def test_a_merge_is_the_weighted_mean_and_the_next_step_goes_on_from_it(ranks, tmp_path):
    start = ranks.weights()
    ranks.sft()
    ranks.all("export", str(tmp_path / "taught"))
    taught = ranks.weights()
    ranks.all("load_weights", [str(ranks.start_dir), str(tmp_path / "taught")], [0.25, 0.75])
    merged = ranks.weights()
    assert_close(merged, {name: 0.25 * start[name] + 0.75 * taught[name] for name in start})
    ranks.sft()
    assert 0 < max(np.abs(tensor - merged[name]).max() for name, tensor in ranks.weights().items()) < 1.01 * RATE
