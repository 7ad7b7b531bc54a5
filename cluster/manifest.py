"""A checkpoint's manifest: every file of the directory with its digest, and a digest of the manifest itself.

DeepSpeed's part of a checkpoint is read by unpickling, which runs what is in it. So nothing of a checkpoint is read
before all of it was found to be as it was written: no file more, none less, no links, no other bytes.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


class Damaged(ValueError):
    """The checkpoint is not as it was written; the message says what differs."""


def sealed(directory: Path, facts: dict[str, Any]) -> str:
    """The text of the manifest of a directory as it is now, with these facts."""
    names = sorted(_files(directory))
    manifest = {**facts, "files": {name: file_digest(directory / name) for name in names}}
    return json.dumps({**manifest, "digest": _digest_of(manifest)}, indent=1)


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest alone, as it was written. Raises Damaged."""
    path = directory / MANIFEST
    try:
        if path.is_symlink():
            raise Damaged(f"{MANIFEST} is a link")
        manifest = json.loads(path.read_bytes())
        digest = manifest.pop("digest")
        if digest != _digest_of(manifest):
            raise Damaged(f"{MANIFEST} is not as it was written")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, Damaged):
            raise
        raise Damaged(f"{MANIFEST} cannot be read: {type(error).__name__}") from None
    return manifest


def checked(directory: Path) -> dict[str, Any]:
    """The manifest of a checkpoint that is as it was written. Raises Damaged."""
    manifest = read_manifest(directory)
    try:
        found, listed = set(_files(directory)) - {MANIFEST}, manifest["files"]
        for name in sorted(found ^ listed.keys()):
            raise Damaged(f"{name} is {'not in the manifest' if name in found else 'missing'}")
        for name, digest in listed.items():
            if file_digest(directory / name) != digest:
                raise Damaged(f"{name} is not as it was written")
    except OSError as error:
        raise Damaged(f"cannot be read: {error}") from None
    return manifest


def _files(directory: Path) -> Iterator[str]:
    """Relative paths of everything that is no directory. Raises Damaged for links, pipes, devices."""
    for parent, directories, files in os.walk(directory):
        for name in (*directories, *files):
            path = Path(parent, name)
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                yield str(path.relative_to(directory))
            elif not stat.S_ISDIR(mode):
                raise Damaged(f"{path.relative_to(directory)} is a link or no regular file")


def file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def _digest_of(manifest: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(manifest, sort_keys=True).encode(), digest_size=16).hexdigest()
