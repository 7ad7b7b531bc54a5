"""Worked examples for the `pretrain` stage: problems with their answers, a share of the answers corrupted.

Every batch is a function of (seed, step): a resumed stage sees the examples that the lost one would have seen.
Generated problems have generator seeds of their own; no example asks a held-out question. A noisy corpus leaves a skill
latent but unreliable, as web text does, which is what reinforcement learning can then sharpen.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from fractions import Fraction
from math import floor
from random import Random
from typing import Any, Protocol

import numpy as np

from trainer.solutions import shuffled
from trainer.sources import SHARD, JsonlReader, Problem, gym_problems
from trainer.spec import JsonlSource, ReasoningGymSource, TaskSpec, family_of, gives_examples
from trainer.tasks import PromptEncoder, token_ids
from trainer.types import BadInput, Prompt

Example = tuple[list[int], int]
"""Token ids of prompt, answer and end of sequence; tokens of the prompt."""

MAX_SHARDS = 48
"""49,152 problems per source, then the same ones again: generating costs as much as a small model's training step."""
MAX_SHARDS_WITHOUT_NEW = 4
"""A generator whose problems are all held out, this many shards in a row, has nothing to teach."""
SECOND_ERROR_SHARE = 0.25
"""Corrupted answers with two wrong characters instead of one."""


class _Stream(Protocol):
    def example(self, position: int) -> Example: ...


class Corpus:
    """Worked examples of the task's families in the shares of a mixture."""

    def __init__(
        self, task: TaskSpec, tokenizer: Any, heldout: list[Prompt], seed: int, mixture: str | None = None
    ) -> None:
        """`mixture`: a name in `task.mixtures`; None gives every family an equal share.

        Raises BadInput when no source gives worked examples, or a file of them cannot be read.
        """
        families: dict[str, list[_Stream]] = {}
        encode = PromptEncoder(task, tokenizer)
        excluded = {prompt.question for prompt in heldout}
        for index, source in enumerate(task.sources):
            if gives_examples(source):
                streams = families.setdefault(family_of(source), [])
                if source.kind == "reasoning_gym":
                    streams.append(_GymStream(source, index, encode, excluded, seed))
                else:
                    streams.append(_JsonlStream(source, index, encode, excluded, seed))
        if not families:
            raise BadInput(
                "task.sources: the pretrain stage needs worked examples: a reasoning_gym source, or a jsonl source "
                "with a solutions_field"
            )
        shares = dict.fromkeys(families, 1.0) if mixture is None else task.mixtures[mixture]
        self._shares = {family: share for family, share in shares.items() if share}
        self._families = families

    def batch(self, step: int, n: int) -> list[Example]:
        """The `n` examples of a step; over all steps every family has its share as nearly as whole examples can."""
        examples = []
        for family, turn in seats(self._shares, step * n, n):
            streams = self._families[family]
            examples.append(streams[turn % len(streams)].example(turn // len(streams)))
        return examples


def seats(shares: Mapping[str, float], taken: int, n: int) -> Iterator[tuple[str, int]]:
    """Seats `taken` to `taken + n - 1` of the endless row that gives every family its share: (family, how many it has).

    Webster's method: the next seat goes to the largest share / (2 x seats so far + 1), ties to the first. Its counts
    never fall as the row grows, and a prefix can be had at once: all seats with a quotient above a bound.
    """
    total = sum(map(Fraction, shares.values()))
    parts = {family: Fraction(share) / total for family, share in shares.items()}
    bound = max(taken - Fraction(len(parts), 2), Fraction(0))  # rounding adds half a seat each at most
    have = {family: floor(part * bound + Fraction(1, 2)) for family, part in parts.items()}

    def give() -> tuple[str, int]:
        family = max(parts, key=lambda name: parts[name] / (2 * have[name] + 1))
        have[family] += 1
        return family, have[family] - 1

    for _ in range(taken - sum(have.values())):
        give()
    for _ in range(n):
        yield give()


class _GymStream:
    """The examples of a generator by position, made a shard at a time."""

    def __init__(
        self, source: ReasoningGymSource, index: int, encode: PromptEncoder, excluded: set[str], seed: int
    ) -> None:
        self._source, self._index, self._encode, self._excluded, self._seed = source, index, encode, excluded, seed
        self._shards: dict[int, list[tuple[np.ndarray, int]]] = {}
        """Made so far; int32 arrays take a ninth of the memory of lists."""

    def example(self, position: int) -> Example:
        shard, offset = divmod(position % (MAX_SHARDS * SHARD), SHARD)
        if shard not in self._shards:
            self._shards[shard] = self._made(shard)
        examples = self._shards[shard]
        ids, prompt_tokens = examples[offset % len(examples)]
        return ids.tolist(), prompt_tokens

    def _made(self, shard: int) -> list[tuple[np.ndarray, int]]:
        """The examples of a shard: fewer than SHARD when some are held out; `example` then repeats the first ones."""
        for attempt in range(MAX_SHARDS_WITHOUT_NEW):
            rng = Random(_digest(self._seed, self._index, shard, attempt))
            problems = gym_problems(self._source, f"task.sources.{self._index}", seed=rng.getrandbits(31))
            kept = [p for p in problems if p.answer and p.question not in self._excluded]
            if kept:
                return self._tokenized(kept, rng)
        raise BadInput(
            f"task.sources.{self._index}: {self._source.generator} gives no worked examples: its problems are held out "
            f"or have no one answer"
        )

    def _tokenized(self, problems: list[Problem], rng: Random) -> list[tuple[np.ndarray, int]]:
        tokenizer = self._encode.tokenizer
        answers = [
            corrupted(p.answer, rng) if rng.random() < self._source.corrupted_share else p.answer for p in problems
        ]
        prompt_ids = self._encode([p.question for p in problems])
        answer_ids = token_ids(tokenizer, answers, add_special_tokens=False)
        end = [tokenizer.eos_token_id]
        return [
            (np.array(prompt + answer + end, dtype=np.int32), len(prompt))
            for prompt, answer in zip(prompt_ids, answer_ids, strict=True)
        ]


class _JsonlStream:
    """The training lines of a file by position, shuffled anew in every pass, each with any one of its solutions."""

    def __init__(self, source: JsonlSource, index: int, encode: PromptEncoder, excluded: set[str], seed: int) -> None:
        self._source, self._index, self._encode, self._seed = source, index, encode, seed
        self._order = int.from_bytes(_digest(seed, index))
        field = f"task.sources.{index}"
        self._problems = [p for p in JsonlReader(source, field, set()).worked() if p.question not in excluded]
        if not self._problems:
            raise BadInput(f"{field}: {source.path} gives no worked examples: all its problems are held out")
        self._prompts = encode([problem.question for problem in self._problems])

    def example(self, position: int) -> Example:
        rng = Random(_digest(self._seed, self._index, position))
        turn, offset = divmod(position, len(self._problems))
        row = int(shuffled(len(self._problems), self._order, turn)[offset])
        solution = rng.choice(self._problems[row].solutions)
        if rng.random() < self._source.corrupted_share:
            solution = corrupted(solution, rng)
        prompt, tokenizer = self._prompts[row], self._encode.tokenizer
        (answer,) = token_ids(tokenizer, [solution], add_special_tokens=False)
        return [*prompt, *answer, tokenizer.eos_token_id], len(prompt)


def corrupted(answer: str, rng: Random) -> str:
    """A plausible wrong answer: one or two letters or digits replaced by others of their kind.

    A first digit never becomes 0, unless it is the only one. An answer without letters and digits gets one appended.
    """
    places = [place for place, character in enumerate(answer) if _kind(character)]
    if not places:
        return answer + rng.choice("0123456789")
    characters = list(answer)
    errors = 2 if len(places) > 1 and rng.random() < SECOND_ERROR_SHARE else 1
    for place in rng.sample(places, errors):
        others = _kind(answer[place]).replace(answer[place], "")
        if place == places[0] and len(places) > 1:
            others = others.replace("0", "")
        characters[place] = rng.choice(others)
    return "".join(characters)


def _kind(character: str) -> str:
    """The characters of its kind; empty for anything but ASCII letters and digits."""
    for kind in ("0123456789", "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"):
        if character in kind:
            return kind
    return ""


def _digest(*parts: int) -> bytes:
    return hashlib.blake2b(json.dumps(["corpus", *parts]).encode(), digest_size=16).digest()
