"""Where problems come from: reasoning-gym generators and the user's own JSONL files."""

import difflib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from trainer.scoring import as_number, gym_correct, is_parsable, parse_math
from trainer.spec import JsonlSource, ReasoningGymSource
from trainer.types import BadInput

SHARD = 1024
"""Problems per reasoning-gym dataset: some generators build per-problem tables for the whole size at once."""


_SURROGATE = re.compile(r"[\ud800-\udfff]")
"""Half a character: legal in JSON's escapes, but no tokenizer takes it."""


@dataclass(frozen=True, slots=True)
class Problem:
    question: str
    answer: str
    entry: dict[str, Any] | None = None
    """The reasoning-gym entry."""
    solutions: tuple[str, ...] = ()
    """Reference solutions, whole texts; without any the answer is the only one."""

    def stored_entry(self) -> str:
        """The entry as JSON, empty without one."""
        return "" if self.entry is None else json.dumps(self.entry, default=_plain)


def _first_group(pattern: re.Pattern, text: str) -> str | None:
    match = pattern.search(text)
    return match[1] if match else None


def _compile(pattern: str | None, field: str) -> re.Pattern | None:
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise BadInput(f"{field}: {pattern!r} is not a regular expression: {error}") from None
    if not compiled.groups:
        raise BadInput(f"{field}: {pattern!r} has no group (...) to take")
    return compiled


def _unique(problems: Iterable[Problem]) -> list[Problem]:
    """The first problem of each question."""
    first: dict[str, Problem] = {}
    for problem in problems:
        first.setdefault(problem.question, problem)
    return list(first.values())


class GymReader:
    """Distinct problems of one reasoning-gym generator, an endless stream from the source's seed.

    `field` is the source in messages; `seen` holds the questions that the pools already use.
    """

    def __init__(self, source: ReasoningGymSource, field: str, seen: set[str]) -> None:
        self.source, self.field, self.seen = source, field, seen
        self._stream = self._all_shards()
        self._given = 0

    def heldout(self) -> list[Problem]:
        return self._take(self.source.heldout_prompts)

    def train(self) -> list[Problem]:
        return self._take(self.source.train_prompts)

    def _all_shards(self) -> Iterator[Problem]:
        for shard in count():
            yield from gym_problems(self.source, self.field, self.source.seed + shard * SHARD)

    def _take(self, wanted: int) -> list[Problem]:
        taken: list[Problem] = []
        stale = 0
        while len(taken) < wanted:
            problem = next(self._stream)
            if problem.question in self.seen:
                stale += 1
                # With d equally likely problems, the chance to miss the last one 10 d times in a row is exp(-10).
                if stale > 200 + 10 * len(self.seen):
                    self._fail(len(taken))
                continue
            stale = 0
            self.seen.add(problem.question)
            taken.append(problem)
        self._given += len(taken)
        return taken

    def _fail(self, taken: int) -> None:
        raise BadInput(
            f"{self.field}: {self.source.generator} with this config gave {self._given + taken} distinct problems, "
            f"fewer than heldout_prompts {self.source.heldout_prompts} + train_prompts {self.source.train_prompts}"
        )


def gym_problems(source: ReasoningGymSource, field: str, seed: int) -> Iterator[Problem]:
    """The SHARD problems of one generator seed, duplicates included. `field` is the source in messages.

    Raises BadInput for an unknown generator, a bad config or pattern, or a scorer that rejects its own answer.
    """
    pattern = _compile(source.question_pattern, f"{field}.question_pattern")
    dataset = _dataset(source, field, seed)
    for number in range(SHARD):
        try:
            entry = dataset[number]
        except Exception as error:  # some configs pass the generator's validation and fail in the act
            raise BadInput(f"{field}.config: {source.generator} failed with it: {_reason(error)}") from None
        question = _first_group(pattern, entry["question"]) if pattern else entry["question"]
        if question is None:
            raise BadInput(f"{field}.question_pattern: does not match {entry['question']!r}")
        problem = Problem(question, entry["answer"] or "", entry)
        if number == 0:
            _check_scorer(source, field, problem)
        yield problem


def _check_scorer(source: ReasoningGymSource, field: str, problem: Problem) -> None:
    """Some scorers do not recognise their entry once it has been through JSON."""
    name = source.generator
    try:
        stored = problem.stored_entry()
    except TypeError as error:
        raise BadInput(f"{field}.generator: {name} cannot be used, its problems are not JSON: {error}") from None
    if problem.answer and not gym_correct(name, json.dumps(source.config), stored, problem.answer):
        raise BadInput(f"{field}.generator: {name} cannot be used, its scorer rejects its own {problem.answer!r}")


def _dataset(source: ReasoningGymSource, field: str, seed: int) -> Any:
    import reasoning_gym  # seconds, so only where it is used
    from reasoning_gym.factory import DATASETS

    if source.generator not in DATASETS:
        nearest = difflib.get_close_matches(source.generator, DATASETS, n=1, cutoff=0)[0]
        raise BadInput(f"{field}.generator: reasoning-gym has no {source.generator!r}; the nearest is {nearest!r}")
    if own := {"seed", "size"} & source.config.keys():
        raise BadInput(f"{field}.config.{min(own)}: is set by the source's own seed, train_prompts and heldout_prompts")
    try:
        return reasoning_gym.create_dataset(source.generator, seed=seed, size=SHARD, **source.config)
    except Exception as error:  # generators validate with assert, TypeError or ValueError as they please
        raise BadInput(f"{field}.config: does not suit {source.generator}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _plain(value: Any) -> Any:
    """JSON for what generators put into metadata beside plain types: numpy scalars, dates, sets."""
    return value.item() if hasattr(value, "item") else str(value)


class JsonlReader:
    """Distinct problems of the user's own file or files, in their order. `field` is the source in messages."""

    def __init__(self, source: JsonlSource, field: str, seen: set[str]) -> None:
        self.source, self.field, self.seen = source, field, seen
        self._pattern = _compile(source.answer_pattern, f"{field}.answer_pattern")
        self._train = _unique(self._read(source.path))
        if source.heldout_path:
            self._heldout = _unique(self._read(source.heldout_path))[: source.heldout_prompts or None]
        else:
            cut = max(len(self._train) - source.heldout_prompts, 0)
            self._train, self._heldout = self._train[:cut], self._train[cut:]

    def heldout(self) -> list[Problem]:
        path = self.source.heldout_path or self.source.path
        return self._new(self._heldout, self.source.heldout_prompts, f"{self.field}.heldout_prompts: {path}")

    def worked(self) -> list[Problem]:
        """Every training line, also those beyond `train_prompts`."""
        return self._train

    def train(self) -> list[Problem]:
        wanted = self.source.train_prompts
        return self._new(self._train, wanted or 1, f"{self.field}.train_prompts: {self.source.path}")[:wanted]

    def _new(self, problems: list[Problem], wanted: int, name: str) -> list[Problem]:
        new = [problem for problem in problems if problem.question not in self.seen]
        if len(new) < wanted:
            raise BadInput(f"{name} has {len(new)} distinct problems left for it, fewer than {wanted}")
        self.seen.update(problem.question for problem in new)
        return new

    def _read(self, path: str) -> Iterator[Problem]:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe or a device would be read for ever
            raise BadInput(f"{path}: cannot be read: not a regular file")
        try:
            lines = Path(path).read_bytes().removesuffix(b"\n").split(b"\n")
        except OSError as error:
            raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
        if lines == [b""]:
            raise BadInput(f"{path}: is empty")
        for number, line in enumerate(lines, start=1):
            yield self._problem(line, f"{path}:{number}")

    def _problem(self, line: bytes, place: str) -> Problem:
        if not line.strip():
            raise BadInput(f"{place}: blank line")
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{place}: not JSON: {error}") from None
        if not isinstance(record, dict):
            raise BadInput(f"{place}: must be a JSON object, not {type(record).__name__}")
        question = self._text(record, self.source.question_field, place)
        answer = self._text(record, self.source.answer_field, place)
        solutions = self._solutions(record, place) if self.source.solutions_field else (answer,)
        if self._pattern:
            found = _first_group(self._pattern, answer)
            if found is None:
                raise BadInput(f"{place}: answer_pattern does not match {answer[-80:]!r}")
            answer = found.strip()
        if self.source.verifier == "numeric" and as_number(answer) is None:
            raise BadInput(f"{place}: answer {_short(repr(answer))} is not a number, as verifier `numeric` needs")
        if self.source.verifier == "math" and not (is_parsable(answer) and parse_math(answer)):
            shown = _short(repr(answer))
            raise BadInput(f"{place}: math-verify cannot read the answer {shown}; verifier `exact` compares text")
        return Problem(question, answer, solutions=solutions)

    def _solutions(self, record: dict, place: str) -> tuple[str, ...]:
        field = self.source.solutions_field
        value = record.get(field)
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not texts or not all(map(_is_text, texts)):
            raise BadInput(f"{place}: {field!r} must be a text or a list of texts, not {_short(repr(value))}")
        return tuple(text.strip() for text in texts)

    def _text(self, record: dict, field: str, place: str) -> str:
        if field not in record:
            raise BadInput(f"{place}: no field {field!r}; it has {_short(', '.join(sorted(record))) or 'none'}")
        value = record[field]
        if field == self.source.answer_field and _is_number(value):
            return str(value)
        if not _is_text(value):
            raise BadInput(f"{place}: {field!r} must be a text, not {_short(repr(value))}")
        return value.strip() if field == self.source.answer_field else value


def _short(text: str) -> str:
    """For messages: files of strangers have fields of any length."""
    return text if len(text) <= 200 else f"{text[:200]}…"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and not _SURROGATE.search(value)


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)
