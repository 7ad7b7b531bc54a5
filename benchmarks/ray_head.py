"""A Ray head with two CPUs and a token of its own, beside whatever else of Ray is on this machine."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOKEN = "7f" * 32
START_S = 300.0
"""Longest wait for a head, on a machine that does other things too."""


@contextlib.contextmanager
def ray_head() -> Iterator[tuple[str, dict[str, str]]]:
    """The address of its job server, and the environment of who turns to it."""
    directory = Path(tempfile.mkdtemp(prefix="tr", dir="/tmp"))  # Ray's sockets lie in it: at most 107 characters
    with socket.socket() as first, socket.socket() as second:
        for free in (first, second):
            free.bind(("127.0.0.1", 0))
        dashboard, client = first.getsockname()[1], second.getsockname()[1]
    address = f"http://127.0.0.1:{dashboard}"
    binaries = Path(sys.executable).parent
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {
        "PATH": os.pathsep.join([str(binaries), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN,
    }  # fmt: skip
    words = [
        str(binaries / "ray"), "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats", "--port=0",
        f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}", "--dashboard-agent-listen-port=0",
        "--min-worker-port=0", "--max-worker-port=0", f"--object-store-memory={2**29}", f"--temp-dir={directory}",
    ]  # fmt: skip
    said, deadline = directory / "head.log", time.monotonic() + START_S
    with said.open("w") as log:
        process = subprocess.Popen(words, env=env, stdout=log, stderr=log, cwd=directory)
    try:
        while not _up(address):
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < deadline, f"no head after {START_S:g} s: {said.read_text()}"
            time.sleep(0.3)
        yield address, env
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(directory, ignore_errors=True)


def _up(address: str) -> bool:
    request = urllib.request.Request(f"{address}/nodes?view=summary", headers={"Authorization": f"Bearer {TOKEN}"})
    with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5) as answer:
        return bool(json.load(answer)["data"]["summary"])
    return False
