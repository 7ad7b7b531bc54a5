"""Rewards: 1 or 0 from the source's verifier, whatever the model wrote, from any thread; user functions are checked."""

import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.models import character_tokenizer
from trainer.scoring import as_number, last_number, numbers_equal
from trainer.spec import TaskSpec
from trainer.tasks import build_pools
from trainer.types import BadInput, Prompt
from trainer.verifiers import Grader, RewardError


def jsonl_task(verifier, **fields):
    source = {"kind": "jsonl", "path": "unread.jsonl", "verifier": verifier}
    return TaskSpec.model_validate({"sources": [source], **fields})


def prompt(answer):
    return Prompt(id="p1", family="f", question="q", answer=answer, token_ids=(), source=0)


def gym_prompt(generator, **config):
    source = {"kind": "reasoning_gym", "generator": generator, "config": config, "train_prompts": 1}
    task = TaskSpec.model_validate({"sources": [source], "template": "{question}"})
    return Grader(task), build_pools(task, character_tokenizer(10000), 10000).train[0]


@pytest.fixture(scope="module")
def math_grader():
    return Grader(jsonl_task("math"))


def in_a_thread(function, *arguments):
    results = []
    thread = threading.Thread(target=lambda: results.append(function(*arguments)))
    thread.start()
    thread.join(timeout=60)
    return results[0]


def test_exact_compares_the_stripped_texts():
    grade = Grader(jsonl_task("exact"))
    assert grade(prompt("a b"), " a b\n") == 1.0
    assert grade(prompt("a b"), "a  b") == 0.0


@pytest.mark.parametrize(
    ("answer", "response", "reward"),
    [
        ("18", "3 * 6 = 18.", 1.0),
        ("18", "18 or 19", 0.0),
        ("1,234.5", "it is $1,234.50", 1.0),
        ("$5", "5 dollars", 1.0),
        ("72%", "72%", 1.0),
        ("-3", "so x = -3", 1.0),
        ("-3", "so x = -$3", 1.0),
        ("3", "5-2 is 5-3", 1.0),
        ("0.3333333", "1/3 is 0.33333333", 1.0),
        ("0", "0.0", 1.0),
        ("1000000", "1e6", 1.0),
        ("18", "eighteen", 0.0),
        ("18", "", 0.0),
        ("5", "9" * 5000, 0.0),
    ],
)
def test_numeric_compares_the_last_number(answer, response, reward):
    assert Grader(jsonl_task("numeric"))(prompt(answer), response) == reward


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_number_reads_back(value):
    assert as_number(str(value)) == value
    assert last_number(f"the answer is {value}") == value
    assert numbers_equal(str(value), str(value))


@settings(max_examples=50)
@given(st.text())
def test_no_text_breaks_the_reading_of_numbers(text):
    assert numbers_equal("1", text) in (True, False)


@pytest.mark.parametrize("text", ["", "x", "1 2", "1/2", "nan", "inf", "1e999", "--1"])
def test_what_is_not_one_finite_number_is_none(text):
    assert as_number(text) is None


@pytest.mark.parametrize(
    ("answer", "response", "reward"),
    [
        ("18", "The answer is \\boxed{18}.", 1.0),
        ("18", "#### 18", 1.0),
        ("0.5", "$\\frac{1}{2}$", 1.0),
        ("\\frac{1}{2}", "x = 1/2", 1.0),
        ("x^2+1", "$1 + x^2$", 1.0),
        ("(3,4)", "$(3, 4)$", 1.0),
        ("18", "19", 0.0),
        ("18", "", 0.0),
        ("18", "x" * 100_000 + " 18", 1.0),
        ("18", "$" + "{" * 1990, 0.0),
    ],
)
def test_math_is_math_verifys_judgement_from_any_thread(math_grader, answer, response, reward):
    assert in_a_thread(math_grader, prompt(answer), response) == reward


def test_a_response_that_would_compute_for_ever_is_wrong_and_the_next_is_graded(math_grader):
    assert math_grader(prompt("18"), "it is 9**9**9") == 0.0
    assert math_grader(prompt("18"), "it is 18") == 1.0


def test_a_helper_that_cannot_start_is_an_error_not_a_reward(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="scoring helper"):
        Grader(jsonl_task("math"))(prompt("1"), "1")


def test_reasoning_gym_answers_are_judged_by_their_own_scorer():
    grade, sum_prompt = gym_prompt("chain_sum", min_terms=2, max_terms=2)
    assert grade(sum_prompt, f" {sum_prompt.answer}.0\n") == 1.0
    assert grade(sum_prompt, f"{sum_prompt.answer} or so") == 0.0
    assert grade(sum_prompt, "") == 0.0


def test_partial_credit_of_a_scorer_counts_nothing_and_a_scorer_that_raises_neither():
    grade, countdown = gym_prompt("countdown")
    assert grade(countdown, countdown.answer) == 1.0
    assert grade(countdown, "1 + 1") == 0.0
    assert grade(countdown, "((") == 0.0


@pytest.fixture
def reward_module(tmp_path, monkeypatch):
    def write(body, name="my_reward"):
        (tmp_path / f"{name}.py").write_text(body)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.delitem(sys.modules, name, raising=False)
        return Grader(jsonl_task("exact", reward=f"{name}:score"))

    return write


def test_a_reward_function_of_the_current_directory_replaces_the_verifier(reward_module):
    grade = reward_module("def score(question, answer, response):\n    return len(response) / 10 + (answer == 'x')")
    assert grade(prompt("1"), "12345") == 0.5


@pytest.mark.parametrize("value", ["float('nan')", "1.5", "-0.1", "None", "'1'", "float('inf')"])
def test_a_reward_outside_0_to_1_is_an_error_with_function_and_prompt(reward_module, value):
    grade = reward_module(f"def score(**_):\n    return {value}")
    with pytest.raises(RewardError, match=r"my_reward:score returned .* for prompt p1"):
        grade(prompt("1"), "1")


def test_a_reward_function_that_raises_is_an_error_with_function_and_prompt(reward_module):
    grade = reward_module("def score(**_):\n    raise KeyError('oops')")
    with pytest.raises(RewardError, match=r"my_reward:score raised KeyError: 'oops' for prompt p1"):
        grade(prompt("1"), "1")


@pytest.mark.parametrize(
    "name", ["no_such_module_here:score", "json:score", "json", "json:", ":score", "json:__name__"]
)
def test_a_reward_that_cannot_be_imported_is_refused(name):
    with pytest.raises(BadInput, match=r"task\.reward"):
        Grader(jsonl_task("exact", reward=name))


def test_a_reward_module_that_raises_on_import_is_refused(reward_module):
    with pytest.raises(BadInput, match=r"task\.reward: cannot import broken_reward: ZeroDivisionError"):
        reward_module("1 / 0", name="broken_reward")
