"""Rollout workers whose engine sleeps instead of computing: for a machine that holds no 64 engines, let alone 1,024.

`SleepingEngine` stands where `actors.engine.Engine` does, below the real RolloutWorker: its threads, queues, handover
of responses and groups are the product's. Only how long things take, and what the tokens are, is made up: see `Pace`.
"""

import heapq
import itertools
import math
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.buckets import checksum
from actors.engine import Response
from actors.figures import WorkerFigures
from actors.rollout import RolloutWorker
from trainer.tasks import Pools
from trainer.types import Prompt

VOCABULARY = 1000


@dataclass(frozen=True)
class Pace:
    """How an engine of the simulation keeps time. Lengths are log-normal, half of the spread (on the log scale) between
    prompts and half within one, cut at `max_tokens`: with sigma 1 the 99th percentile is ten times the median."""

    slots: int = 64
    step_s: float = 0.020
    step_per_response_s: float = 2e-5
    prefill_token_s: float = 1e-5
    tokens_per_step: int = 1
    prompt_tokens: int = 100
    median_tokens: float = 128.0
    sigma: float = 1.0
    max_tokens: int = 2048
    model_dir: str = ""
    """There is none, but the worker asks."""

    def length(self, prompt: int, seed: int, so_far: int) -> int:
        """Tokens of a response, more than `so_far`."""
        spread = self.sigma / math.sqrt(2)
        middle = math.log(self.median_tokens) + random.Random(prompt).gauss(0, spread)
        draw = random.Random(seed)
        for _ in range(20):
            length = int(math.exp(middle + draw.gauss(0, spread))) + 1
            if length > so_far:
                return min(length, self.max_tokens)
        return min(so_far + so_far // 2 + 1, self.max_tokens)

    def pools(self, prompts: int) -> Pools:
        """Prompts whose first token is their number, so that an engine knows whose length it draws."""
        tokens = (0,) * (self.prompt_tokens - 1)
        return Pools([Prompt(f"p{i}", f"family{i % 4}", "", "", (i, *tokens), 0) for i in range(prompts)], [])


@dataclass(slots=True)
class _Sleeper:
    prompt_tokens: int
    tokens: int
    """When it is finished."""
    began: int = 0
    """Step before its first one."""
    ends: int = 0
    """Step that finishes it."""


class SleepingEngine:
    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.cores: list[int] = []
        self.weight_version = 0
        self.last_step: tuple[int, int] | None = None
        self._waiting: dict[str, _Sleeper] = {}
        self._running: dict[str, _Sleeper] = {}
        self._ends: list[tuple[int, int, str, _Sleeper]] = []
        self._numbers = itertools.count()
        self._steps = 0
        longest = pace.max_tokens
        self._token_ids = (np.arange(longest) % VOCABULARY).astype(np.int32)
        self._logprobs = np.full(longest, -0.5, np.float32)

    # A step.

    def begin(self) -> tuple[float, float, int]:
        """Fill free slots: seconds of the next step and of each one after it, and steps until a response ends."""
        running, prefilled = len(self._running), 0
        for request_id in list(itertools.islice(self._waiting, self.pace.slots - running)):
            sleeper = self._running[request_id] = self._waiting.pop(request_id)
            prefilled += sleeper.prompt_tokens
            sleeper.began = self._steps
            sleeper.ends = self._steps + math.ceil(sleeper.tokens / self.pace.tokens_per_step)
            heapq.heappush(self._ends, (sleeper.ends, next(self._numbers), request_id, sleeper))
        self._drop_stale()
        self.last_step = (running, prefilled) if running or prefilled else None
        each_s = self.pace.step_s + self.pace.step_per_response_s * len(self._running)
        return each_s + prefilled * self.pace.prefill_token_s, each_s, self._ends[0][0] - self._steps

    def end(self, steps: int) -> list[tuple[str, Response]]:
        """That many steps are over; the responses that they finished."""
        self._steps += steps
        finished = []
        while self._ends and self._ends[0][0] <= self._steps:
            *_, request_id, sleeper = heapq.heappop(self._ends)
            if self._running.get(request_id) is sleeper:
                del self._running[request_id]
                finished.append((request_id, self._response(sleeper)))
        return finished

    def step(self) -> list[tuple[str, Response]]:
        time.sleep(self.begin()[0])
        return self.end(1)

    def _drop_stale(self) -> None:
        while self._ends and self._running.get(self._ends[0][2]) is not self._ends[0][3]:
            heapq.heappop(self._ends)

    def _response(self, sleeper: _Sleeper) -> Response:
        tokens = sleeper.tokens
        return Response(self._token_ids[:tokens], self._logprobs[:tokens], sleeper.tokens >= self.pace.max_tokens)

    # What a rollout worker asks of an engine.

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    def add(
        self, request_id: str, prompt: list[int], *, max_tokens: int, temperature: float, seed: int, logprobs: bool
    ) -> None:
        so_far = len(prompt) - self.pace.prompt_tokens
        tokens = self.pace.length(prompt[0], seed, so_far) - so_far
        self._waiting[request_id] = _Sleeper(len(prompt), max(1, min(tokens, max_tokens)))

    def unfinished(self) -> list[tuple[str, int, int, bool]]:
        under_way = [(name, s.prompt_tokens, self._so_far(s), False) for name, s in self._running.items()]
        return under_way + [(name, s.prompt_tokens, 0, True) for name, s in self._waiting.items()]

    def _so_far(self, sleeper: _Sleeper) -> int:
        return min((self._steps - sleeper.began) * self.pace.tokens_per_step, sleeper.tokens)

    def cut(self, request_ids: Iterable[str]) -> list[tuple[str, np.ndarray, np.ndarray]]:
        cut = []
        for request_id in request_ids:
            if sleeper := self._running.pop(request_id, None):
                tokens = self._so_far(sleeper)
                cut.append((request_id, self._token_ids[:tokens], self._logprobs[:tokens]))
            elif self._waiting.pop(request_id, None):
                cut.append((request_id, self._token_ids[:0], self._logprobs[:0]))
        return cut

    def abort_all(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self._running.pop(request_id, None)
            self._waiting.pop(request_id, None)

    def start_weight_update(self) -> None:
        if self.busy:
            raise RuntimeError("weights cannot change while responses are being generated")
        self.weight_version = -1

    def load_bucket(self, ref: Any) -> int:
        import ray

        return checksum(ray.get(ref))

    def finish_weight_update(self, version: int) -> None:
        self.weight_version = version

    def take_figures(self) -> WorkerFigures:
        return WorkerFigures(running=len(self._running), waiting=len(self._waiting))

    def warm_up(self) -> None:
        """Nothing is cold."""

    def versions(self) -> dict[str, str]:
        return {}


class Mute:
    """A tokenizer whose texts say how many tokens there were."""

    def batch_decode(self, responses: list[np.ndarray], skip_special_tokens: bool) -> list[str]:
        return [str(len(tokens)) for tokens in responses]


def luck(prompt: Prompt, text: str) -> float:
    """A prompt is solved in a share of its responses that depends on its number."""
    return float(int(text) * 37 % 100 < prompt.token_ids[0] * 61 % 100)


class SleepingWorker(RolloutWorker):
    """The real worker over a sleeping engine; several may live in one process."""

    def _own_engine(self, config: Any, task: Any) -> None:
        import actors.rollout
        import trainer.models
        import trainer.verifiers

        # What the thread builds its parts from, in a process of its own that runs no other kind of worker.
        actors.rollout.Engine = SleepingEngine  # type: ignore[misc, assignment]
        trainer.models.load_tokenizer = lambda model_dir: Mute()
        trainer.verifiers.Grader = lambda task: luck  # type: ignore[misc, assignment]
        super()._own_engine(config, task)
