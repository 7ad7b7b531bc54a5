"""Files that a run leaves, however it was cut short: appended to line by line, or written beside and renamed."""

import json
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from cluster.errors import RunFailed
from trainer.types import BadInput

READ_BACK: dict[str, dict[str, Any]] = {
    "decided": {"epoch": int, "rollouts": list[int]},
    "rolled_out": {"epoch": int},
    "stage_finished": {"index": int},
    "exported": {"model": str},
    "sink_opened": {"sink": str, "id": str},
}
"""What a resumed run takes from its journal, by event."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A disk that refuses becomes a RunFailed that names the file."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise RunFailed(f"{path}: cannot be written: {error}") from error


DAMAGE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, MemoryError, RecursionError)
"""What a line that another version wrote, or that somebody edited, makes of whoever reads it."""


@contextmanager
def as_written(path: Path) -> Iterator[None]:
    """Whoever takes the file's records apart inside need not check them: damage becomes a BadInput that names it."""
    try:
        yield
    except BadInput:
        raise
    except DAMAGE as error:
        raise BadInput(f"{path}: is not as tailrace writes it: {type(error).__name__}: {str(error)[:400]}") from error


class LineFile:
    """A JSONL file that stays open for appending. A line is handed to the system at once: a killed process loses none.

    Raises RunFailed if the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with writing(path):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self.close = weakref.finalize(self, os.close, self._descriptor)

    def append(self, record: dict) -> None:
        line = json.dumps(record).encode() + b"\n"
        with writing(self.path):
            while line:  # a disk that is nearly full takes a part, and refuses the rest
                line = line[os.write(self._descriptor, line) :]


def read_lines(path: Path, is_one: Callable[[dict], bool] | None = None) -> Iterator[dict]:
    """Records of a JSONL file; stops at a torn last line. Raises BadInput naming an earlier one that is no record, or
    of which `is_one` does not hold."""
    if not path.is_file():
        return
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict) or (is_one and not is_one(record)):
                raise BadInput(f"{path}:{number}: is damaged: {line[:60]!r}")
            yield record


def is_event(record: dict) -> bool:
    known = READ_BACK.get(record["event"], {}) if isinstance(record.get("event"), str) else None
    if known is None or not isinstance(record.get("time_s"), int | float):
        return False
    return all(_is(record.get(key), kind) for key, kind in known.items())


def _is(value: Any, kind: Any) -> bool:
    if kind == list[int]:
        return isinstance(value, list) and all(type(item) is int for item in value)
    return type(value) is kind


def is_row(record: dict) -> bool:
    return type(record.get("epoch")) is int


def write_atomically(path: Path, text: str) -> None:
    """Write beside, flush to the disk, rename."""
    beside = path.with_name(f".{path.name}.tmp")
    try:
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        with suppress(OSError):
            beside.unlink()
        raise
    flush(path.parent)


def flush(path: Path) -> None:
    """Have a file's bytes, or a directory's entries, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
