"""What must not get into a report, a journal, a log or onto a terminal: values under keys that name a secret, secrets
inside texts, and what the environment holds under a name of a secret.
"""

import logging
import os
import re
import shutil
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

HIDDEN = "(hidden)"
_SECRET_KEY = re.compile(
    r"(^|_)(pass(word|wd|phrase)|pwd|secrets?|token|credentials?|auth(orization)?|cookie"
    r"|(api|access|account|auth|bearer|private|refresh|signing)_?(keys?|tokens?))($|_)"
)
"""`context_tokens` and its like count tokens; a secret is *a* token."""
_SHOUTED = re.compile(r"^[A-Z0-9_]+_(KEY|PAT)$")
"""A variable of the environment; `sort_key` is none."""
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
# What may stand before the telling part is bounded: searching for it takes time by the square of an endless word.
_USER_INFO = re.compile(r"([A-Za-z][\w+.-]{0,40}://)[^/\s?#]*@")
_PARAMETER = re.compile(
    r"(?i)([?&;][\w.-]{0,64}(?:token|key|secret|signature|sig|password|credential)[\w.-]{0,64}=)[^&;#\s]+"
)
_HEADER = re.compile(
    r"(?i)\b((?:authorization|cookie)[\"']?[ \t]{0,20}[:=][ \t]{0,20}[\"']?(?:(?:bearer|basic|token)[ \t]{1,20})?)"
    r"[^\r\n\"']+"
)
_ASSIGNMENT = re.compile(r"(?<![\w-])([\w-]{1,64}+)([\"']?[ \t]{0,20}[=:][ \t]{0,20}[\"']?)([^\s\"',;&]+)")
_OPTION = re.compile(r"(?<!\S)(--[\w-]{1,64}+)([ \t]{1,20})([^\s-]\S*)")
_BEARER = re.compile(r"(?i)\b(bearer|basic)[ \t]{1,20}[\w.~+/=-]{8,}")
_KNOWN_SHAPE = re.compile(
    r"\b(?:hf_|sk-|gh[opsru]_|github_pat_|glpat-|xox[abprs]-|AKIA|ASIA|AIza|ya29\.|eyJ[\w-]{1,500}\.)[\w.-]{12,}"
)


BLOCK_CHARACTERS = 2**18
SHORTEST_SECRET = 8
"""Characters; a shorter value of the environment may be a word that messages use."""


def redacted(value: Any, key: str = "") -> Any:
    """A copy of plain data without its secrets."""
    if value is None or isinstance(value, bool):
        return value
    if names_a_secret(key):
        return HIDDEN
    if isinstance(value, dict):
        return {text(str(name)): redacted(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    return value if isinstance(value, int | float) else text(str(value))


@lru_cache(maxsize=4096)
def names_a_secret(key: str) -> bool:
    """`hf_token`, `apiKey`, `DB-PASSWORD`, `OPENAI_KEY`; not `context_tokens`."""
    words = _WORD_START.sub("_", key).replace("-", "_").lower()
    return bool(_SECRET_KEY.search(words) or _SHOUTED.search(key))


def text(value: str) -> str:
    """Without the user of a URL, parameters and assignments that name a secret, what is shaped as a known token, and
    the secrets of this process's environment."""
    for secret in _of_environment(os.environ):
        value = value.replace(secret, HIDDEN)
    value = _USER_INFO.sub(rf"\1{HIDDEN}@", value)
    value = _PARAMETER.sub(rf"\1{HIDDEN}", value)
    value = _HEADER.sub(rf"\1{HIDDEN}", value)
    value = _ASSIGNMENT.sub(_without_value, value)
    value = _OPTION.sub(_without_value, value)
    value = _BEARER.sub(rf"\1 {HIDDEN}", value)
    return _KNOWN_SHAPE.sub(HIDDEN, value)


def _without_value(found: re.Match[str]) -> str:
    """A short number is a count (`max_new_token: 5`), and a header's scheme tells nothing."""
    key, between, value = found.groups()
    counts = value.rstrip(".").isdigit() and len(value) < SHORTEST_SECRET
    harmless = counts or value.lower() in ("bearer", "basic", "token")
    return found[0] if harmless or not names_a_secret(key.lstrip("-")) else f"{key}{between}{HIDDEN}"


def copy(path: Path, target: Path) -> None:
    """Write a text file again without its secrets."""
    with open(path, encoding="utf-8", errors="replace") as file, open(target, "w", encoding="utf-8") as out:
        while lines := file.readlines(BLOCK_CHARACTERS):
            out.write(text("".join(lines)))
    shutil.copystat(path, target)


def _of_environment(environment: Mapping[str, str]) -> list[str]:
    """Values of variables that name a secret; a path to one is none."""
    found = {value for name, value in environment.items() if names_a_secret(name) and not value.startswith(("/", "~"))}
    lines = {line for value in found for line in value.splitlines() if not line.startswith("-----")}  # of a PEM file
    return sorted((value for value in found | lines if len(value) >= SHORTEST_SECRET), key=len, reverse=True)


class RedactingFormatter(logging.Formatter):
    """Of log files."""

    def format(self, record: logging.LogRecord) -> str:
        return text(super().format(record))
