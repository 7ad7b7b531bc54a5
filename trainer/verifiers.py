"""Rewards: the source's own verifier, 1 or 0, or the user's function.

A Grader may be called from any thread. What can keep sympy busy for ever is scored in a helper process (see `scoring`)
that is started when first needed and replaced when the kernel has killed it over one response, which then counts as 0.
"""

import importlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from numbers import Real
from typing import Any, cast

from trainer.scoring import gym_correct, numbers_equal
from trainer.spec import ReasoningGymSource, TaskSpec
from trainer.types import BadInput, Prompt

_MAY_HANG = re.compile(r"[*^!(\\]|<<|e[-+]?[0-9]{3}", re.IGNORECASE)
"""Powers, factorials, calls, nesting, LaTeX, shifts, long exponents: without them there is nothing big to compute."""


class RewardError(RuntimeError):
    """The user's reward function raised, or gave something other than a number in [0, 1]."""


class Grader:
    """Reward of a response to one of the task's prompts. Raises BadInput when `task.reward` cannot be imported."""

    def __init__(self, task: TaskSpec) -> None:
        self._sources = task.sources
        self._reward = _UserReward(task.reward) if task.reward else None
        self._math = _Helper("math")
        self._gym = _Helper("reasoning_gym")

    def __call__(self, prompt: Prompt, response: str) -> float:
        """Reward in [0, 1]. Raises RewardError when the user's function misbehaves."""
        if self._reward:
            return self._reward(prompt, response)
        source = self._sources[prompt.source]
        if source.kind == "reasoning_gym":
            return float(self._gym_verdict(source, prompt, response.strip()))
        if source.verifier == "exact":
            return float(response.strip() == prompt.answer.strip())
        if source.verifier == "numeric":
            return float(numbers_equal(prompt.answer, response))
        return float(self._math(prompt.answer, response))

    def _gym_verdict(self, source: ReasoningGymSource, prompt: Prompt, response: str) -> bool:
        arguments = source.generator, json.dumps(source.config), prompt.entry, response
        return self._gym(*arguments) if _MAY_HANG.search(response) else gym_correct(*arguments)


class _UserReward:
    """`module:function`, looked for where Python looks and in the current directory."""

    def __init__(self, name: str) -> None:
        self.name = name
        module, _, function = name.partition(":")
        if not (module and function):
            raise BadInput(f"task.reward: {name!r} is not of the form module:function")
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            found = getattr(importlib.import_module(module), function, None)
        except Exception as error:  # the user's module may raise anything
            raise BadInput(f"task.reward: cannot import {module}: {type(error).__name__}: {error}") from error
        if not callable(found):
            raise BadInput(f"task.reward: module {module} has no function {function}")
        self._function: Callable[..., Any] = found

    def __call__(self, prompt: Prompt, response: str) -> float:
        try:
            reward = self._function(question=prompt.question, answer=prompt.answer, response=response)
        except Exception as error:
            raise RewardError(f"{self.name} raised {type(error).__name__}: {error} for prompt {prompt.id}") from error
        if not isinstance(reward, Real) or not 0 <= cast(float, reward) <= 1:  # false for NaN too
            raise RewardError(f"{self.name} returned {reward!r} for prompt {prompt.id}, not a number in [0, 1]")
        return float(reward)


class _Helper:
    """Client of `python -m trainer.scoring` for one scorer; calls from several threads take turns."""

    def __init__(self, scorer: str) -> None:
        self._scorer = scorer
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def __call__(self, *arguments: str) -> bool:
        """The verdict; False too when this response got the helper killed. Raises RuntimeError when it cannot start."""
        with self._lock:
            if self._process is None:
                self._process = self._start()
            reply = self._ask(self._process, *arguments)
            if not reply:
                self._end(self._process, during_start=False)
                self._process = None
            return reply == "1"

    def _start(self) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "trainer.scoring"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
        )
        if not self._ask(process):
            self._end(process, during_start=True)
        return process

    def _ask(self, process: "subprocess.Popen[str]", *arguments: str) -> str:
        """The reply, empty when the helper is gone."""
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps([self._scorer, *arguments]) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            return ""
        return process.stdout.readline().strip()

    def _end(self, process: "subprocess.Popen[str]", during_start: bool) -> None:
        code = process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):  # closing stdin tries once more to flush
                stream.close()
        if during_start or code >= 0:  # a negative code is a signal: over its time or memory, as foreseen
            raise RuntimeError(f"the scoring helper (python -m trainer.scoring) ended with code {code}; see its output")
