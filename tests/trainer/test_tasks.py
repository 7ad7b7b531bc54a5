"""Pools: distinct, deterministic, held out first; every unusable source is a BadInput that names its place."""

import json

import pytest

from trainer.models import character_tokenizer
from trainer.spec import TaskSpec
from trainer.tasks import build_pools, family_of
from trainer.types import BadInput

TOKENIZER = character_tokenizer(context_tokens=256)
QUESTION = r": (.*) ="


def gym(**fields):
    config = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
    given = {"kind": "reasoning_gym", "generator": "chain_sum", "config": config, "question_pattern": QUESTION}
    return {**given, "train_prompts": 60, "heldout_prompts": 20, **fields}


def task(*sources, template="{question}=", **fields):
    return TaskSpec.model_validate({"sources": sources, "template": template, **fields})


def pools(*sources, tokenizer=TOKENIZER, max_prompt_tokens=200, **fields):
    return build_pools(task(*sources, **fields), tokenizer, max_prompt_tokens)


def refused(*sources, match, **fields):
    with pytest.raises(BadInput, match=match):
        pools(*sources, **fields)


@pytest.fixture
def jsonl(tmp_path):
    def write(*lines, name="problems.jsonl", **fields):
        path = tmp_path / name
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return {"kind": "jsonl", "path": str(path), **fields}

    return write


def problem(number):
    return {"question": f"How much is {number} + 1?", "answer": f"{number} and one is #### {number + 1}"}


def test_pools_have_the_sizes_asked_for_and_no_question_twice():
    found = pools(gym())
    assert (len(found.train), len(found.heldout)) == (60, 20)
    everything = found.train + found.heldout
    assert len({p.question for p in everything}) == len({p.id for p in everything}) == 80


def test_prompts_carry_the_templated_question_and_the_scorers_entry():
    prompt = pools(gym()).train[0]
    assert TOKENIZER.decode(prompt.token_ids) == prompt.question + "="
    assert json.loads(prompt.entry)["answer"] == prompt.answer == str(eval(prompt.question))
    assert (prompt.family, prompt.source) == ("chain_sum", 0)


def test_pools_are_a_function_of_the_spec():
    assert pools(gym()) == pools(gym())
    assert pools(gym()).train != pools(gym(seed=5000)).train


def test_a_larger_training_pool_keeps_the_held_out_prompts_and_extends_the_training_prompts():
    small, large = pools(gym(), gym(seed=9)), pools(gym(train_prompts=100), gym(seed=9))
    assert large.heldout == small.heldout
    assert large.train[:60] == small.train[:60]


def test_no_question_is_in_two_places_of_the_pools_whatever_the_family():
    one_family = pools(gym(), gym(seed=1))
    questions = [p.question for p in one_family.train + one_family.heldout]
    assert len(set(questions)) == len(questions) == 160
    two = pools(gym(), gym(family="again"))
    assert len({p.question for p in two.train + two.heldout}) == len(two.train + two.heldout)


def test_every_problem_of_a_small_generator_can_be_asked_for_but_not_one_more():
    config = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    full = pools(gym(config=config, train_prompts=150, heldout_prompts=50))
    assert len(full.train) == 150
    refused(
        gym(config=config, train_prompts=151, heldout_prompts=50),
        match=r"task\.sources\.0: chain_sum with this config gave 200 distinct .* 50 \+ train_prompts 151",
    )


def test_a_jsonl_file_gives_its_lines_in_order_and_holds_out_the_last(jsonl):
    source = jsonl(*(problem(n) for n in range(6)), answer_pattern="#### (.*)", verifier="numeric", heldout_prompts=2)
    found = pools(source)
    assert [p.answer for p in found.train] == ["1", "2", "3", "4"]
    assert [p.answer for p in found.heldout] == ["5", "6"]
    assert found.train[0].family == family_of(task(source).sources[0]) == "problems"
    assert [p.answer for p in pools({**source, "train_prompts": 3}).train] == ["1", "2", "3"]


def test_held_out_lines_of_their_own_file_are_dropped_from_training(jsonl):
    heldout = jsonl(problem(2), problem(3), name="heldout.jsonl")["path"]
    source = jsonl(*(problem(n) for n in (1, 2, 2, 3, 4)), answer_pattern="#### (.*)", heldout_path=heldout)
    found = pools(source)
    assert [p.answer for p in found.train] == ["2", "5"]
    assert [p.answer for p in found.heldout] == ["3", "4"]
    assert [p.answer for p in pools({**source, "heldout_prompts": 1}).heldout] == ["3"]


def test_a_number_is_an_answer(jsonl):
    found = pools(jsonl({"question": "a", "answer": 7}, {"question": "b", "answer": 0.5}, verifier="numeric"))
    assert [p.answer for p in found.train] == ["7", "0.5"]


def test_sources_mix_into_one_pool_and_prompts_remember_theirs(jsonl):
    found = pools(gym(train_prompts=2), jsonl(problem(1), answer_pattern="#### (.*)"))
    assert [(p.family, p.source) for p in found.train] == [("chain_sum", 0), ("chain_sum", 0), ("problems", 1)]


def test_without_a_template_the_chat_template_is_used():
    chatty = character_tokenizer(256)
    chatty.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    prompt = pools(gym(), tokenizer=chatty, template=None, system_prompt="Add.").train[0]
    assert chatty.decode(prompt.token_ids) == f"[system]Add.[user]{prompt.question}[assistant]"
    chatty.chat_template = "{{ raise_exception('no system message here') }}"
    refused(gym(), tokenizer=chatty, template=None, match=r"task\.template: .*no system message here")


def test_no_template_at_all_is_refused():
    refused(gym(), template=None, match=r"task\.template: .*no chat template")


def test_a_system_prompt_without_a_chat_template_is_refused():
    refused(gym(), system_prompt="Add.", match=r"task\.system_prompt")


def test_a_prompt_that_is_too_long_is_refused_with_its_lengths():
    refused(gym(), max_prompt_tokens=4, match=r"task\.sources\.0 \(chain_sum\): prompt \w{16} has \d+ tokens.* 4 that")


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"generator": "chain_sun"}, r"task\.sources\.0\.generator: .*'chain_sun'; the nearest is 'chain_sum'"),
        ({"config": {"max_term": 3}}, r"task\.sources\.0\.config: .*max_term"),
        ({"config": {"min_terms": 4, "max_terms": 3}}, r"task\.sources\.0\.config: .*max_terms must be >= min_terms"),
        ({"config": {"min_digits": "2"}}, r"task\.sources\.0\.config: .*TypeError"),
        ({"config": {"seed": 3}}, r"task\.sources\.0\.config\.seed"),
        ({"question_pattern": "("}, r"task\.sources\.0\.question_pattern: .*not a regular expression"),
        ({"question_pattern": ".*"}, r"task\.sources\.0\.question_pattern: .*no group"),
        ({"question_pattern": "What is (.*)"}, r"task\.sources\.0\.question_pattern: does not match 'State the"),
        ({"generator": "rearc", "config": {}, "question_pattern": None}, r"task\.sources\.0\.generator: rearc cannot"),
    ],
)
def test_an_unusable_generator_is_refused(fields, match):
    refused(gym(**fields), match=match)


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("", "blank line"),
        ('{"question": "a"', "not JSON"),
        ("[1]", "must be a JSON object, not list"),
        ({"question": "a"}, "no field 'answer'; it has question"),
        ({"question": 3, "answer": "3"}, "'question' must be a text"),
        ({"question": " ", "answer": "3"}, "'question' must be a text"),
        ({"question": "a\ud800", "answer": "3"}, "'question' must be a text"),
        ({"question": "a", "answer": None}, "'answer' must be a text"),
        ({"question": "a", "answer": True}, "'answer' must be a text"),
        ({"question": "a", "answer": float("nan")}, "'answer' must be a text"),
        ({"question": "a", "answer": "three"}, "math-verify cannot read the answer 'three'"),
        ({"question": "a", "answer": "???"}, "math-verify cannot read"),
    ],
)
def test_a_broken_line_is_refused_with_file_and_line(jsonl, line, match):
    refused(jsonl({"question": "q", "answer": "1"}, line), match=rf"problems\.jsonl:2: .*{match}")


def test_bytes_that_are_no_text_are_refused_with_file_and_line(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_bytes(b'{"question": "\xff", "answer": "1"}')
    refused({"kind": "jsonl", "path": str(path)}, match=r"problems\.jsonl:1: not JSON")


def test_a_numeric_answer_must_be_a_number(jsonl):
    refused(jsonl({"question": "a", "answer": "1/2"}, verifier="numeric"), match=r":1: answer '1/2' is not a number")


def test_an_answer_pattern_must_be_a_regular_expression_that_matches(jsonl):
    refused(jsonl(problem(1), answer_pattern="["), match=r"task\.sources\.0\.answer_pattern: .*not a regular")
    refused(jsonl(problem(1), answer_pattern="x"), match=r"task\.sources\.0\.answer_pattern: .*no group")
    refused(jsonl(problem(1), answer_pattern="= (.*)"), match=r":1: answer_pattern does not match 'one|:1: answer_pat")


def test_missing_empty_and_short_files_are_refused(jsonl, tmp_path):
    refused({"kind": "jsonl", "path": str(tmp_path / "none.jsonl")}, match=r"none\.jsonl: cannot be read: No such file")
    refused({"kind": "jsonl", "path": str(tmp_path)}, match="cannot be read: not a regular file")
    refused(jsonl(), match=r"problems\.jsonl: is empty")
    one = jsonl({"question": "a", "answer": "1"}, {"question": "a", "answer": "1"})
    refused({**one, "train_prompts": 2}, match=r"task\.sources\.0\.train_prompts: .* 1 distinct .*fewer than 2")
    refused({**one, "heldout_prompts": 2}, match=r"task\.sources\.0\.heldout_prompts: .* 1 distinct .*fewer than 2")
    refused({**one, "heldout_prompts": 1}, match=r"task\.sources\.0\.train_prompts: .* 0 distinct .*fewer than 1")
