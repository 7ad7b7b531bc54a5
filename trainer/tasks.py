"""From the spec's `task` to two pools of distinct prompts: training and held-out.

Held-out prompts are drawn first, from every source, so that they stay the same when a training pool grows; a question
is used once within its family, so no held-out question is ever trained on.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trainer.sources import GymReader, JsonlReader, Problem
from trainer.spec import TaskSpec, family_of
from trainer.types import BadInput, Prompt


@dataclass
class Pools:
    train: list[Prompt]
    heldout: list[Prompt]


def build_pools(task: TaskSpec, tokenizer: Any, max_prompt_tokens: int) -> Pools:
    """The pools of a task, a function of the spec and the tokenizer alone.

    Raises BadInput naming the field or file:line when a source, a pattern, an answer or a template cannot be used, when
    there are too few distinct problems, or when a prompt has more than `max_prompt_tokens` tokens.
    """
    encode = PromptEncoder(task, tokenizer)
    seen: set[str] = set()
    readers = [_reader(task, index, seen) for index in range(len(task.sources))]
    heldout = [reader.heldout() for reader in readers]
    train = [reader.train() for reader in readers]

    def prompts(problems_by_source: list[list[Problem]]) -> list[Prompt]:
        return [
            prompt
            for index, problems in enumerate(problems_by_source)
            for prompt in _prompts(task, index, problems, encode, max_prompt_tokens)
        ]

    return Pools(train=prompts(train), heldout=prompts(heldout))


class PromptEncoder:
    """Questions to token ids, through the spec's plain template or the tokenizer's chat template."""

    def __init__(self, task: TaskSpec, tokenizer: Any) -> None:
        self.task, self.tokenizer = task, tokenizer
        if task.template is None and not tokenizer.chat_template:
            raise BadInput("task.template: the model's tokenizer has no chat template; give a template with {question}")
        if task.template is not None and task.system_prompt is not None:
            raise BadInput("task.system_prompt: belongs to the chat template and has no effect beside task.template")

    def __call__(self, questions: list[str]) -> list[list[int]]:
        """Token ids of each prompt, special tokens at the start included."""
        if not questions:
            return []
        if self.task.template is not None:
            texts = [self.task.template.replace("{question}", question) for question in questions]
            return token_ids(self.tokenizer, texts, add_special_tokens=True)
        system = [{"role": "system", "content": self.task.system_prompt}] if self.task.system_prompt else []
        chats = [[*system, {"role": "user", "content": question}] for question in questions]
        try:
            texts = self.tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # templates are programs of the model's author, some refuse a system message
            raise BadInput(f"task.template: the tokenizer's chat template failed: {error}; give a template") from None
        return token_ids(self.tokenizer, texts, add_special_tokens=False)


def token_ids(tokenizer: Any, texts: list[str], add_special_tokens: bool) -> list[list[int]]:
    """Token ids of each text, untruncated; past the tokenizer's own call, which costs more than the encoding."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer(texts, add_special_tokens=add_special_tokens)["input_ids"]
    backend.no_truncation()
    backend.no_padding()
    return [encoding.ids for encoding in backend.encode_batch(texts, add_special_tokens=add_special_tokens)]


def _prompts(
    task: TaskSpec, index: int, problems: list[Problem], encode: PromptEncoder, max_prompt_tokens: int
) -> Iterator[Prompt]:
    family = family_of(task.sources[index])
    for problem, ids in zip(problems, encode([p.question for p in problems]), strict=True):
        key = json.dumps([family, problem.question, problem.answer])
        digest = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
        if len(ids) > max_prompt_tokens:
            raise BadInput(
                f"task.sources.{index} ({family}): prompt {digest} has {len(ids)} tokens, more than the "
                f"{max_prompt_tokens} that model.context_tokens leaves beside the response: {problem.question[:80]!r}"
            )
        yield Prompt(
            digest, family, problem.question, problem.answer, tuple(ids), index, problem.stored_entry(),
            problem.solutions,
        )  # fmt: skip


def _reader(task: TaskSpec, index: int, seen: set[str]) -> "GymReader | JsonlReader":
    source, field = task.sources[index], f"task.sources.{index}"
    return GymReader(source, field, seen) if source.kind == "reasoning_gym" else JsonlReader(source, field, seen)
