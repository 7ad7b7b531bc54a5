"""Damaged JSONL task files through the real loader: pools of prompts, or a BadInput that names file and line."""

import json
import re
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hostile import LONGEST_S, damaged, dumped, mutated

from trainer.corpus import Corpus
from trainer.models import character_tokenizer
from trainer.solutions import References
from trainer.spec import TaskSpec
from trainer.tasks import build_pools
from trainer.types import BadInput

TOKENIZER = character_tokenizer(4096)
PROBLEMS = [{"question": f"{n} + 1?", "answer": f"{n + 1}", "solutions": [f"{n + 1}", f"= {n + 1}"]} for n in range(12)]
WHOLE = "".join(json.dumps(problem) + "\n" for problem in PROBLEMS).encode()
NAMED = re.compile(r"tasks\.jsonl(:\d+)?[: ]|task\.sources\.0")


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "tasks.jsonl"


def outcome(path: Path, content: bytes, **fields: Any) -> str:
    """`pools` or `refused`; what the loader takes, whoever learns from it must take too."""
    path.write_bytes(content)
    source = {"kind": "jsonl", "path": str(path), "verifier": "exact", "heldout_prompts": 3, **fields}
    task = TaskSpec.model_validate({"sources": [source], "template": "{question}="})
    began = time.monotonic()
    try:
        pools = build_pools(task, TOKENIZER, 2000)
        References(pools.train, TOKENIZER, "all", 4096, 0).batch(0, 8)
        if "solutions_field" in fields:
            Corpus(task, TOKENIZER, pools.heldout, seed=0).batch(0, 8)
    except BadInput as error:
        message = str(error)
        assert NAMED.search(message), message
        assert len(message) < 20_000
        return "refused"
    finally:
        assert time.monotonic() - began < LONGEST_S
    questions = [prompt.question for prompt in pools.train + pools.heldout]
    assert len(set(questions)) == len(questions)
    assert len(pools.heldout) == 3
    return "pools"


VARIANTS: list[dict[str, Any]] = [
    {}, {"solutions_field": "solutions"}, {"verifier": "numeric"}, {"answer_pattern": r"(\d+)"},
    {"question_field": "answer"},
]  # fmt: skip


def test_mutated_bytes(path):
    rng, outcomes = Random(31), []
    for _ in range(200):
        outcomes.append(outcome(path, damaged(WHOLE, rng), **rng.choice(VARIANTS)))
    assert len(outcomes) == 200
    assert {"pools", "refused"} == set(outcomes)


def test_mutated_records(path):
    rng, outcomes = Random(32), []
    for _ in range(200):
        problems = mutated(PROBLEMS, rng)
        lines = problems if isinstance(problems, list) else [problems]
        outcomes.append(outcome(path, "".join(f"{dumped(line)}\n" for line in lines).encode(), **rng.choice(VARIANTS)))
    assert len(outcomes) == 200
    assert {"pools", "refused"} == set(outcomes)


FILES = {
    "empty": b"", "a newline": b"\n", "blank lines": WHOLE.replace(b"\n", b"\n\n"), "NUL": bytes(4096),
    "pickle": b"\x80\x04K\x01.", "gzip": b"\x1f\x8b\x08\x00", "UTF-16": WHOLE.decode().encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf" + WHOLE, "Latin-1": WHOLE.replace(b"?", b"\xe9"),
    "CRLF": WHOLE.replace(b"\n", b"\r\n"),
    "an array": b"[" + WHOLE.replace(b"\n", b",\n") + b"]", "deep": b"[" * 100_000 + b"\n",
    "deep objects": b'{"a":' * 50_000,
    "one question": WHOLE.replace(b"+ 1", b"")[:40] * 20, "duplicates": WHOLE.splitlines(True)[0] * 20,
    "too few": b"".join(WHOLE.splitlines(True)[:3]),
    "duplicate keys": b'{"question": "a", "question": 1, "answer": "b"}\n' * 9,
    "a giant question": WHOLE + dumped({"question": "x" * 10**6, "answer": "1"}).encode(),
    "a giant answer": WHOLE + dumped({"question": "x", "answer": "1" * 10**6, "solutions": ["1"]}).encode(),
    "a giant number": WHOLE + b'{"question": "x", "answer": ' + b"9" * 10_000 + b"}",
    "NaN": WHOLE.replace(b'"3"', b"NaN"),
    "half a character": WHOLE.replace(b"2 + 1", b"\\ud800"), "an endless line": b"x" * 10**6,
    "keys": dumped({f"k{n}": n for n in range(50_000)}).encode(), "huge key": dumped({"k" * 10**6: 1}).encode(),
}  # fmt: skip


HARMLESS = ("CRLF", "a byte order mark", "a giant answer")


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_files_that_are_no_tasks(path, content):
    found = outcome(path, content, solutions_field="solutions")
    assert found == ("pools" if content in [FILES[name] for name in HARMLESS] else "refused")


@pytest.mark.parametrize("pattern", ["(", "", "x", "(a", "(?P<a>", "(\\d+", "[", "(?<=a+)(b)"])
def test_patterns_that_are_none(path, pattern):
    assert outcome(path, WHOLE, answer_pattern=pattern) == "refused"


@pytest.mark.parametrize("answer", ["{" * 3000, "(" * 3000, "x+" * 3000, r"\frac{1}{" * 100, "9" * 5000])
def test_answers_that_math_verify_would_read_for_minutes_are_refused_at_once(path, answer):
    problems = [*PROBLEMS, {"question": "x", "answer": answer}]
    content = "".join(json.dumps(problem) + "\n" for problem in problems).encode()
    assert outcome(path, content, verifier="math") == "refused"
