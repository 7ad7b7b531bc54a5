"""What a run leaves on disk, so that it can be killed at any moment: journal, metrics, rollouts, checkpoints.

Every file is either appended to line by line (a torn last line is dropped when read) or written beside, flushed and
renamed. A checkpoint is a directory with a manifest (see `cluster.manifest`); one without does not exist for us.
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
from cluster.lines import LineFile, flush, is_event, is_row, read_lines, write_atomically, writing
from cluster.manifest import MANIFEST, Damaged, checked, read_manifest, sealed
from cluster.redact import text
from trainer.stages import OWN_EXPORTS
from trainer.types import COLUMNS, BadInput, Group

TOLD = ("why", "reason")
LONGEST_NAME = 32
"""Of a worker, a group, a set of prompts."""


class RunDirectory:
    """Paths and formats of one run directory."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.checkpoints = self.path / "checkpoints"
        self.rollouts = self.path / "rollouts"
        self.models = self.path / "models"
        self.logs = self.path / "logs"
        self._open: dict[str, LineFile] = {}  # by name, opened by the first line

    def create(self) -> None:
        for directory in (self.checkpoints, self.rollouts, self.models, self.logs):
            directory.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Make the directories and keep every other tailrace process out. Raises BadInput."""
        try:
            self._refuse_links()
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
                self._close_lines()

    def _refuse_links(self) -> None:
        """What a run writes to is its own: a link would take it out of its directory, a pipe stop it."""
        directories = (self.checkpoints, self.rollouts, self.models, self.logs, self.path / "dropped")
        files = (self.path / name for name in (".lock", "journal.jsonl", "metrics.jsonl"))
        for path in (*directories, *files, *self.logs.glob("*")):
            if path.is_symlink() or (path.exists() and not (path.is_file() or path.is_dir())):
                raise BadInput(f"{path}: is a link or no regular file, and a run writes inside its own directory only")

    # Lines.

    def journal(self, event: str, **fields: Any) -> None:
        """Append one event. Not flushed to the disk each time: a killed process loses nothing, a killed machine goes
        back to the newest checkpoint, and that flushes. What is longer than a name may be what a library says, secrets
        and all."""
        fields |= {k: text(v) for k, v in fields.items() if isinstance(v, str) and (k in TOLD or len(v) > LONGEST_NAME)}
        self._append("journal.jsonl", {"event": event, "time_s": round(time.time(), 3), **fields})

    def events(self) -> list[dict]:
        """Raises BadInput naming a line that is not as the journal has it."""
        return list(read_lines(self.path / "journal.jsonl", is_event))

    def add_metrics(self, row: dict) -> None:
        self._append("metrics.jsonl", row)

    def metrics(self) -> list[dict]:
        """Raises BadInput naming a line that is no row."""
        return list(read_lines(self.path / "metrics.jsonl", is_row))

    def keep_metrics(self, keep: Callable[[dict], bool]) -> None:
        """Drop rows that a resumed run will write again."""
        self._close_lines()
        rows = [row for row in self.metrics() if keep(row)]
        write_atomically(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def go_on(self) -> None:
        """A sign of life where there is nothing to journal for long, to whoever looks at the journal's time."""
        if (path := self.path / "journal.jsonl").is_file():
            os.utime(path)

    def flush_lines(self) -> None:
        """Bring journal and metrics to the disk, before a checkpoint says that what they tell has happened."""
        for name in ("journal.jsonl", "metrics.jsonl"):
            if (self.path / name).is_file():
                flush(self.path / name)

    def mend_lines(self) -> None:
        """End a line that a kill tore, so that the next one starts afresh. Raises BadInput for any other damage."""
        self._close_lines()  # they may be other files afterwards
        for name, records in (("journal.jsonl", self.events()), ("metrics.jsonl", self.metrics())):
            path = self.path / name
            if path.is_file() and path.stat().st_size and path.read_bytes()[-1:] != b"\n":
                write_atomically(path, "".join(json.dumps(record) + "\n" for record in records))

    def _append(self, name: str, record: dict) -> None:
        if name not in self._open:
            self._open[name] = LineFile(self.path / name)
        self._open[name].append(record)

    def _close_lines(self) -> None:
        for file in self._open.values():
            file.close()
        self._open = {}

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
        metadata = {"groups": json.dumps(header), "extra": json.dumps(extra)}
        beside = path.parent / f".{path.stem}.tmp"
        with writing(path):
            save_file(columns, beside, metadata={**metadata, "digest": _seal(columns, metadata)})
            flush(beside)
            os.replace(beside, path)

    def load_groups(self, epoch: int) -> tuple[list[Group], dict[str, Any]] | None:
        """An epoch's groups, or None if its rollout phase was never finished. Raises RunFailed for a damaged file."""
        path = self._groups_file(epoch)
        if not path.is_file():
            return None
        columns, metadata = _load_sealed(path)
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
                flush(path)
            os.replace(beside, final)
            flush(self.models)

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
            for path in beside.rglob("*"):
                flush(path)
            write_atomically(beside / MANIFEST, sealed(beside, manifest))
            shutil.rmtree(final, ignore_errors=True)
            os.replace(beside, final)
            flush(self.checkpoints)
        except ActorLost:
            raise
        except (OSError, SafetensorError, Damaged, RunFailed) as error:
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
        """The newest checkpoint that is as it was written, and its manifest; None where there is none at all.

        Raises RunFailed where there are some and all are damaged: from its beginning the run would spend twice.
        """
        damages = []
        for path in reversed(self._complete_checkpoints()):
            try:
                return path, checked(path)
            except Damaged as error:
                damages.append(f"{path.name}: {error}")
        if damages:
            raise RunFailed(f"{self.checkpoints}: no checkpoint is as it was written: {'; '.join(damages)}")
        return None

    def oldest_manifest(self) -> dict | None:
        """Manifest of the oldest kept checkpoint; None where it cannot be told."""
        try:
            paths = self._complete_checkpoints()
            return read_manifest(paths[0]) if paths else None
        except Damaged:
            return None

    def _complete_checkpoints(self) -> list[Path]:
        return sorted(path.parent for path in self.checkpoints.glob("[0-9]*/" + MANIFEST))


def save_state(path: Path, state: dict[str, Any]) -> None:
    """A flat dictionary of numpy arrays and plain scalars as safetensors: arrays as tensors, scalars as JSON."""
    arrays = {key: np.asarray(value, order="C") for key, value in state.items() if isinstance(value, np.ndarray)}
    scalars = {key: value for key, value in state.items() if not isinstance(value, np.ndarray)}
    save_file(arrays, path, metadata={"scalars": json.dumps(scalars)})


def load_state(path: Path) -> dict[str, Any]:
    """What `save_state` wrote. Raises RunFailed for a damaged file."""
    arrays, metadata = _load(path)
    return {**arrays, **json.loads(metadata["scalars"])}


def _load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    from safetensors import safe_open

    try:
        with safe_open(path, "numpy") as file:
            return load_file(path), file.metadata() or {}
    except (OSError, ValueError, SafetensorError) as error:
        raise RunFailed(f"{path}: cannot be read: {error}") from error


def _load_sealed(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    columns, metadata = _load(path)
    if metadata.pop("digest", None) != _seal(columns, metadata):
        raise RunFailed(f"{path}: stored rollouts are not as they were written; the run cannot be resumed")
    return columns, metadata


def _seal(columns: dict[str, np.ndarray], metadata: dict[str, str]) -> str:
    """A digest of it all: safetensors has none of its own."""
    digest = hashlib.blake2b(json.dumps(metadata, sort_keys=True).encode(), digest_size=16)
    for name, column in sorted(columns.items()):
        digest.update(f"{name} {column.dtype} {column.shape}".encode())
        digest.update(np.ascontiguousarray(column).data)
    return digest.hexdigest()
