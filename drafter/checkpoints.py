"""Saving while training goes on: copy what is trainable, write it in a background thread.

TLT's selective asynchronous checkpoint (arXiv 2511.16665): training waits for the copy only, and frozen tensors, which
are the target's and most of the bytes, are not written at all.
"""

import os
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from trainer.types import BadInput


class BackgroundSaver:
    """One writer, at most one save in the air: a second one waits for the first, so that files appear in order."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="drafter-save")
        self._last: Future[None] | None = None
        self._lock = threading.Lock()

    def save(self, state: Mapping[str, torch.Tensor], path: Path) -> Future[None]:
        """Returns when `state` is copied; the future is done when it is at `path`. Raises what the last save raised."""
        with self._lock:
            self.wait()
            copied = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}
            self._last = self._thread.submit(save_state, copied, path)
            return self._last

    def wait(self) -> None:
        """Until nothing is in the air. Raises what the last save raised, once."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        self.wait()
        self._thread.shutdown()


def save_state(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """A flat state at `path`, written beside and renamed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(dict(state), beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def load_state(path: Path) -> dict[str, torch.Tensor]:
    """A state as it was saved; BadInput names a file that is missing, truncated or corrupt."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path}: {error}") from error
