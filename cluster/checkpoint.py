"""What a run leaves on disk, so that it can be killed at any moment: journal, metrics, rollouts, checkpoints.

Every file is either appended to line by line (a torn last line is dropped when read) or written beside, flushed and
renamed. A checkpoint is a directory with a manifest that lists its files with their digests; a directory without a
manifest does not exist for us.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from cluster.errors import ActorLost, RunFailed
from cluster.lines import LineFile, append_line, read_lines, writing
from trainer.stages import OWN_EXPORTS
from trainer.types import COLUMNS, BadInput, Group

MANIFEST = "manifest.json"


class RunDirectory:
    """Paths and formats of one run directory."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.checkpoints = self.path / "checkpoints"
        self.rollouts = self.path / "rollouts"
        self.models = self.path / "models"
        self.logs = self.path / "logs"
        self._journal: LineFile | None = None  # opened by the first event

    def create(self) -> None:
        for directory in (self.checkpoints, self.rollouts, self.models, self.logs):
            directory.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Make the directories and keep every other tailrace process out. Raises BadInput."""
        try:
            self.create()
            lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise BadInput(f"{self.path}: cannot be a run directory: {error.strerror}") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise BadInput(f"{self.path}: another tailrace process is working on this run") from None
            try:
                yield
            finally:
                self._close_journal()

    # Lines.

    def journal(self, event: str, **fields: Any) -> None:
        """Append one event. Not flushed to the disk each time: a killed process loses nothing, a killed machine goes
        back to the newest checkpoint, and that flushes."""
        self._journal = self._journal or LineFile(self.path / "journal.jsonl")
        self._journal.append({"event": event, "time_s": round(time.time(), 3), **fields})

    def _close_journal(self) -> None:
        if self._journal:
            self._journal.close()
        self._journal = None

    def events(self) -> list[dict]:
        return list(read_lines(self.path / "journal.jsonl"))

    def add_metrics(self, row: dict) -> None:
        append_line(self.path / "metrics.jsonl", row)

    def metrics(self) -> list[dict]:
        return list(read_lines(self.path / "metrics.jsonl"))

    def keep_metrics(self, keep: Callable[[dict], bool]) -> None:
        """Drop rows that a resumed run will write again."""
        rows = [row for row in self.metrics() if keep(row)]
        write_atomically(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def flush_lines(self) -> None:
        """Bring journal and metrics to the disk, before a checkpoint says that what they tell has happened."""
        for name in ("journal.jsonl", "metrics.jsonl"):
            if (self.path / name).is_file():
                _flush(self.path / name)

    def mend_lines(self) -> None:
        """End a line that a kill tore, so that the next one starts afresh."""
        self._close_journal()  # it may be another file afterwards
        for name in ("journal.jsonl", "metrics.jsonl"):
            path = self.path / name
            if path.is_file() and path.stat().st_size and path.read_bytes()[-1:] != b"\n":
                write_atomically(path, "".join(json.dumps(row) + "\n" for row in read_lines(path)))

    # Rollouts of an epoch.

    def save_groups(self, epoch: int, groups: Sequence[Group], extra: dict[str, Any]) -> None:
        """Keep an epoch's finished groups; with them the epoch can be learned again without sampling it again."""
        self._write_groups(self._groups_file(epoch), groups, extra)

    def save_dropped(self, epoch: int, groups: Sequence[Group]) -> Path:
        """Keep the batch of an update that was dropped, to be looked into; gives the file."""
        path = self.path / "dropped" / f"{epoch:06d}.safetensors"
        path.parent.mkdir(exist_ok=True)
        self._write_groups(path, groups, {})
        return path

    def _write_groups(self, path: Path, groups: Sequence[Group], extra: dict[str, Any]) -> None:
        if groups:
            columns = {name: np.concatenate([getattr(g, name) for g in groups]) for name in COLUMNS}
        else:
            columns = {"lengths": np.zeros(0, np.int32)}
        header = [[g.id, g.prompt, g.weight_version, len(g), g.believed] for g in groups]
        beside = path.parent / f".{path.stem}.tmp"
        with writing(path):
            save_file(columns, beside, metadata={"groups": json.dumps(header), "extra": json.dumps(extra)})
            _flush(beside)
            os.replace(beside, path)

    def load_groups(self, epoch: int) -> tuple[list[Group], dict[str, Any]] | None:
        """An epoch's groups, or None if its rollout phase was never finished."""
        path = self._groups_file(epoch)
        if not path.is_file():
            return None
        from safetensors import safe_open

        columns = load_file(path)
        with safe_open(path, "numpy") as file:
            metadata = file.metadata()
        groups, row, token = [], 0, 0
        for group_id, prompt, version, size, believed in json.loads(metadata["groups"]):
            rows = slice(row, row + size)
            count = int(columns["lengths"][rows].sum())
            tokens = slice(token, token + count)
            row, token = row + size, token + count
            groups.append(
                Group(
                    group_id, epoch, prompt, version, columns["token_ids"][tokens], columns["logprobs"][tokens],
                    columns["lengths"][rows], columns["rewards"][rows], columns["truncated"][rows],
                    believed,
                )
            )  # fmt: skip
        return groups, json.loads(metadata["extra"])

    def _groups_file(self, epoch: int) -> Path:
        return self.rollouts / f"{epoch:06d}.safetensors"

    # Models.

    def add_model(self, name: str, write: Callable[[Path], object]) -> None:
        """Write `models/name` through `write(directory)`, atomically. Raises RunFailed if the disk refuses."""
        final, beside = self.models / name, self.models / f".{name}.tmp"
        with writing(final):
            shutil.rmtree(beside, ignore_errors=True)
            write(beside)
            for path in beside.rglob("*"):
                _flush(path)
            os.replace(beside, final)
            _flush(self.models)

    def weights(self, named: str) -> Path:
        """The directory that a stage names: an export of this run as `models/NAME`, any other as it is."""
        return self.path / named if named.startswith(OWN_EXPORTS) else Path(named).expanduser().absolute()

    # Checkpoints.

    def save_checkpoint(self, number: int, keep: int, manifest: dict, write: Callable[[Path], None]) -> Path:
        """Write checkpoint `number` through `write(directory)`, atomically; keep the newest `keep`.

        Raises RunFailed if the disk refuses, here or in an actor that `write` asked; older checkpoints stay.
        """
        final = self.checkpoints / f"{number:08d}"
        beside = self.checkpoints / f".{number:08d}.tmp"
        try:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            write(beside)
            files = [path for path in sorted(beside.rglob("*")) if path.is_file()]
            manifest = {**manifest, "files": {str(p.relative_to(beside)): _digest_and_flush(p) for p in files}}
            write_atomically(beside / MANIFEST, json.dumps(manifest, indent=1))
            shutil.rmtree(final, ignore_errors=True)
            os.replace(beside, final)
            _flush(self.checkpoints)
        except ActorLost:
            raise
        except (OSError, SafetensorError, RunFailed) as error:
            shutil.rmtree(beside, ignore_errors=True)
            raise RunFailed(f"{final}: the checkpoint cannot be written: {error}") from error
        for old in self._complete_checkpoints()[:-keep]:
            shutil.rmtree(old)
        return final

    def drop_rollouts_before(self, epoch: int) -> None:
        """Delete stored rollouts that no kept checkpoint needs for its replay."""
        for path in self.rollouts.glob("[0-9]*.safetensors"):
            if int(path.stem) < epoch:
                path.unlink()

    def newest_checkpoint(self) -> tuple[Path, dict] | None:
        """The newest checkpoint whose files are all as the manifest says, and the manifest."""
        for path in reversed(self._complete_checkpoints()):
            try:
                manifest = json.loads((path / MANIFEST).read_text())
            except ValueError:
                continue
            if all((path / f).is_file() and _digest(path / f) == d for f, d in manifest["files"].items()):
                return path, manifest
        return None

    def oldest_manifest(self) -> dict | None:
        """Manifest of the oldest kept checkpoint."""
        paths = self._complete_checkpoints()
        return json.loads((paths[0] / MANIFEST).read_text()) if paths else None

    def _complete_checkpoints(self) -> list[Path]:
        return sorted(path.parent for path in self.checkpoints.glob("[0-9]*/" + MANIFEST))


def write_atomically(path: Path, text: str) -> None:
    """Write beside, flush to the disk, rename."""
    beside = path.with_name(f".{path.name}.tmp")
    with open(beside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    _flush(path.parent)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """A flat dictionary of numpy arrays and plain scalars as safetensors: arrays as tensors, scalars as JSON."""
    arrays = {key: np.asarray(value, order="C") for key, value in state.items() if isinstance(value, np.ndarray)}
    scalars = {key: value for key, value in state.items() if not isinstance(value, np.ndarray)}
    save_file(arrays, path, metadata={"scalars": json.dumps(scalars)})


def load_state(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        return {**load_file(path), **json.loads(file.metadata()["scalars"])}


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def _digest_and_flush(path: Path) -> str:
    _flush(path)
    return _digest(path)


def _flush(path: Path) -> None:
    """Have a file's bytes, or a directory's entries, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
