"""What a submitted job runs on the cluster: `python -m cluster.attempts`, in the directory that `cluster.packing` made.

It starts `tailrace train`, or `tailrace resume` where the run has begun, in a process of its own, and again after a
crash, as often as it may. Beside that it copies the run to its storage after each checkpoint. A job that is submitted
once more, on this cluster or the next, therefore goes on where the run was left.

Ray's stop signals every process of the job: the run's writes a checkpoint and ends, this one waits for it.
"""

import argparse
import contextlib
import difflib
import importlib.metadata
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from cluster.checkpoint import RunDirectory
from cluster.errors import RunFailed
from cluster.packing import JOB
from cluster.redact import text
from cluster.storage import Mirror, newest_local
from trainer.types import BadInput

POLL_S = 1.0
LONGEST_PAUSE_S = 60.0
"""Between two attempts; it begins with 2 s and doubles."""
FINAL = (0, 2, 130)
"""Exit codes after which there is nothing to try again: finished, bad input, stopped with a checkpoint."""


def main() -> int:
    """The job's exit code, as `tailrace` gives it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=lambda text: Path(text).expanduser(), required=True)
    parser.add_argument("--storage")
    parser.add_argument("--retries", type=int, required=True)
    parser.add_argument("--tailrace", required=True, help="version that made the package")
    given = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        check_version(given.tailrace, importlib.metadata.version("tailrace"))
        mirror = Mirror(given.storage, given.run_dir) if given.storage else None
        if mirror and mirror.pull():
            say(f"the run was brought here from {given.storage}")
        take_in(Path.cwd() / JOB, given.run_dir)
        return attempt(given.run_dir, given.retries, mirror, stop)
    except (BadInput, RunFailed) as error:
        say(str(error))
        return 2 if isinstance(error, BadInput) else 1


def check_version(packed: str, here: str) -> None:
    if packed != here:
        raise BadInput(f"submitted with tailrace {packed}, and the cluster has tailrace {here}")


def take_in(job: Path, run_dir: Path) -> None:
    """Keep the package's spec and data in the run directory, which outlives the job's. Raises BadInput when the run
    was begun with others."""
    inputs = run_dir / "inputs"
    if (run_dir / "spec.yaml").is_file():
        new = (job / "spec.yaml").read_text(encoding="utf-8")
        if not (inputs / "spec.yaml").is_file():
            raise BadInput(f"{run_dir}: this run was not submitted; continue it with: tailrace resume {run_dir}")
        if changes := differences((inputs / "spec.yaml").read_text(encoding="utf-8"), new):
            raise BadInput(f"{run_dir}: this run was begun with another spec or other data: {changes}")
        return
    try:
        beside = run_dir / ".inputs.tmp"
        shutil.rmtree(beside, ignore_errors=True)
        shutil.copytree(job, beside)
        shutil.rmtree(inputs, ignore_errors=True)
        os.replace(beside, inputs)
    except OSError as error:
        raise BadInput(f"{run_dir}: cannot be a run directory: {error.strerror}") from None


def differences(old: str, new: str) -> str:
    """The lines that differ, short; empty when there are none. How long a run may wait for room is not of them."""
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), n=0, lineterm="")
    changed = [line[0] + line[1:].strip() for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")]
    return "; ".join([line for line in changed if "placement_timeout_s" not in line][:8])


def command(run_dir: Path) -> list[str]:
    """Arguments of `tailrace` that take the run one attempt further."""
    if (run_dir / "spec.yaml").is_file():
        return ["resume", str(run_dir)]
    return ["train", str(run_dir / "inputs" / "spec.yaml"), "--run-dir", str(run_dir)]


def attempt(run_dir: Path, retries: int, mirror: Mirror | None, stop: threading.Event) -> int:
    """Until the run is finished, stopped, or has crashed once more than `retries` times; gives the exit code."""
    for failures in range(retries + 1):
        if (run_dir / "summary.json").is_file():
            say(f"{run_dir}: this run is finished")
            code = 0
        else:
            code = watch(subprocess.Popen([sys.executable, "-m", "cluster.cli", *command(run_dir)]), run_dir, mirror)
        if mirror and run_dir.is_dir():
            mirror.push()
            say(f"kept in {mirror.uri}")
        if stop.is_set():
            return 130
        if code in FINAL:
            return code
        if failures < retries:
            pause_s = min(2.0 ** (failures + 1), LONGEST_PAUSE_S)
            say(f"ended with code {code}; attempt {failures + 2} of {retries + 1} in {pause_s:g} s")
            if stop.wait(pause_s):
                return 130
    say(f"ended with code {code}; no attempt is left of {retries + 1}")
    return 1


def watch(process: "subprocess.Popen[bytes]", run_dir: Path, mirror: Mirror | None) -> int:
    """Exit code of the process when it ends; meanwhile every new checkpoint is copied to the storage."""
    run, copied = RunDirectory(run_dir), newest_local(RunDirectory(run_dir))
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(POLL_S)
        newest = newest_local(run)
        if mirror is None or newest is None or newest == copied:
            continue
        copied = newest
        try:
            mirror.push()
        except (RunFailed, OSError) as error:
            say(f"checkpoint {newest} is not in the storage, the next one will be tried: {error}")


def say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} job: {text(what)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
