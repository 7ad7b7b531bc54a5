"""Which cores an engine is pinned to: such as no other engine on this machine has taken, of whichever run."""

import fcntl
import getpass
import os
import tempfile
from pathlib import Path

_held: list[int] = []
"""Descriptors whose locks live as long as this process."""


def claim(count: int) -> list[int]:
    """Cores of this process's own, `count` of them, held until the process ends.

    When too few are free, taken ones are shared: then the machine has fewer cores than its engines were promised.
    """
    own = sorted(os.sched_getaffinity(0))
    directory = Path(tempfile.gettempdir()) / f"tailrace-cores-{getpass.getuser()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    taken: list[int] = []
    for core in own:
        if len(taken) == count:
            break
        descriptor = os.open(directory / str(core), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
        else:
            _held.append(descriptor)
            taken.append(core)
    shared = [core for core in own if core not in taken]
    return sorted(taken + shared[: count - len(taken)])
