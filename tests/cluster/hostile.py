"""Seeded damage to what users and strangers hand to tailrace, and what must come of it: an answer or a refusal.

Every suite draws from `random.Random` with a seed of its own, so a case that fails fails again. A refusal is one
message with exit code 2 (1 for a run that cannot go on); a traceback, or an exception that nobody foresaw, is a fault.
"""

import copy
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from test_cli import tailrace
from typer.testing import Result

from cluster.errors import RunFailed

LONGEST_S = 30.0
"""Of one case; ordinary ones take some milliseconds, and what takes longer than this hangs for the person who waits."""

ODD = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**70), 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", " ",
    "\0", "a\0b", "../../etc/passwd", "/dev/zero", "/", ".", "~", "~nobody/x", "\ud800", "é\u202e\U0001f600",
    "{question}",
    "[/red]", "{{7*7}}", "x" * 5000, "[" * 200, "0", "1e9", "NaN", [], {}, [[]], [None], {"": None}, {"a": {"b": []}},
    {"__class__": "x"}, ["models/x"], "models/../../x", "file:///etc/passwd", "os:system", "s3://a/b",
)  # fmt: skip
"""Values that stand where something else was expected."""
SCRAPS = (
    b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\n", b"\r", b"\t", b"{", b"}", b"[", b"]", b'"', b"'", b":", b",", b"&a ",
    b"*a", b"<<: *a", b"!!python/object/apply:os.system [id]", b"%", b"---\n", b"...", b"- ", b"|", b">", b"#", b"?",
    b"NaN", b"-Infinity", b"9" * 5000, b"\\ud800", b"null", b"0x" + b"f" * 5000, b"[" * 3000, b"{" * 1500, b"\xf0\x9f",
)  # fmt: skip
"""Bytes that mean something to a parser, or are none of its."""


def places(node: Any, path: tuple = ()) -> list[tuple]:
    """Every key and index of nested data, sections included."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    found = []
    for key, child in items:
        found += [(*path, key), *places(child, (*path, key))]
    return found


def mutated(data: Any, rng: Random, most: int = 3) -> Any:
    """A copy with up to `most` places deleted, replaced, repeated or added to."""
    data = copy.deepcopy(data)
    for _ in range(rng.randint(1, most)):
        if not (found := places(data)):
            return data
        *parents, last = rng.choice(found)
        node = data
        for part in parents:
            node = node[part]
        kind = rng.choice(("delete", "replace", "replace", "replace", "add", "repeat", "wrap"))
        if kind == "delete":
            del node[last]
        elif kind == "add" and isinstance(node, dict):
            node[rng.choice(("extra", "", "\0", "__init__", str(last) + "s"))] = rng.choice(ODD)
        elif kind == "repeat" and isinstance(node, list):
            node.extend([copy.deepcopy(node[last])] * rng.choice((1, 3, 300)))
        elif kind == "wrap":
            node[last] = rng.choice(([node[last]], {"a": node[last]}))
        else:
            node[last] = copy.deepcopy(rng.choice(ODD))
    return data


def damaged(content: bytes, rng: Random) -> bytes:
    """The bytes with one to three of them flipped, cut off, taken out, doubled, or scraps between them."""
    for _ in range(rng.randint(1, 3)):
        if not content:
            return rng.choice(SCRAPS)
        at = rng.randrange(len(content))
        end = min(at + rng.choice((1, 2, 8, 100, 2000)), len(content))
        kind = rng.choice(("flip", "cut", "drop", "double", "scrap", "scrap", "zero"))
        if kind == "flip":
            content = content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]
        elif kind == "cut":
            content = content[:at]
        elif kind == "drop":
            content = content[:at] + content[end:]
        elif kind == "double":
            content = content[:end] + content[at:]
        elif kind == "zero":
            content = content[:at] + bytes(end - at) + content[end:]
        else:
            content = content[:at] + rng.choice(SCRAPS) + content[at:]
    return content


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


def dumped(data: Any) -> str:
    """JSON that also holds what JSON does not: NaN, half characters."""
    return json.dumps(data)


def answered(*arguments: object) -> Result:
    """What the command line makes of these; fails for a traceback, an exception that nobody foresaw, or a hang."""
    began = time.monotonic()
    result = tailrace(*arguments)
    assert time.monotonic() - began < LONGEST_S, arguments
    assert result.exit_code in (0, 1, 2), (arguments, result.output, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), (arguments, repr(result.exception))
    for unforeseen in ("Traceback", "--debug for the traceback"):
        assert unforeseen not in result.output, (arguments, result.output)
    if result.exit_code:
        assert result.stderr.strip(), arguments
        assert len(result.stderr) < 20_000, (arguments, len(result.stderr))
    return result


def assert_names(message: str, what: str) -> None:
    """The message of a refusal says what it is about."""
    assert message
    assert what in message, message


def tree(directory: Path) -> dict[str, tuple]:
    """Everything under a directory: kind, size and time of change by relative path."""
    found = {}
    for parent, directories, files in os.walk(directory):
        for name in (*directories, *files):
            path = Path(parent, name)
            status = path.lstat()
            size = status.st_size if path.is_file() else 0
            found[str(path.relative_to(directory))] = (status.st_mode, size, path.is_dir() or status.st_mtime_ns)
    return found


@contextmanager
def untouched(directory: Path) -> Iterator[None]:
    """Fails if anything under the directory was made, changed or deleted."""
    before = tree(directory)
    yield
    assert tree(directory) == before


STARTS = "actors would start now"


def starts(*_: Any) -> Any:
    """In the place of cluster.launch.Cluster: as far as a suite goes."""
    raise RunFailed(STARTS)
