"""What a submitted job runs on the cluster: `python -m cluster.attempts`, in the directory that `cluster.packing` made.

It starts `tailrace train`, or `tailrace resume` where the run has begun, in a process of its own, and again after a
crash, as often as it may; a process that shows no sign of life is killed, which is a crash. Beside that it copies the
run to its storage after each checkpoint. A job that is submitted once more, on this cluster or the next, therefore goes
on where the run was left.

Ray's stop signals every process of the job: the run's writes a checkpoint and ends, this one waits for it.
"""

import argparse
import difflib
import importlib.metadata
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from cluster.checkpoint import RunDirectory
from cluster.errors import RunFailed
from cluster.life import Life
from cluster.packing import JOB
from cluster.redact import text
from cluster.storage import Mirror, newest_local
from trainer.types import BadInput

POLL_S = 1.0
LONGEST_PAUSE_S = 60.0
"""Between two attempts; it begins with 2 s and doubles."""
STORE_PAUSES_S = (2.0, 4.0, 8.0, 16.0, 30.0)
"""Between tries of a store that does not answer, where no later copy would make up for it."""
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
        job, mirror = Path.cwd() / JOB, None
        if given.storage:
            mirror = Mirror(given.storage, given.run_dir)
            bring(mirror, job, given.run_dir, stop)
        take_in(job, given.run_dir)
        return attempt(given.run_dir, given.retries, mirror, stop)
    except (BadInput, RunFailed, OSError) as error:
        say(str(error))
        return 2 if isinstance(error, BadInput) else 1


def bring(mirror: Mirror, job: Path, run_dir: Path, stop: threading.Event) -> None:
    """Have the run's directory here where the storage is further. Raises BadInput where that is another job's run."""

    def further() -> bool:
        begun = mirror.read("inputs/spec.yaml")
        new = (job / "spec.yaml").read_text(encoding="utf-8")
        if begun is not None and (changes := differences(begun.decode(errors="replace"), new)):
            raise BadInput(f"--storage {mirror.uri}: holds a run with another spec or other data: {changes}")
        return mirror.pull()

    if patiently(further, stop):
        say(f"the run was brought to {run_dir} from {mirror.uri}")


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
    return "; ".join([line for line in changed if "queue_timeout_s" not in line][:8])


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
        last = code in FINAL or stop.is_set() or failures == retries
        if mirror and (run_dir / "spec.yaml").is_file():
            keep(mirror, stop, last)
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
    """Exit code of the process when it ends. Meanwhile the run is copied to the storage, as soon as it has begun and
    with every new checkpoint, and the process is killed when it has hung. Raises BadInput, after the run has stopped
    with a checkpoint, when the storage turns out to be another run's."""
    run, life, hung = RunDirectory(run_dir), Life(process.pid, run_dir), False
    copied: tuple[bool, str | None] = (False, None)
    refused: BadInput | None = None
    while True:
        try:
            code = process.wait(POLL_S)
        except subprocess.TimeoutExpired:
            pass
        else:
            if refused:
                raise refused
            return code
        if not hung and (why := life.hung()):
            say(f"{why}: it is killed")
            process.kill()
            hung = True
        now = ((run_dir / "spec.yaml").is_file(), newest_local(run))
        if mirror is None or refused or not now[0] or now == copied:
            continue
        copied = now
        try:
            mirror.push()
        except BadInput as error:
            say(f"{error}; the run ends with a checkpoint")
            refused = error
            process.terminate()
        except (RunFailed, OSError) as error:
            say(f"checkpoint {now[1]} is not in the storage, the next one will be tried: {error}")


def keep(mirror: Mirror, stop: threading.Event, last: bool) -> None:
    """Copy the run as an attempt has left it; only the last of them is worth waiting for a store that does not answer,
    and a run is as good without its copy."""
    try:
        patiently(mirror.push, stop) if last else mirror.push()
    except (RunFailed, OSError) as error:
        more = f"it is in {mirror.run.path} only" if last else "the next attempt tries again"
        say(f"how this attempt ended is not in the storage, {more}: {error}")
    else:
        say(f"kept in {mirror.uri}")


def patiently(action: Callable[[], object], stop: threading.Event) -> object:
    """What the action gives; tried again while a store does not answer, unless the job is to stop."""
    for pause_s in STORE_PAUSES_S:
        try:
            return action()
        except (RunFailed, OSError) as error:
            say(f"again in {pause_s:g} s: {error}")
            if stop.wait(pause_s):
                break
    return action()


def say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} job: {text(what)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
