"""The stages of a recipe beside plain RL, as the driver carries them out, and what they need before a run starts."""

import time
from collections.abc import Sequence
from typing import Any

from actors.requests import GroupRequest, Sampling
from cluster.bubbles import Bubbles
from cluster.checkpoint import RunDirectory
from cluster.display import Display
from cluster.lengths import Lengths
from cluster.rollouts import Rollouts
from cluster.sinks import Sinks
from cluster.spec import Spec
from cluster.summary import Counters
from cluster.workers import Workers
from trainer.evaluation import summarize, with_language_loss
from trainer.schedule import learning_rate
from trainer.solutions import References, count_solutions, sft_steps
from trainer.spec import EvaluateStage
from trainer.stages import (
    OWN_EXPORTS,
    Budgeted,
    MergeStage,
    ParallelStage,
    PretrainStage,
    RLStage,
    SftStage,
    Stage,
    StartedStage,
    Supervised,
    weight_directories,
)
from trainer.tasks import Pools
from trainer.types import Prompt
from trainer.weights import check_weights

CHUNK_S = 1.0
"""Supervised steps are asked for in pieces of about this long, so that progress shows and Ctrl-C is heard."""


class RecipeStages:
    """Part of `Driver`."""

    spec: Spec
    run: RunDirectory
    pools: Pools
    display: Display
    counters: Counters
    workers: Workers
    stage_index: int
    stage_done: int
    begun: bool
    epoch: int
    version: int
    rollouts: Rollouts
    bubbles: Bubbles
    lengths: Lengths
    sinks: Sinks
    evaluations: list[dict]
    _learner: Any
    _check_stop: Any
    _serve_current_weights: Any
    _check_dropped: Any
    _checkpoint: Any
    _finish_stage: Any

    def _begin(self, stage: Stage) -> None:
        """Give the stage the weights and the optimizer that it starts from, once."""
        if self.begun:
            return
        self.begun = True
        if isinstance(stage, MergeStage):
            self._load(stage.models, stage.weights)
        elif isinstance(stage, StartedStage) and stage.start:
            self._load([stage.start], [1.0])
        elif not isinstance(stage, EvaluateStage) and not self._goes_on(stage):
            self._learner("reset_optimizer")

    def _goes_on(self, stage: Stage) -> bool:
        """Whether an rl or parallel stage continues one of its kind, and with it the optimizer's moments."""
        learned = [s.stage for s in self.spec.recipe[: self.stage_index] if not isinstance(s, EvaluateStage)]
        return isinstance(stage, Budgeted) and learned[-1:] == [stage.stage]

    def _load(self, models: Sequence[str], shares: Sequence[float]) -> None:
        self._learner("load_weights", [str(self.run.weights(model)) for model in models], list(shares))
        self.version += 1
        self.run.journal("weights_loaded", index=self.stage_index, models=list(models), shares=list(shares))

    def _evaluate(self) -> None:
        """Samples held-out prompts of the families that have training prompts; what is only pre-trained on enters the
        language loss alone."""
        spec = self.spec.evaluation
        prompts = self.pools.heldout
        families = {prompt.family for prompt in self.pools.train}
        chosen = [i for i, prompt in enumerate(prompts) if prompt.family in families]
        self.display.stage("evaluate", len(chosen), "prompts")
        self._check_stop()
        self._serve_current_weights()
        requests = [
            GroupRequest(f"eval-{self.stage_index}/{i}", self.stage_index, i, spec.samples_per_prompt, self.version)
            for i in chosen
        ]
        sampling = Sampling("heldout", self.spec.rollout.max_response_tokens, spec.temperature)
        began = time.perf_counter()
        groups = self.rollouts.sample(requests, sampling, self.display.advance)
        self.bubbles.forget()
        self.lengths.observe("heldout", groups)
        scores = with_language_loss(
            summarize(groups, prompts, spec.k, spec.temperature), self._learner("language_loss")
        )
        self.counters.evaluate_s += time.perf_counter() - began
        result = {"stage": self.stage_index, "weight_version": self.version, **scores}
        self.evaluations.append(result)
        self.run.journal("evaluated", **result)
        self.sinks.evaluation(self.epoch, result)
        self.display.advance(len(chosen), reward=result["pass@1"])
        self._finish_stage()

    def _teach(self, stage: Supervised) -> None:
        """Next-token training, in chunks that end where tokens are counted to a mark."""
        if isinstance(stage, PretrainStage):
            total, marks = stage.steps, stage.checkpoint_tokens
        else:
            total, marks = sft_steps(stage, len(self.pools.train), count_solutions(self.pools.train)), []
        self.display.stage(stage.stage, total, "steps", self.stage_done)
        every, chunk, since = self.spec.run.checkpoint_every_steps, 5, self.stage_done
        while self.stage_done < total:
            self._check_stop()
            steps = range(self.stage_done, self.stage_done + min(chunk, total - self.stage_done, every))
            ahead = [mark - self.counters.pretrain_tokens for mark in marks]
            until = min((tokens for tokens in ahead if tokens > 0), default=float("inf"))
            began = time.perf_counter()
            figures = self._learner("teach", stage, steps, total, self.spec.run.seed, until)[0]
            elapsed = time.perf_counter() - began
            self.run.go_on()
            chunk = max(1, round(figures["steps"] * CHUNK_S / elapsed))
            self.stage_done += int(figures["steps"])
            self._count(stage, elapsed, int(figures["tokens"]))
            if figures["dropped"]:
                self.counters.updates_dropped += len(figures["dropped"])
                self.run.journal("update_dropped", stage=self.stage_index, steps=figures["dropped"])
                self._check_dropped(f"the last was step {figures['dropped'][-1]} of the {stage.stage} stage")
            self.display.advance(self.stage_done, loss=figures.get("loss"))
            due = self.stage_done - since >= every or self.workers.take_notice()
            if due and self.stage_done < total:
                since = self.stage_done
                self._checkpoint()
        for mark in marks:
            if mark > self.counters.pretrain_tokens:
                self.run.journal("mark_missed", tokens=mark, seen=self.counters.pretrain_tokens)
                self.display.note(f"checkpoint_tokens: {mark} was not reached, {self.counters.pretrain_tokens} seen")
        self.version += 1
        self._finish_stage()

    def _count(self, stage: Supervised, elapsed_s: float, tokens: int) -> None:
        """Add to the counters; where pre-training has reached a mark, export the policy."""
        if isinstance(stage, SftStage):
            self.counters.sft_s += elapsed_s
            return
        before = self.counters.pretrain_tokens
        self.counters.pretrain_s += elapsed_s
        self.counters.pretrain_tokens += tokens
        for mark in stage.checkpoint_tokens:
            if before < mark <= self.counters.pretrain_tokens:
                self._export_mark(mark)

    def _export_mark(self, mark: int) -> None:
        """A resumed run passes a mark again after what it repeats; then the export, or its event, may be there."""
        name = f"tokens-{mark}"
        if not (self.run.models / name).exists():
            self.run.add_model(name, lambda directory: self._learner("export", str(directory)))
        if not any(e["event"] == "exported" and e["model"] == name for e in self.run.events()):
            tokens = self.counters.pretrain_tokens
            self.run.journal("exported", model=name, tokens=tokens, stage=self.stage_index, done=self.stage_done)

    def _has_sft_half(self) -> bool:
        return isinstance(self.spec.recipe[self.stage_index], ParallelStage)

    def _update_call(self) -> list[Any]:
        """The learner's method for an update of the current rl or parallel stage, and what it takes beside groups."""
        stage, learner = self.spec.recipe[self.stage_index], self.spec.learner
        assert isinstance(stage, RLStage | ParallelStage)

        def rate(peak: float) -> float:
            return learning_rate(peak, learner.schedule, self.epoch, self.spec.rl_epochs, learner.warmup_epochs)

        rl_rate = rate(stage.learning_rate or learner.learning_rate)
        if isinstance(stage, RLStage):
            return ["update", rl_rate]
        sft_rate = rate(stage.sft.learning_rate or 0.0)
        return ["parallel", rl_rate, stage, self.stage_done, sft_rate, self.spec.run.seed]


def check_starts(spec: Spec, run: RunDirectory, config: Any) -> None:
    """Raises BadInput for weights that a stage still to come starts from and that are not there or do not fit.

    Exports of the same run are yet to be made. `config`: the model's, of transformers; None where it is not at hand.
    """
    finished = {event["index"] for event in run.events() if event["event"] == "stage_finished"}
    for index, field, path in weight_directories(spec.recipe):
        if index not in finished and not path.startswith(OWN_EXPORTS):
            check_weights(run.weights(path), field, config)


def check_solutions(spec: Spec, prompts: Sequence[Prompt], tokenizer: Any) -> None:
    """Raises BadInput where a training prompt has no reference solution, or too long a one, and a stage needs them."""
    choices = {stage.solutions for stage in spec.recipe if isinstance(stage, SftStage)}
    choices |= {stage.sft.solutions for stage in spec.recipe if isinstance(stage, ParallelStage)}
    for choice in sorted(choices):
        References(prompts, tokenizer, choice, spec.model.context_tokens, spec.run.seed)
