"""Engines on one machine are pinned to different cores, as long as there are enough."""

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

CLAIM = "import sys; from actors.cores import claim; print(claim(int(sys.argv[1])), flush=True); sys.stdin.read()"


def claimed(stack: ExitStack, directory: Path, count: int) -> list[int]:
    """Cores that a process of its own has; it holds them until the stack ends."""
    env = {**os.environ, "TMPDIR": str(directory), "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", CLAIM, str(count)]
    process = subprocess.Popen(words, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    stack.callback(process.communicate)
    assert process.stdout is not None
    return [int(core) for core in process.stdout.readline().strip("[]\n").split(",") if core]


def test_processes_get_cores_of_their_own_and_share_only_when_there_are_too_few(tmp_path):
    own = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        taken = [claimed(stack, tmp_path, 1) for _ in own]
        assert sorted(core for cores in taken for core in cores) == own
        assert claimed(stack, tmp_path, 1) == own[:1], "one more shares"
        assert claimed(stack, tmp_path, 0) == []
    with ExitStack() as stack:
        assert claimed(stack, tmp_path, len(own)) == own, "a process that has ended holds none"
