"""Engines on one machine are pinned to different cores, as long as there are enough."""

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from actors.cores import claim, quota
from actors.engine import _prepare_environment

CLAIM = """
import sys; from pathlib import Path; from actors.cores import claim
print(claim(int(sys.argv[1]), Path(sys.argv[2])), flush=True); sys.stdin.read()
"""


def claimed(stack: ExitStack, directory: Path, count: int) -> list[int]:
    """Cores that a process of its own has; it holds them until the stack ends."""
    env = {**os.environ, "TMPDIR": str(directory), "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", CLAIM, str(count), str(directory / "cgroup")]
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


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "200000 100000\n"}, 2.0),
        ({"cpu.max": "50000 100000\n"}, 0.5),
        ({"cpu.max": "max 100000\n"}, float("inf")),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, float("inf")),
        ({}, float("inf")),
    ],
)
def test_a_share_of_the_machines_time_is_read_from_the_control_group(files, cores, tmp_path):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert quota(tmp_path) == cores


def test_a_container_with_less_than_its_cores_pins_nothing(tmp_path, monkeypatch):
    """All pods of a node see all its cores, and none sees the others' locks."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    (tmp_path / "cpu.max").write_text("200000 100000\n")
    assert claim(2, tmp_path) == []


@pytest.mark.parametrize(
    ("cores", "processes", "bound", "each"),
    [
        ([3, 5], 1, "3,5", "2"),
        ([], 1, "nobind", "2"),
        ([3, 5], 2, "3|5", "1"),
        ([], 2, "nobind", "1"),
        ([3], 2, "nobind", "1"),
    ],
)
def test_an_engine_has_its_threads_whether_they_are_pinned_or_not(cores, processes, bound, each, monkeypatch):
    for name in ("VLLM_CPU_OMP_THREADS_BIND", "OMP_NUM_THREADS", "VLLM_CPU_NUM_OF_RESERVED_CPU"):
        monkeypatch.setenv(name, "")
    _prepare_environment(2, cores, processes)
    assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == bound
    assert os.environ["OMP_NUM_THREADS"] == each
