"""JSONL files: lines appended one by one, of which a kill tears at most the last."""

import json
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from cluster.errors import RunFailed


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A disk that refuses becomes a RunFailed that names the file."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise RunFailed(f"{path}: cannot be written: {error}") from error


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


def append_line(path: Path, record: dict) -> None:
    """Raises RunFailed if the disk refuses."""
    file = LineFile(path)
    file.append(record)
    file.close()


def read_lines(path: Path) -> Iterator[dict]:
    """Records of a JSONL file; stops at a torn last line."""
    if not path.is_file():
        return
    with open(path, encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                return
            yield json.loads(line)
