"""Stages and mixtures that make no sense are refused in one line that names the field and the nearest match."""

import pytest
from pydantic import TypeAdapter, ValidationError

from trainer.spec import TaskSpec
from trainer.stages import Stage, check_mixtures, check_recipe

STAGES = TypeAdapter(list[Stage])
PRETRAIN = {"stage": "pretrain", "steps": 10}
SFT = {"batch_examples": 4, "learning_rate": 1e-3}


def task(mixtures=None, **fields):
    source = {"kind": "reasoning_gym", "generator": "chain_sum", "family": "sums", "train_prompts": 4, **fields}
    return TaskSpec.model_validate({"sources": [source, {**source, "family": "more"}], "mixtures": mixtures or {}})


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        ({"stage": "sft"}, "either epochs or steps"),
        ({"stage": "sft", "epochs": 1, "steps": 1}, "either epochs or steps"),
        ({**PRETRAIN, "checkpoint_tokens": [5, 5]}, "must rise over the whole recipe, and 5 follows 5"),
        ({"stage": "parallel", "epochs": 1, "sft": {}}, "combine: average needs sft.learning_rate"),
        ({"stage": "parallel", "epochs": 1, "combine": "sum_losses", "sft": SFT}, "leave out sft.learning_rate"),
        ({"stage": "merge", "models": ["a", "b"], "weights": [1]}, "1 numbers for 2 models"),
        ({"stage": "merge", "models": ["a", "b"], "weights": [0.5, 0.6]}, "add up to 1.1, not to 1"),
        ({"stage": "evaluate", "start": "a"}, "Extra inputs"),
    ],
)
def test_a_stage_that_contradicts_itself_is_refused(stage, says):
    with pytest.raises(ValidationError, match=says):
        STAGES.validate_python([stage])


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ([{**PRETRAIN, "mixture": "mor"}], r"recipe\.0\.mixture: 'mor' is no mixture; the nearest is 'more'"),
        (
            [{**PRETRAIN, "checkpoint_tokens": [100]}, {"stage": "rl", "epochs": 1, "start": "models/tokens-10"}],
            r"recipe\.1\.start: 'models/tokens-10' is no export .*; the nearest is 'models/tokens-100'",
        ),
        (
            [{"stage": "rl", "epochs": 1, "start": "models/tokens-1"}],
            "no export of an earlier stage of this run; there",
        ),
        ([{**PRETRAIN, "checkpoint_tokens": [9]}, {**PRETRAIN, "checkpoint_tokens": [8]}], "8 follows 9"),
    ],
)
def test_a_stage_that_names_what_is_not_there_is_refused(recipe, says):
    with pytest.raises(ValueError, match=says):
        check_recipe(STAGES.validate_python(recipe), task({"more": {"sums": 1}}))


def test_training_on_prompts_needs_some():
    for stage in ({"stage": "rl", "epochs": 1}, {"stage": "sft", "epochs": 1}):
        with pytest.raises(ValueError, match=r"recipe\.0: .* needs prompts, and every source has train_prompts: 0"):
            check_recipe(STAGES.validate_python([stage]), task(train_prompts=0))
    check_recipe(STAGES.validate_python([PRETRAIN]), task(train_prompts=0))


@pytest.mark.parametrize(
    ("mixture", "says"),
    [
        ({"sum": 1}, "'sum' is no family with worked examples; the nearest is 'sums'"),
        ({"sums": -1, "more": 2}, r"m\.sums: -1 is negative"),
        ({"sums": 0}, "no family has a share above 0"),
        ({}, "no family has a share above 0"),
    ],
)
def test_a_mixture_of_nothing_known_is_refused(mixture, says):
    with pytest.raises(ValueError, match=says):
        check_mixtures(task({"m": mixture}))
