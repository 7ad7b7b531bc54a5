"""What tailrace adds to vLLM, in every vLLM process (entry point group `vllm.general_plugins`).

Everything that leans on vLLM's internals lives in this file, `engine.py`, `scheduler.py`, `speculation.py` and
`transfer.py`.
"""

import ctypes
import multiprocessing
import os
import signal

from actors.speculation import mend_cpu_sampler

BACKEND = "ray_object_store"
"""Name under which our weight-transfer engine is registered."""
PR_SET_PDEATHSIG = 1
"""Of prctl(2)."""


def register() -> None:
    """Register the weight-transfer engine and mend the CPU sampler; vLLM may call this more than once per process."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, "actors.transfer", "ObjectStoreTransferEngine")
    mend_cpu_sampler()
    if multiprocessing.parent_process() is not None:
        _end_with_parent()


def _end_with_parent() -> None:
    """A process of a tensor-parallel engine that hangs would outlive its rollout worker, and keep memory and cores."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # it has died before
        os.kill(os.getpid(), signal.SIGKILL)
