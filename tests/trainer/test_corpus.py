"""The worked examples of `pretrain`: right, or corrupted at the asked share; a function of (seed, step)."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.corpus import Corpus, corrupted
from trainer.models import character_tokenizer
from trainer.spec import TaskSpec
from trainer.tasks import build_pools
from trainer.types import BadInput

TOKENIZER = character_tokenizer(context_tokens=64)


def source(digits, **fields):
    config = {"min_terms": 2, "max_terms": 2, "min_digits": digits, "max_digits": digits}
    given = {"kind": "reasoning_gym", "generator": "chain_sum", "config": config, "question_pattern": ": (.*) ="}
    return {**given, "family": f"d{digits}", "train_prompts": 5, "heldout_prompts": 50, **fields}


def corpus(*sources, seed=0, heldout=None):
    task = TaskSpec.model_validate({"sources": sources, "template": "{question}="})
    return Corpus(task, TOKENIZER, build_pools(task, TOKENIZER, 60).heldout if heldout is None else heldout, seed)


def texts(batch):
    return [TOKENIZER.decode(ids) for ids, _ in batch]


def split(example):
    ids, prompt_tokens = example
    assert ids[-1] == TOKENIZER.eos_token_id
    return TOKENIZER.decode(ids[: prompt_tokens - 1]), TOKENIZER.decode(ids[prompt_tokens:-1])


def test_an_example_is_prompt_then_answer_then_end_of_sequence():
    for example in corpus(source(2)).batch(0, 32):
        question, answer = split(example)
        assert TOKENIZER.decode(example[0][example[1] - 1]) == "="
        assert answer == str(eval(question))


def test_a_batch_depends_on_seed_and_step_alone():
    walked, resumed = corpus(source(1), source(3)), corpus(source(1), source(3))
    batches = [walked.batch(step, 600) for step in range(6)]
    assert resumed.batch(5, 600) == batches[5]
    assert resumed.batch(0, 600) == batches[0]
    assert corpus(source(1), source(3), seed=1).batch(0, 600) != batches[0]


def test_steps_do_not_repeat_each_other():
    batches = [text for step in range(8) for text in texts(corpus(source(5)).batch(step, 256))]
    assert len(set(batches)) > 0.99 * len(batches)


def test_families_share_every_batch_and_the_odd_example_goes_round():
    three = corpus(source(1), source(3), source(5))
    counts = [Counter(len(split(example)[0]) for example in three.batch(step, 64)) for step in range(3)]
    assert all(sorted(count.values()) == [21, 21, 22] for count in counts)
    assert len({count.most_common(1)[0][0] for count in counts}) == 3


def test_sources_of_one_family_share_its_part():
    batch = corpus(source(1, family="all"), source(4, family="all"), source(6)).batch(0, 400)
    assert Counter(len(split(example)[0]) for example in batch) == {5: 100, 11: 100, 15: 200}


def test_held_out_questions_are_never_taught():
    task = TaskSpec.model_validate({"sources": [source(1, heldout_prompts=150)], "template": "{question}="})
    heldout = build_pools(task, TOKENIZER, 60).heldout
    taught = {split(example)[0] for example in Corpus(task, TOKENIZER, heldout, 0).batch(0, 3000)}
    assert len(taught) == 50
    assert not taught & {prompt.question for prompt in heldout}


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_asked_share_of_answers_is_wrong(share):
    answers = [split(example) for example in corpus(source(2, corrupted_share=share)).batch(0, 2000)]
    wrong = sum(answer != str(eval(question)) for question, answer in answers) / 2000
    assert wrong == pytest.approx(share, abs=0.04 if 0 < share < 1 else 0)


@given(st.text(max_size=20), st.integers(0, 1000))
def test_a_corrupted_answer_is_never_the_answer(answer, seed):
    assert corrupted(answer, Random(seed)) != answer


@given(st.integers(), st.integers(0, 1000))
def test_a_corrupted_integer_is_another_integer_without_leading_zero(value, seed):
    text = corrupted(str(value), Random(seed))
    assert int(text) != value
    assert str(int(text)) == text or text == "-0"


def test_a_task_without_generators_is_refused():
    with pytest.raises(BadInput, match=r"task\.sources: .*reasoning_gym"):
        corpus({"kind": "jsonl", "path": "unread.jsonl"}, heldout=[])


def test_a_generator_whose_problems_are_all_held_out_is_refused():
    task = TaskSpec.model_validate(
        {"sources": [source(1, train_prompts=1, heldout_prompts=199)], "template": "{question}="}
    )
    everything = build_pools(task, TOKENIZER, 60)
    with pytest.raises(BadInput, match=r"task\.sources\.0: chain_sum gives no worked examples"):
        Corpus(task, TOKENIZER, everything.heldout + everything.train, 0).batch(0, 1)
