"""What must not leave with a report: values under keys that name a secret, and secrets inside texts. Pure."""

import re
from typing import Any

HIDDEN = "(hidden)"
_SECRET_KEY = re.compile(
    r"(^|_)(pass(word|wd|phrase)|pwd|secrets?|token|credentials?|auth(orization)?|cookie"
    r"|(api|access|account|auth|bearer|private|refresh|signing)_?(keys?|tokens?))($|_)"
)
"""`context_tokens` and its like count tokens; a secret is *a* token."""
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_USER_INFO = re.compile(r"([A-Za-z][\w+.-]*://)[^/\s?#]*@")
_PARAMETER = re.compile(r"(?i)([?&;][\w.-]*(?:token|key|secret|signature|sig|password|credential)[\w.-]*=)[^&;#\s]+")
_ASSIGNMENT = re.compile(
    r"(?i)\b([\w-]*(?:password|passwd|secret|api[_-]?key|token)[\"']?\s*[=:]\s*[\"']?)[^\s\"',;&]+"
)
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}")
_KNOWN_SHAPE = re.compile(
    r"\b(?:hf_|sk-|gh[opsru]_|github_pat_|glpat-|xox[abprs]-|AKIA|ASIA|AIza|ya29\.|eyJ[\w-]+\.)[\w.-]{12,}"
)


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


def names_a_secret(key: str) -> bool:
    """`hf_token`, `apiKey`, `DB-PASSWORD`; not `context_tokens`."""
    return bool(_SECRET_KEY.search(_WORD_START.sub("_", key).replace("-", "_").lower()))


def text(value: str) -> str:
    """Without the user of a URL, parameters and assignments that name a secret, and what is shaped as a known token."""
    value = _USER_INFO.sub(rf"\1{HIDDEN}@", value)
    value = _PARAMETER.sub(rf"\1{HIDDEN}", value)
    value = _ASSIGNMENT.sub(rf"\1{HIDDEN}", value)
    value = _BEARER.sub(rf"\1 {HIDDEN}", value)
    return _KNOWN_SHAPE.sub(HIDDEN, value)
