"""Worked examples for the `pretrain` stage: generated problems with their answers, a share of the answers corrupted.

Every batch is a function of (seed, step): a resumed stage sees the examples that the lost one would have seen. The
problems have generator seeds of their own and never ask a held-out question. A noisy corpus leaves a skill latent but
unreliable, as web text does, which is what reinforcement learning can then sharpen.
"""

import hashlib
import json
from random import Random
from typing import Any

import numpy as np

from trainer.sources import SHARD, Problem, gym_problems
from trainer.spec import ReasoningGymSource, TaskSpec
from trainer.tasks import PromptEncoder, family_of, token_ids
from trainer.types import BadInput, Prompt

Example = tuple[list[int], int]
"""Token ids of prompt, answer and end of sequence; tokens of the prompt."""

MAX_SHARDS = 48
"""49,152 problems per source, then the same ones again: generating costs as much as a small model's training step."""
MAX_SHARDS_WITHOUT_NEW = 4
"""A generator whose problems are all held out, this many shards in a row, has nothing to teach."""
SECOND_ERROR_SHARE = 0.25
"""Corrupted answers with two wrong characters instead of one."""


class Corpus:
    """Examples of the task's reasoning_gym sources, every family with an equal share of each batch."""

    def __init__(self, task: TaskSpec, tokenizer: Any, heldout: list[Prompt], seed: int) -> None:
        """Raises BadInput when the task has no reasoning_gym source."""
        families: dict[str, list[_SourceStream]] = {}
        encode = PromptEncoder(task, tokenizer)
        for index, source in enumerate(task.sources):
            if source.kind == "reasoning_gym":
                family = family_of(source)
                excluded = {prompt.question for prompt in heldout}
                stream = _SourceStream(source, index, encode, excluded, seed)
                families.setdefault(family, []).append(stream)
        if not families:
            raise BadInput("task.sources: the pretrain stage needs a reasoning_gym source to generate worked examples")
        self._families = list(families.values())

    def batch(self, step: int, n: int) -> list[Example]:
        """The `n` examples of a step; families differ by one example at most, and which has it changes every step."""
        per_family = -(-n // len(self._families))
        examples = []
        for slot in range(n):
            streams = self._families[(slot + step) % len(self._families)]
            turn = step * per_family + slot // len(self._families)
            examples.append(streams[turn % len(streams)].example(turn // len(streams)))
        return examples


class _SourceStream:
    """The examples of one source by position, made a shard at a time."""

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
