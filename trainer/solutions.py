"""Reference solutions of the training prompts, for `sft` stages and the SFT half of `parallel` ones. Pure.

Every batch is a function of (seed, step), as in pre-training.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from trainer.stages import SftStage, Solutions
from trainer.tasks import token_ids
from trainer.types import BadInput, Prompt

Example = tuple[list[int], int]
"""Token ids of prompt, solution and end of sequence; tokens of the prompt."""


class References:
    """The examples of one choice of solutions, in an order of its own for every pass."""

    def __init__(
        self, prompts: Sequence[Prompt], tokenizer: Any, choice: Solutions, context_tokens: int, seed: int
    ) -> None:
        """`choice`: `one` solution per prompt, drawn at random from `seed`, or `all`.

        Raises BadInput for a prompt without a solution, or one that is longer with it than `context_tokens`.
        """
        chosen = [(prompt, text) for prompt in prompts for text in _chosen(prompt, choice, seed)]
        self._seed, self._examples = seed, []
        answers = token_ids(tokenizer, [text for _, text in chosen], add_special_tokens=False)
        for (prompt, text), answer in zip(chosen, answers, strict=True):
            ids = [*prompt.token_ids, *answer, tokenizer.eos_token_id]
            if len(ids) > context_tokens:
                raise BadInput(
                    f"task.sources.{prompt.source}: prompt {prompt.id} and its solution have {len(ids)} tokens, more "
                    f"than model.context_tokens = {context_tokens}: {text[:80]!r}"
                )
            self._examples.append((ids, len(prompt.token_ids)))

    def batch(self, step: int, n: int) -> list[Example]:
        """The `n` examples of a step: the passes lie end to end, so a batch may reach into the next one."""
        size = len(self._examples)
        places = [divmod(place, size) for place in range(step * n, (step + 1) * n)]
        return [self._examples[shuffled(size, self._seed, turn)[offset]] for turn, offset in places]


@lru_cache(maxsize=8)
def shuffled(size: int, seed: int, turn: int) -> np.ndarray:
    """The order of pass `turn` over `size` things: int [size]."""
    return np.random.default_rng([seed, turn, size]).permutation(size)


def count_solutions(prompts: Sequence[Prompt]) -> int:
    """Reference solutions of all prompts together."""
    return sum(max(len(prompt.solutions), 1) for prompt in prompts)


def sft_steps(stage: SftStage, questions: int, solutions: int) -> int:
    """Optimizer steps of an sft stage on so many training prompts with so many reference solutions together."""
    if stage.steps is not None:
        return stage.steps
    examples = questions if stage.solutions == "one" else solutions
    return -(-(stage.epochs or 0) * examples // stage.batch_examples)


def _chosen(prompt: Prompt, choice: Solutions, seed: int) -> Sequence[str]:
    texts = prompt.solutions or (prompt.answer,)
    if not texts[0]:
        raise BadInput(
            f"task.sources.{prompt.source}: {prompt.family} has problems without a reference answer, and sft and "
            f"parallel stages need one: {prompt.question[:80]!r}"
        )
    if choice == "all":
        return texts
    return [texts[np.random.default_rng([seed, int(prompt.id, 16)]).integers(len(texts))]]
