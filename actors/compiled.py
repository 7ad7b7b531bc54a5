"""The one helper that DeepSpeed compiles at its first use on CPU: built once per environment, by one process at a time.

torch keeps such builds in one directory per user and guards them by a file that a killed process leaves behind, for
which every later one then waits without end; and two environments whose ninja differs build it anew for each other.
"""

import fcntl
import hashlib
import os
import shutil
import sys
from pathlib import Path


def build_helper(cache: Path) -> None:
    """Compile the helper for collectives in shared memory, or load it if that was done; `cache`: the user's."""
    import deepspeed
    import torch
    from deepspeed.accelerator import get_accelerator

    environment = [sys.prefix, torch.__version__, deepspeed.__version__, shutil.which("ninja"), os.uname().nodename]
    key = hashlib.blake2b(repr(environment).encode(), digest_size=6).hexdigest()
    directory = Path(os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(cache / f"torch-extensions-{key}")))
    directory.mkdir(parents=True, exist_ok=True)
    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    with open(directory / ".building", "w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        for left in directory.glob("*/lock"):  # its process is dead, or it would hold the guard
            left.unlink()
        builder.load(verbose=False)
