"""The worked examples of `pretrain`: right, or corrupted at the asked share; a function of (seed, step)."""

import json
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.corpus import Corpus, corrupted, seats
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


def mixed(mixture, *sources):
    task = TaskSpec.model_validate({"sources": sources, "template": "{question}=", "mixtures": {"m": mixture}})
    return Corpus(task, TOKENIZER, build_pools(task, TOKENIZER, 60).heldout, 0, "m")


@given(st.lists(st.integers(0, 20), min_size=1, max_size=5).filter(any), st.integers(0, 400), st.integers(0, 30))
def test_seats_asked_for_anywhere_are_those_of_the_whole_row(weights, taken, n):
    shares = {str(i): float(w) for i, w in enumerate(weights) if w}
    row = list(seats(shares, 0, taken + n))
    assert list(seats(shares, taken, n)) == row[taken:]
    counts = Counter(family for family, _ in row)
    assert all(abs(counts[f] - (taken + n) * w / sum(shares.values())) < 2 for f, w in shares.items())
    assert all(sorted(turn for f, turn in row if f == family) == list(range(counts[family])) for family in shares)


def test_a_mixture_gives_its_shares_and_leaves_out_what_has_none():
    three = mixed({"d1": 0.7, "d3": 0.3, "d5": 0}, source(1), source(3), source(5))
    counts = Counter(len(split(e)[0]) for step in range(10) for e in three.batch(step, 32))
    assert counts == {5: 224, 9: 96}


def jsonl(path, lines=20, **fields):
    problems = [{"question": f"{n}+1", "answer": str(n + 1), "ways": [str(n + 1), f"{n}+1"]} for n in range(lines)]
    path.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    return {"kind": "jsonl", "path": str(path), "heldout_prompts": 4, "solutions_field": "ways", **fields}


def test_a_file_with_solutions_gives_every_line_once_a_pass_with_any_of_them(tmp_path):
    examples = [split(e) for e in corpus(jsonl(tmp_path / "p.jsonl")).batch(0, 16 * 8)]
    assert set(Counter(question for question, _ in examples).values()) == {8}
    assert {question for question, _ in examples} == {f"{n}+1" for n in range(16)}
    assert all(eval(answer) == eval(question) for question, answer in examples)
    assert len({answer for question, answer in examples if question == "3+1"}) == 2


def test_a_share_of_a_files_solutions_is_corrupted(tmp_path):
    examples = [split(e) for e in corpus(jsonl(tmp_path / "p.jsonl", 104, corrupted_share=0.5)).batch(0, 1000)]
    right = sum(answer in (question, str(eval(question))) for question, answer in examples)
    assert right == pytest.approx(500, abs=80)
