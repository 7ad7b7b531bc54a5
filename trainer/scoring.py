"""How a response is compared with a reference answer: plain functions, and the same functions behind a helper process.

reasoning-gym and math-verify hand what the model wrote to sympy, and `9**9**9` keeps sympy inside one C call: no signal
handler, no thread and no timeout of those packages ends it, and the interpreter lock is held meanwhile. So such text is
scored by a helper process (`python -m trainer.scoring`) which the kernel kills when its time is up.
"""

import json
import logging
import math
import os
import re
import resource
import signal
import sys
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Any

CPU_LIMIT_S = 2.0
"""CPU time of one scoring in the helper; ordinary ones take milliseconds."""
WALL_LIMIT_S = 60.0
"""Wall time of one scoring in the helper, against anything that waits instead of computing."""
START_LIMIT_S = 300.0
"""Wall time of the helper's imports."""
MEMORY_LIMIT_BYTES = 4 << 30
"""Address space of the helper."""
RESPONSE_TAIL_CHARS = 2000
"""math-verify sees only this much of a response, from its end, where the answer is."""
DEEPEST_FORMULA = 32
"""Brackets inside brackets of a reference answer."""

_NUMBER = re.compile(
    r"((?<![\w)\]])[-+])?\$?((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(e[-+]?[0-9]+)?", re.IGNORECASE
)
_WORDS = re.compile(r"[A-Za-z]{3,}([ ,.'-]+[A-Za-z]+)*")


def last_number(text: str) -> float | None:
    """The last number in the text, read without thousands separators, `$` and `%`; None if there is none."""
    last = deque(_NUMBER.finditer(text), maxlen=1)
    return _value(last[0]) if last else None


def as_number(text: str) -> float | None:
    """The text as one finite number, `$`, `%` and thousands separators allowed; None if it is anything else."""
    match = _NUMBER.fullmatch(text.strip().replace("$-", "-$").removesuffix("%").strip())
    value = None if match is None else _value(match)
    return value if value is not None and math.isfinite(value) else None


def _value(match: re.Match) -> float:
    sign, digits, exponent = match.groups(default="")
    return float(sign + digits.replace(",", "") + exponent)


def numbers_equal(answer: str, response: str) -> bool:
    """Whether the last number of the response is the answer, within 1e-6 relative."""
    expected, found = as_number(answer), last_number(response)
    return expected is not None and found is not None and math.isclose(expected, found, rel_tol=1e-6)


def is_parsable(answer: str) -> bool:
    """Whether math-verify reads the text in seconds; its parser takes minutes over deep or long formulas."""
    depth = deepest = 0
    for character in answer:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return len(answer) <= RESPONSE_TAIL_CHARS and deepest <= DEEPEST_FORMULA


@lru_cache(maxsize=65536)
def parse_math(answer: str) -> tuple[Any, ...]:
    """The reference answer as math-verify reads it; empty if it reads nothing, or words as products of letters."""
    parse = _math_verify().parse
    for text in (answer, rf"\boxed{{{answer}}}"):
        if parse(text, fallback_mode="no_fallback", parsing_timeout=None):
            return tuple(parse(text, parsing_timeout=None))
        if _WORDS.fullmatch(answer.strip()):
            break
    return ()


def math_equal(answer: str, response: str) -> bool:
    """math-verify's judgement. Its own timeouts are off: they need the main thread and cannot end a C call."""
    found = _math_verify().parse(response[-RESPONSE_TAIL_CHARS:], parsing_timeout=None)
    return bool(_math_verify().verify(list(parse_math(answer)), found, timeout_seconds=None))


@lru_cache(maxsize=1)
def _math_verify() -> Any:
    import math_verify  # half a second of sympy, needed by the math verifier only

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its timeouts are off, on purpose here
    return math_verify


def gym_correct(generator: str, config: str, entry: str, response: str) -> bool:
    """Whether the reasoning-gym scorer gives full marks. `config` and `entry` are JSON.

    Scores below 0.99 are partial credit (0.01 for trying, a ratio of lengths) that would reward the wrong thing.
    """
    try:
        return _gym_scorer(generator, config).score_answer(response.strip(), json.loads(entry)) >= 0.99
    except Exception:  # many raise on text they cannot read; `sources` has seen that this one scores its own answer
        return False


@lru_cache(maxsize=256)
def _gym_scorer(generator: str, config: str) -> Any:
    import reasoning_gym  # seconds; needed by reasoning_gym sources only

    return reasoning_gym.create_dataset(generator, seed=0, size=1, **json.loads(config))


SCORERS: dict[str, Callable[..., bool]] = {"math": math_equal, "reasoning_gym": gym_correct}


def main() -> None:
    """Answer requests, one JSON list [scorer, *arguments] per line, with one line 1 or 0 each, until stdin closes.

    The first request of a scorer is [scorer] alone: import what it needs, outside the time limits.
    """
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a package prints must not look like a reply
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for limit in (signal.SIGPROF, signal.SIGALRM):  # a parent's handling of signals is inherited
        signal.signal(limit, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGPROF, signal.SIGALRM))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business; the end of stdin is ours
    for line in sys.stdin:
        scorer, *arguments = json.loads(line)
        replies.write(f"{int(_limited(scorer, arguments) if arguments else _imported(scorer))}\n")


def _imported(scorer: str) -> bool:
    signal.setitimer(signal.ITIMER_REAL, START_LIMIT_S)
    if scorer == "math":
        math_equal("1", "1")
    else:
        import reasoning_gym  # noqa: F401
    signal.setitimer(signal.ITIMER_REAL, 0)
    return True


def _limited(scorer: str, arguments: list[str]) -> bool:
    """The scorer's verdict, False when it raises; the timers' default action ends this process from outside Python."""
    signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT_S)
    signal.setitimer(signal.ITIMER_REAL, WALL_LIMIT_S)
    try:
        return SCORERS[scorer](*arguments)
    except Exception:  # RecursionError and MemoryError included: the response is not the answer
        return False
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    main()
