"""Where the noise goes: everything an actor's libraries print lands in a file of the run directory."""

import os
import sys
from pathlib import Path


def send_output_to_log() -> None:
    """Append this process's stdout and stderr to the file named by TAILRACE_LOG, below Python too.

    Without its directory (another machine without the shared storage) the output stays in Ray's own logs.
    """
    path = os.environ.get("TAILRACE_LOG", "")
    if not path or not Path(path).parent.is_dir():
        return
    with open(path, "ab", buffering=0) as log:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
