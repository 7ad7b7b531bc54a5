"""Reference solutions as examples: one or all of a prompt, every batch a function of (seed, step)."""

from collections import Counter

import pytest

from trainer.models import character_tokenizer
from trainer.solutions import References, count_solutions, sft_steps
from trainer.stages import SftStage
from trainer.types import BadInput, Prompt

TOKENIZER = character_tokenizer(context_tokens=64)
PROMPTS = [
    Prompt(f"{i:016x}", "f", f"{i}?", "7", tuple(TOKENIZER(f"{i}?")["input_ids"]), 0, "", ("a", "b", "c")[: 1 + i % 3])
    for i in range(9)
]


def references(choice="one", prompts=PROMPTS, seed=0, context_tokens=64):
    return References(prompts, TOKENIZER, choice, context_tokens, seed)


def texts(examples):
    return [TOKENIZER.decode(ids[:-1]) for ids, _ in examples]


def test_an_example_is_prompt_then_solution_then_end_of_sequence():
    for ids, prompt_tokens in references().batch(0, 9):
        assert TOKENIZER.decode(ids[:prompt_tokens])[-1] == "?"
        assert TOKENIZER.decode(ids[prompt_tokens:-1]) in "abc"
        assert ids[-1] == TOKENIZER.eos_token_id


def test_one_is_the_same_solution_in_every_pass_and_depends_on_the_seed():
    first, second = (sorted(texts(references().batch(step, 9))) for step in (0, 1))
    assert first == second
    assert len({text[0] for text in first}) == 9
    assert any(sorted(texts(references(seed=s).batch(0, 9))) != first for s in range(1, 4))


def test_all_are_all_and_a_pass_has_each_once_in_an_order_of_its_own():
    every = references("all")
    passes = [texts(every.batch(step, 18)) for step in (0, 1)]
    assert Counter(passes[0]) == Counter(passes[1])
    assert set(Counter(passes[0]).values()) == {1}
    assert passes[0] != passes[1]


def test_batches_lie_end_to_end_whatever_their_size_and_can_be_had_alone():
    whole = references("all").batch(0, 36)
    assert [e for step in range(5) for e in references("all").batch(step, 7)] == whole[:35]


def test_without_solutions_the_answer_is_the_one():
    prompt = Prompt("1", "f", "q", "42", (5, 6), 0)
    assert texts(references("all", [prompt]).batch(0, 1))[0].endswith("42")


def test_steps_of_epochs_cover_the_solutions():
    assert count_solutions(PROMPTS) == 18

    def steps(choice):
        return sft_steps(SftStage(stage="sft", epochs=2, batch_examples=4, solutions=choice), 9, 18)

    assert (steps("one"), steps("all")) == (5, 9)
    assert sft_steps(SftStage(stage="sft", steps=3), 9, 18) == 3


def test_a_prompt_without_an_answer_or_with_too_long_a_solution_is_refused():
    with pytest.raises(BadInput, match=r"task\.sources\.2: f has problems without a reference answer"):
        references("one", [Prompt("1", "f", "q", "", (5,), 2)])
    with pytest.raises(BadInput, match=r"have 4 tokens, more than model\.context_tokens = 3"):
        references("one", PROMPTS[:1], context_tokens=3)
