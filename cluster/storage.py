"""A copy of a run directory in a store that outlives the machine: s3://, gs://, any file system that fsspec knows.

A run works in real files (locks, renames); the store gets a snapshot after each checkpoint. It is uploaded in the order
in which a crash would have left it: rollouts, journal, the checkpoint's files, and last its manifest, without which a
checkpoint does not exist. So a copy that breaks off is as good as the one before it, and `resume` can go on from it.

An address belongs to one run: to the one whose `spec.yaml`, which goes up before everything else, lies there. Nothing
is written to an address that holds anything else, and nothing is deleted there but rollouts and checkpoints.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import fsspec

from cluster import redact
from cluster.checkpoint import RunDirectory
from cluster.errors import RunFailed
from cluster.manifest import MANIFEST, Damaged, read_manifest
from trainer.types import BadInput

SNAPSHOT = ".snapshot"
CHUNK_BYTES = 16 * 2**20
SNAPSHOTS = 5
"""Tries before a checkpoint that is not whole is taken to be damaged."""
SPEC = "spec.yaml"
OUTDATED = re.compile(r"rollouts/\d+\.safetensors|checkpoints/\d+/.+")
"""Names of what a run deletes while it goes on; nothing else is deleted in the store."""
OWN = {"checkpoints", "rollouts", "models", "logs", "inputs", "dropped", ".lock", ".inputs.tmp", SNAPSHOT}
"""What lies in the directory of a run that has not begun: its start failed."""


class Mirror:
    """The copy at `uri` of one run directory. One process at a time may push to it."""

    def __init__(self, uri: str, run_dir: Path) -> None:
        """Raises BadInput for an address that cannot be used, RunFailed when the store does not answer."""
        check_uri(uri)
        self.uri, self.run = uri, RunDirectory(run_dir)
        try:
            self._fs, root = fsspec.core.url_to_fs(uri)
        except (ValueError, ImportError) as error:
            raise BadInput(f"--storage {uri}: {error}") from None
        self._root = root.rstrip("/")
        self._sent: dict[str, tuple[int, int]] = {}  # what the store holds: size and time of change by relative path

    def newest(self) -> str | None:
        """Name of the newest complete checkpoint in the store."""
        with self._answers():
            manifests = self._fs.glob(f"{self._root}/checkpoints/*/{MANIFEST}")
        return max((PurePosixPath(path).parent.name for path in manifests), default=None)

    def read(self, name: str) -> bytes | None:
        """A file of the copy; None where there is none."""
        with self._answers(), suppress(FileNotFoundError):
            return self._fs.cat_file(f"{self._root}/{name}")
        return None

    def pull(self) -> bool:
        """Bring the run to this machine if the store is further than the directory here; says whether it did.

        Raises BadInput when the store holds another run, or the directory here is none of a run.
        """
        here = self.run.path / SPEC
        there = self._check_owner(here.read_bytes() if here.is_file() else None)
        if there is None or self.read("journal.jsonl") is None:  # a first copy that broke off holds no run
            return False
        remote, local = self.newest(), newest_local(self.run)
        if here.is_file() and (local or "") >= (remote or ""):
            return False
        _check_replaceable(self.run.path)
        with self._answers():
            beside = self.run.path.with_name(f".{self.run.path.name}.pulled")
            shutil.rmtree(beside, ignore_errors=True)
            for path in self._fs.find(self._root):
                name = PurePosixPath(path).relative_to(self._root)
                if ".." in name.parts:  # keys of a store are any text
                    raise BadInput(f"--storage {self.uri}: holds {name}, which leads out of the run directory")
                target = beside / name
                target.parent.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(path, str(target))
            with self.run.claimed():
                shutil.rmtree(self.run.path)
                os.replace(beside, self.run.path)
        return True

    def push(self) -> None:
        """Copy the run as it is now. Raises RunFailed when the store refuses; the copy before stays good. Raises
        BadInput when the store is not this run's."""
        snapshot = self.run.path / SNAPSHOT
        try:
            take_snapshot(self.run, snapshot)
            files = {str(path.relative_to(snapshot)): path for path in snapshot.rglob("*") if path.is_file()}
            if SPEC not in files:
                return  # nothing has begun
            own = files[SPEC].read_bytes()
            if self._check_owner(own) is None:
                self._sent.clear()  # somebody has emptied the store
            with self._answers():
                for name in sorted(files, key=_rank):
                    self._upload(name, files[name])
            self._check_owner(own)  # another run may have begun here at the same moment
            with self._answers():
                for path in self._fs.find(self._root):
                    name = str(PurePosixPath(path).relative_to(self._root))
                    if name not in files and OUTDATED.fullmatch(name):
                        self._fs.rm_file(path)
        finally:
            shutil.rmtree(snapshot, ignore_errors=True)

    def _check_owner(self, own: bytes | None) -> bytes | None:
        """The spec in the store; None where the store is empty. Raises BadInput where it is another than `own`, and
        where there is none among other files."""
        with self._answers():
            self._fs.invalidate_cache()
        there = self.read(SPEC)
        if there is not None and own is not None and there != own:
            raise BadInput(f"--storage {self.uri}: holds a run with another spec than {self.run.path}")
        if there is None:
            with self._answers():
                strange = next(iter(self._fs.find(self._root)), None)
            if strange is not None:
                name = PurePosixPath(strange).relative_to(self._root)
                raise BadInput(
                    f"--storage {self.uri}: holds files of no run ({name}, ...); give an address without anything"
                )
        return there

    def _upload(self, name: str, path: Path) -> None:
        mark = path.stat().st_size, path.stat().st_mtime_ns
        if self._sent.get(name) == mark:
            return
        remote = f"{self._root}/{name}"
        self._fs.makedirs(str(PurePosixPath(remote).parent), exist_ok=True)
        with open(path, "rb") as file, self._fs.transaction, self._fs.open(remote, "wb") as out:
            shutil.copyfileobj(file, out, CHUNK_BYTES)  # in a transaction: the old content or the new, nothing between
        self._sent[name] = mark

    @contextmanager
    def _answers(self) -> Iterator[None]:
        try:
            yield
        except BadInput:
            raise
        except Exception as error:  # each store raises exceptions of its own library
            raise RunFailed(f"--storage {self.uri}: {type(error).__name__}: {error}") from error


def check_uri(uri: str) -> None:
    """Raises BadInput where the address would carry a secret into logs, or means another place on every node."""
    parts = urlsplit(uri)
    if "@" in parts.netloc or redact.text(uri) != uri:
        raise BadInput("--storage: no credentials in the address; the store's own variables and files hold them")
    if not parts.scheme and not uri.startswith("/"):
        raise BadInput(f"--storage {uri}: give s3://, gs:// or another address with ://, or an absolute path")


def _check_replaceable(path: Path) -> None:
    """Raises BadInput where a directory holds what no run has put there: the copy that comes takes its place."""
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    if SPEC in names:
        return
    if strange := sorted(names - OWN) or sorted(names if names.isdisjoint({"inputs", ".lock"}) else ()):
        raise BadInput(f"{path}: holds {strange[0]} and is no run directory; choose another run.name or run.directory")


def newest_local(run: RunDirectory) -> str | None:
    """Name of the newest complete checkpoint of a run directory."""
    return max((path.parent.name for path in run.checkpoints.glob(f"[0-9]*/{MANIFEST}")), default=None)


def take_snapshot(run: RunDirectory, into: Path) -> None:
    """Hold the run as a crash at this moment would leave it, by hard links: the driver may go on, and delete, while
    they are uploaded. Raises RunFailed when the newest checkpoint lacks files of its own."""
    for _ in range(SNAPSHOTS):  # two newer checkpoints may be written meanwhile
        if _held(run, into):
            return
    raise RunFailed(f"{run.checkpoints}: the newest checkpoint is not whole")


def _held(run: RunDirectory, into: Path) -> bool:
    """Whether the snapshot is whole. What is appended to is copied, after the rollouts, so that every rollout's
    decision is in it."""
    shutil.rmtree(into, ignore_errors=True)
    newest = newest_local(run)
    kept = [run.checkpoints / newest] if newest else []
    for directory in (*kept, run.rollouts, run.models, run.path / "inputs", run.path / "dropped"):
        for parent, _, names in os.walk(directory):  # which passes over what vanishes
            for path in (Path(parent, name).relative_to(run.path) for name in names):
                if not any(part.startswith(".") for part in path.parts):
                    _hold(run.path / path, into / path, os.link)
    for path in run.path.glob("[!.]*.*"):
        if path.is_file():
            _hold(path, into / path.name, shutil.copy2)
    for path in run.logs.glob("*"):
        if path.is_file():
            _hold(path, into / path.relative_to(run.path), redact.copy)
    return newest is None or _is_whole(into / "checkpoints" / newest)


def _hold(path: Path, target: Path, copy: Callable[[Path, Path], object]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        copy(path, target)
    except FileNotFoundError:
        return  # the driver has just dropped it: rollouts before its oldest checkpoint, a file that was renamed


def _is_whole(checkpoint: Path) -> bool:
    try:
        return all((checkpoint / name).is_file() for name in read_manifest(checkpoint)["files"])
    except Damaged:
        return False


def _rank(name: str) -> tuple[int, str]:
    """The spec first, by which the store is this run's; what the journal tells of before the journal; the journal
    before the checkpoints, and what says that one is whole, or the run finished, last."""
    if name == SPEC:
        return 0, name
    if name == "journal.jsonl":
        return 2, name
    if name == "summary.json" or name.endswith(MANIFEST):
        return 4, name
    return 3 if name.startswith("checkpoints/") else 1, name
