"""Which cores an engine is pinned to: such as no other engine on this machine has taken, of whichever run.

Where this process may use less than its cores, because a container has a share of the machine's time, nothing is
pinned: engines in other containers cannot be seen from here, and would be pinned to the same cores.
"""

import fcntl
import getpass
import os
import tempfile
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
_held: list[int] = []
"""Descriptors whose locks live as long as this process."""


def claim(count: int, cgroups: Path = CGROUPS) -> list[int]:
    """Cores of this process's own, `count` of them, held until the process ends; none where the system had better
    choose.

    When too few are free, taken ones are shared: then the machine has fewer cores than its engines were promised.
    """
    own = sorted(os.sched_getaffinity(0))
    if quota(cgroups) < len(own):
        return []
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


def quota(cgroups: Path = CGROUPS) -> float:
    """Cores' worth of time that this process's control group has; infinite without a bound. A container sees its own
    group at the top."""
    try:
        if (cgroups / "cpu.max").is_file():
            granted, period = (cgroups / "cpu.max").read_text().split()
        else:  # control groups of the first version
            granted = (cgroups / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroups / "cpu" / "cpu.cfs_period_us").read_text()
    except OSError:
        return float("inf")
    return float("inf") if granted in ("max", "-1") else int(granted) / int(period)
