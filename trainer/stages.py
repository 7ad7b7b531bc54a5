"""The stages of a recipe, and what they ask of the task and of each other. Pydantic only."""

import difflib
import itertools
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trainer.spec import EvaluateStage, PathText, Section, TaskSpec, family_of, gives_examples

Rate = Annotated[float, Field(gt=0, le=1)]
OWN_EXPORTS = "models/"
"""A `start` that begins with this is an export of the same run."""


class StartedStage(Section):
    start: PathText | None = None
    """Directory in Hugging Face format whose weights the stage starts from, with a fresh optimizer: a checkpoint of any
    earlier run (`runs/x/models/tokens-200000`) or, as `models/tokens-200000`, of an earlier stage of this one. Without
    it the stage goes on from the weights that are there."""


class PretrainStage(StartedStage):
    """Next-token training on worked examples of the task's families, part of them corrupted."""

    stage: Literal["pretrain"]
    """Selects this stage."""
    steps: int = Field(gt=0, le=10_000_000)
    """Optimizer steps."""
    batch_examples: int = Field(default=256, gt=0, le=1_000_000)
    """Worked examples per step."""
    learning_rate: Rate = 2e-3
    """Peak learning rate; linear warm-up over the first 5 % of the steps, then cosine to a tenth."""
    mixture: str | None = None
    """Name of one of `task.mixtures`; without one every family has an equal share."""
    checkpoint_tokens: list[Annotated[int, Field(gt=0, le=10**15)]] = []
    """Rising marks: when the run's pretrain stages have seen so many tokens (prompts, answers and ends of sequence),
    the policy is exported to `models/tokens-<mark>`."""

    @model_validator(mode="after")
    def _marks_rise(self) -> Self:
        _check_rising(self.checkpoint_tokens)
        return self


Solutions = Literal["one", "all"]


class SftStage(StartedStage):
    """Next-token training on reference solutions of the training prompts."""

    stage: Literal["sft"]
    """Selects this stage."""
    epochs: int | None = Field(default=None, gt=0, le=1_000_000)
    """Passes over the solutions; the last batch is filled up from the next pass. Either this or `steps`."""
    steps: int | None = Field(default=None, gt=0, le=10_000_000)
    """Optimizer steps. Either this or `epochs`."""
    batch_examples: int = Field(default=64, gt=0, le=1_000_000)
    """Solutions per step."""
    learning_rate: Rate = 1e-4
    """Peak learning rate; linear warm-up over the first 5 % of the steps, then cosine to a tenth."""
    solutions: Solutions = "one"
    """`one` reference solution per question, chosen at random by the run's seed, or `all` of them."""

    @model_validator(mode="after")
    def _has_a_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("an sft stage needs either epochs or steps")
        return self


class RLStage(StartedStage):
    """Reinforcement learning under the allocator's budget."""

    stage: Literal["rl"]
    """Selects this stage."""
    epochs: int = Field(gt=0, le=1_000_000)
    """Decisions of the allocator (K in CERO); the stage ends earlier if the budget is spent."""
    learning_rate: Rate | None = None
    """Replaces `learner.learning_rate` in this stage."""


class ParallelSft(Section):
    """The SFT half of a parallel stage."""

    batch_examples: int = Field(default=64, gt=0, le=1_000_000)
    """Solutions per update."""
    learning_rate: Rate | None = None
    """Learning rate of the SFT steps, under the learner's schedule; `sum_losses` makes one step, at the rate of RL, and
    has no use for it."""
    solutions: Solutions = "one"
    """As in an `sft` stage."""


class ParallelStage(StartedStage):
    """RL and SFT on the same weights: an epoch of RL and a batch of reference solutions for every update."""

    stage: Literal["parallel"]
    """Selects this stage."""
    epochs: int = Field(gt=0, le=1_000_000)
    """Decisions of the allocator, as in an `rl` stage."""
    combine: Literal["average", "sum_losses", "alternate"] = "average"
    """`average`: half of each update, both computed from the same weights, each with an Adam state of its own;
    `sum_losses`: one step on the sum of both losses; `alternate`: an RL update, then an SFT step, on one Adam state."""
    learning_rate: Rate | None = None
    """Replaces `learner.learning_rate` in this stage."""
    sft: ParallelSft
    """The SFT half."""

    @model_validator(mode="after")
    def _sft_rate_has_a_use(self) -> Self:
        if (self.sft.learning_rate is None) != (self.combine == "sum_losses"):
            raise ValueError(
                "combine: sum_losses makes one step at the learning rate of RL: leave out sft.learning_rate"
                if self.sft.learning_rate
                else f"combine: {self.combine} needs sft.learning_rate"
            )
        return self


class MergeStage(Section):
    """Weight merging after the fact: the weights become the weighted mean of those of several models."""

    stage: Literal["merge"]
    """Selects this stage."""
    models: list[PathText] = Field(min_length=2)
    """Directories in Hugging Face format, named as in `start`."""
    weights: list[float]
    """Share of each model; they add up to 1."""

    @model_validator(mode="after")
    def _shares_add_up(self) -> Self:
        if len(self.weights) != len(self.models):
            raise ValueError(f"weights has {len(self.weights)} numbers for {len(self.models)} models")
        if abs(sum(self.weights) - 1) > 1e-6:
            raise ValueError(f"weights add up to {sum(self.weights):g}, not to 1")
        return self


Stage = Annotated[
    PretrainStage | SftStage | RLStage | ParallelStage | MergeStage | EvaluateStage, Field(discriminator="stage")
]
Supervised = PretrainStage | SftStage
Budgeted = RLStage | ParallelStage


def weight_directories(recipe: list[Stage]) -> list[tuple[int, str, str]]:
    """Stage number, field and directory of all weights that stages ask for."""
    found = []
    for index, stage in enumerate(recipe):
        if isinstance(stage, MergeStage):
            found += [(index, f"recipe.{index}.models.{i}", path) for i, path in enumerate(stage.models)]
        elif isinstance(stage, StartedStage) and stage.start:
            found.append((index, f"recipe.{index}.start", stage.start))
    return found


def check_recipe(recipe: list[Stage], task: TaskSpec) -> None:
    """Raises ValueError where the task cannot feed a stage, or a stage names a mixture or export that is not there."""
    for index, stage in enumerate(recipe):
        if isinstance(stage, PretrainStage):
            if not any(map(gives_examples, task.sources)):
                raise ValueError(
                    "recipe has a pretrain stage, but only reasoning_gym sources, and jsonl sources with a "
                    "solutions_field, give worked examples"
                )
            if stage.mixture is not None and stage.mixture not in task.mixtures:
                raise ValueError(f"recipe.{index}.mixture: {_unknown(stage.mixture, task.mixtures, 'mixture')}")
        if isinstance(stage, SftStage | RLStage | ParallelStage) and all(s.train_prompts == 0 for s in task.sources):
            raise ValueError(f"recipe.{index}: {stage.stage} needs prompts, and every source has train_prompts: 0")
    _check_rising([mark for stage in recipe if isinstance(stage, PretrainStage) for mark in stage.checkpoint_tokens])
    for index, field, path in weight_directories(recipe):
        earlier = [stage for stage in recipe[:index] if isinstance(stage, PretrainStage)]
        own = [f"{OWN_EXPORTS}tokens-{mark}" for stage in earlier for mark in stage.checkpoint_tokens]
        if path.startswith(OWN_EXPORTS) and path not in own:
            raise ValueError(f"{field}: {_unknown(path, own, 'export of an earlier stage of this run')}")


def check_mixtures(task: TaskSpec) -> None:
    """Raises ValueError for a family that is not there or cannot feed a pretrain stage, or shares that mean nothing."""
    known = {family_of(source) for source in task.sources if gives_examples(source)}
    for name, shares in task.mixtures.items():
        for family, share in shares.items():
            if family not in known:
                raise ValueError(f"task.mixtures.{name}: {_unknown(family, known, 'family with worked examples')}")
            if share < 0:
                raise ValueError(f"task.mixtures.{name}.{family}: {share:g} is negative")
        if not any(shares.values()):
            raise ValueError(f"task.mixtures.{name}: no family has a share above 0")


def _unknown(name: str, known: "list[str] | set[str] | dict", kind: str) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)
    return f"{name!r} is no {kind}" + (f"; the nearest is {nearest[0]!r}" if nearest else "; there is none")


def _check_rising(marks: list[int]) -> None:
    for before, mark in itertools.pairwise(marks):
        if mark <= before:
            raise ValueError(f"checkpoint_tokens must rise over the whole recipe, and {mark} follows {before}")
