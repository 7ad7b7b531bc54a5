"""What a run needs of the submitter's machine, as one directory that Ray carries to the cluster.

`JOB/spec.yaml` is the spec as the cluster will read it, `JOB/data/DIGEST/NAME` its JSONL files: the digest makes the
spec's text say which data is meant. Beside `JOB` lies the user's code, where Python finds it on every node. Nothing of
that code is imported here. Weights are not packed: they are named by absolute paths on storage that the nodes share.
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from cluster.capacity import gib
from cluster.spec import Spec, dump_spec
from cluster.user_code import module_path
from trainer.stages import OWN_EXPORTS
from trainer.types import BadInput

JOB = "tailrace_job"
"""Directory of a package that is not the user's code."""
MOST_BYTES = 400 * 2**20
"""Of a package; Ray refuses one of 500 MiB, and every node keeps a copy."""


def pack(spec: Spec, queue_s: float, code: Sequence[Path], into: Path) -> None:
    """Fill the empty directory `into`. `queue_s`: longest wait for room on the cluster; `code`: files and directories
    that the reward module imports beside itself. Raises BadInput naming the field."""
    packed = spec.model_copy(deep=True)
    packed.cluster.address = "auto"
    packed.limits.queue_timeout_s = queue_s
    (into / JOB / "data").mkdir(parents=True)
    _pack_data(packed, into / JOB)
    _check_weights(packed)
    _pack_code(packed.task.reward, code, into)
    (into / JOB / "spec.yaml").write_text(dump_spec(packed), encoding="utf-8")
    size_bytes = sum(path.stat().st_size for path in into.rglob("*") if path.is_file())
    if size_bytes > MOST_BYTES:
        raise BadInput(
            f"the JSONL files and the code have {gib(size_bytes)}, and Ray carries {gib(MOST_BYTES)} at most"
        )


def node_run_dir(spec: Spec) -> str:
    """The run's directory on the cluster; a relative run.directory starts at the home directory of Ray's head node,
    because the working directory of a job is deleted after it."""
    directory = PurePosixPath(spec.run.directory)
    anchored = directory if str(directory).startswith(("/", "~")) else "~" / directory
    return str(anchored / spec.run.name)


def _pack_data(spec: Spec, job: Path) -> None:
    for index, source in enumerate(spec.task.sources):
        if source.kind != "jsonl":
            continue
        field = f"task.sources.{index}"
        source.path = _pack_file(f"{field}.path", Path(source.path), job)
        if source.heldout_path is not None:
            source.heldout_path = _pack_file(f"{field}.heldout_path", Path(source.heldout_path), job)


def _pack_file(field: str, path: Path, job: Path) -> str:
    """The file's place in the package, relative to the spec in it."""
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe or a device would be read for ever
        raise BadInput(f"{field}: {path}: not a regular file")
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "blake2b").hexdigest()[:12]
        packed = job / "data" / digest / path.name
        packed.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, packed)
    except OSError as error:
        raise BadInput(f"{field}: {path}: {error.strerror}") from None
    return str(packed.relative_to(job))


def _check_weights(spec: Spec) -> None:
    """Raises BadInput where weights are named by a path that means something on this machine only."""
    named = {"model.source": spec.model.source, "drafter.source": spec.drafter.source}
    for index, stage in enumerate(spec.recipe):
        named[f"recipe.{index}.start"] = getattr(stage, "start", None)
        for number, path in enumerate(getattr(stage, "models", [])):
            named[f"recipe.{index}.models.{number}"] = path
    for field, path in named.items():
        if path is None or path.startswith(OWN_EXPORTS) or Path(path).is_absolute():
            continue
        if path.startswith(".") or Path(path).is_dir():
            raise BadInput(f"{field}: {path}: give an absolute path, on storage that the cluster's nodes share")


def _pack_code(reward: str | None, code: Sequence[Path], into: Path) -> None:
    found = [Path(os.path.abspath(path)) for path in code]  # which takes `..` out: it would lead out of the package too
    if reward is not None and (module := module_path(reward)) is not None:
        found.append(module)
    for path in found:
        target = into / path.name
        if path.name in ("", JOB):
            raise BadInput(f"--code {path}: has no name of its own, or {JOB}, which is taken; give another one")
        try:
            if path.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", ".git", ".venv")
                shutil.copytree(path, target, ignore=ignored, ignore_dangling_symlinks=True, dirs_exist_ok=True)
            elif path.is_file():
                shutil.copyfile(path, target)
            else:
                raise BadInput(f"--code {path}: no such file or directory")
        except (OSError, ValueError) as error:  # of copytree: all that could not be copied; ValueError: a NUL
            if isinstance(error, BadInput):
                raise
            raise BadInput(f"--code {path}: cannot be copied: {str(error)[:400]}") from None
