"""What DeepSpeed compiles is found by the next process, also when one was killed while it compiled."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BUILD = "import sys, pathlib; from actors.compiled import build_helper; build_helper(pathlib.Path(sys.argv[1]))"


@pytest.mark.stack
@pytest.mark.chaos
def test_a_lock_that_a_killed_build_left_behind_holds_up_nobody(tmp_path):
    built = sorted((Path.home() / ".cache" / "tailrace").glob("torch-extensions-*/*/*.so"))
    home = built[0].parents[1] if built else tmp_path
    lock = (built[0].parent if built else tmp_path / "deepspeed_shm_comm") / "lock"
    lock.parent.mkdir(exist_ok=True)
    lock.touch()
    env = {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "TORCH_EXTENSIONS_DIR": str(home),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    subprocess.run([sys.executable, "-c", BUILD, str(tmp_path)], env=env, check=True, timeout=250)
    assert not lock.exists()
    assert list(home.glob("*/*.so"))
