"""What stages other than plain RL ask of a learner rank: supervised steps, weights to start from, parallel averaging.

Every method is called on all ranks together.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.figures import timed
from actors.masters import copies, masters, put_masters, reset_adam, swap_adam
from actors.steps import LearningSteps
from trainer.spec import TaskSpec
from trainer.stages import ParallelStage, PretrainStage, Solutions, Supervised
from trainer.types import Group


class RecipeSteps(LearningSteps):
    """Part of `LearnerRank`, which sets what it has not."""

    _task: TaskSpec
    _gathered: Any

    def __init__(self) -> None:
        self._examples: dict[str, Any] = {}  # what supervised batches come from
        self._second_adam: list[dict[str, Any]] = []  # of the SFT half of parallel averaging, one per master weight
        self._beside: list[Any] = []  # samples whose gradient the next step takes along
        self._beside_loss: float | None = None

    # Supervised steps.

    @timed("busy_s", "learning_s")
    def teach(
        self, stage: Supervised, steps: range, total: int, run_seed: int, until_tokens: float = float("inf")
    ) -> dict[str, Any]:
        """Optimizer steps `steps` of the `total` of a pretrain or sft stage; ends early with the step that reaches
        `until_tokens`, counted from here. Gives the figures of the last step, the `steps` and `tokens` done, and the
        numbers of steps `dropped` because loss or gradient was not finite.
        """
        from trainer.batches import language_samples
        from trainer.schedule import learning_rate

        if isinstance(stage, PretrainStage):
            source = self._corpus(stage.mixture, run_seed)
        else:
            source = self._references(stage.solutions, run_seed)
        figures: dict[str, float] = {}
        tokens = done = 0
        dropped: list[int] = []
        for step in steps:
            examples = source.batch(step, stage.batch_examples)
            rate = learning_rate(stage.learning_rate, "cosine", step, total, max(total // 20, 1), floor=0.1)
            new = self._step(language_samples(examples), rate, self._language_loss)
            if new is None:
                dropped.append(step)
            figures = new.figures if new else figures
            tokens, done = tokens + sum(len(ids) for ids, _ in examples), done + 1
            if tokens >= until_tokens:
                break
        return {**figures, "tokens": tokens, "steps": done, "dropped": dropped}

    def reset_optimizer(self) -> None:
        """Forget the moments, as a new stage with another loss should."""
        reset_adam(self._engine.optimizer)
        self._second_adam = []

    # Weights.

    def load_weights(self, paths: Sequence[str], shares: Sequence[float]) -> None:
        """The weighted mean of these directories' weights becomes the policy, with a fresh optimizer."""
        import torch

        from trainer.weights import merged_weights

        model = self._engine.module.model
        found = merged_weights(paths, shares)
        with torch.no_grad(), self._gathered(list(model.parameters()), modifier_rank=0):
            for name, parameter in model.named_parameters():
                parameter.copy_(found[name])
        self._engine.optimizer.refresh_fp32_params()
        self.reset_optimizer()

    def save_second_adam(self, directory: str) -> None:
        """This rank's second Adam state into a checkpoint, if there is one."""
        import torch

        if self._second_adam:
            torch.save(self._second_adam, self._second_adam_file(directory))

    def load_second_adam(self, directory: str) -> None:
        """Read what `save_second_adam` wrote."""
        import torch

        path = self._second_adam_file(directory)
        self._second_adam = torch.load(path, map_location=self._engine.device) if path.is_file() else []

    def _second_adam_file(self, directory: str) -> Path:
        return Path(directory) / f"second-adam-{self._rank}.pt"

    # Parallel stages.

    @timed("busy_s", "learning_s")
    def parallel(
        self, groups: Sequence[Group], learning_rate: float, stage: ParallelStage, step: int, sft_rate: float,
        run_seed: int,
    ) -> dict[str, float]:  # fmt: skip
        """One update of a parallel stage: the groups as `update` learns them, and SFT batch `step` at `sft_rate`.

        The figures of `update`, and `sft_loss`. Where no group has a gradient the SFT part steps all the same; under
        `average` that is half its step.
        """
        from trainer.batches import language_samples

        batch = language_samples(self._references(stage.sft.solutions, run_seed).batch(step, stage.sft.batch_examples))
        if stage.combine == "average":
            figures, sft_loss = self._averaged(groups, learning_rate, batch, sft_rate)
        elif stage.combine == "alternate":
            figures = self._reinforce(groups, learning_rate)
            sft_loss = self._sft_step(batch, sft_rate)
        else:
            self._beside = batch
            figures = self._reinforce(groups, learning_rate)
            sft_loss = self._beside_loss
            if self._beside:  # no step of RL has taken it along
                self._beside, sft_loss = [], self._sft_step(batch, learning_rate)
            elif not figures["updates"]:
                return figures  # the one step of both was dropped
        if sft_loss is None:
            return {**figures, "dropped": max(figures["dropped"], 1)}
        return {**figures, "updates": max(figures["updates"], 1), "sft_loss": sft_loss}

    def _averaged(
        self, groups: Sequence[Group], learning_rate: float, batch: list[Any], sft_rate: float
    ) -> tuple[dict[str, float], float | None]:
        from trainer.parallel import averaged

        optimizer = self._engine.optimizer
        self._second_adam = self._second_adam or [{} for _ in masters(optimizer)]
        start = copies(optimizer)
        figures = self._reinforce(groups, learning_rate)
        reinforced = copies(optimizer)
        put_masters(optimizer, start)
        swap_adam(optimizer, self._second_adam)
        sft_loss = self._sft_step(batch, sft_rate)
        swap_adam(optimizer, self._second_adam)
        taught = [flat.data for flat in masters(optimizer)]
        put_masters(optimizer, averaged(start, reinforced, taught))
        return figures, sft_loss

    def _reinforce(self, groups: Sequence[Group], learning_rate: float) -> dict[str, float]:
        if groups:
            return self.update(groups, learning_rate)
        return {"updates": 0, "dropped": 0, "learning_rate": learning_rate}

    def _sft_step(self, batch: list[Any], rate: float) -> float | None:
        """The loss; None if the step was dropped."""
        step = self._step(batch, rate, self._language_loss)
        return step.figures["loss"] if step else None

    def _extra_backward(self) -> None:
        """Adds the gradient of the samples that `sum_losses` has put beside the step; nothing without any."""
        if not self._beside:
            return
        import torch
        import torch.distributed as dist

        batch, self._beside = self._beside, []
        total = torch.zeros(1, device=self._engine.device)
        for _, micro in self._micro_batches(batch, tapped=False):
            losses, *_ = self._language_loss(micro)
            total += self._backward((losses * micro.weights).sum())
        dist.all_reduce(total)
        self._beside_loss = total.item() if total.isfinite() else None

    # Inside.

    def _corpus(self, mixture: str | None, run_seed: int) -> Any:
        from trainer.corpus import Corpus

        key = f"corpus {mixture}"
        if key not in self._examples:
            self._examples[key] = Corpus(self._task, self._tokenizer, self._pools["heldout"], run_seed, mixture)
        return self._examples[key]

    def _references(self, choice: Solutions, run_seed: int) -> Any:
        from trainer.solutions import References

        key = f"references {choice}"
        if key not in self._examples:
            longest = self._engine.module.model.config.max_position_embeddings
            self._examples[key] = References(self._pools["train"], self._tokenizer, choice, longest, run_seed)
        return self._examples[key]
