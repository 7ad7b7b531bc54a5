"""What the cluster, or without one this machine, has to offer a run; and what a run's bundles lack there."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

ASK_TIMEOUT_S = 20.0
"""Longest wait for a Ray cluster to say what it has."""
KNOCK_TIMEOUT_S = 3.0
"""Longest wait for anything to listen at the address; Ray itself would go on trying."""

_ASK_RAY = """
import json, logging, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
print(json.dumps([node["Resources"] for node in ray.nodes() if node["Alive"]]))
"""


@dataclass(frozen=True)
class Node:
    cpus: float
    gpus: float
    memory_bytes: float


def nodes_of(address: str | None) -> list[Node]:
    """The nodes of the Ray cluster at `address`, or this machine alone. Raises ConnectionError saying why not."""
    return [this_machine()] if address is None else _ray_nodes(address)


def this_machine() -> Node:
    """Cores and GPUs that this process may use, memory within the cgroup's limit."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Node(cpus, _visible_gpus(), min(psutil.virtual_memory().total, _cgroup_memory_bytes()))


def lacks(bundles: Sequence[dict[str, float]], memory_bytes: float, nodes: Sequence[Node]) -> list[str]:
    """What the nodes do not have, one sentence each; empty when the run fits.

    `memory_bytes` is the run's total over all nodes. Bundles are placed largest first on the first node with room; a
    bundle is never split.
    """
    sentences = []
    for name, offered in (("CPU", [n.cpus for n in nodes]), ("GPU", [n.gpus for n in nodes])):
        asked = sum(bundle[name] for bundle in bundles)
        if asked > sum(offered):
            sentences.append(f"{name}s: the run asks for {asked:g}, there are {sum(offered):g}")
    memory = sum(node.memory_bytes for node in nodes)
    if memory_bytes > memory:
        sentences.append(f"memory: the run needs about {gib(memory_bytes)}, there are {gib(memory)}")
    if not sentences and (homeless := _without_node(bundles, nodes)):
        shape = ", ".join(f"{amount:g} {name}" for name, amount in homeless.items() if amount)
        sentences.append(
            f"no node has room for a bundle of {shape} once the others are placed; a bundle is never split"
        )
    return sentences


def gib(size_bytes: float) -> str:
    """A size for people, in GiB, or in MiB below a tenth of one."""
    if size_bytes < 0.1 * 2**30:
        return f"{size_bytes / 2**20:,.1f} MiB"
    return f"{size_bytes / 2**30:,.2f} GiB"


def _without_node(bundles: Sequence[dict[str, float]], nodes: Sequence[Node]) -> dict[str, float] | None:
    """The first bundle that finds no node, None if all do."""
    free = [{"CPU": node.cpus, "GPU": node.gpus} for node in nodes]
    for bundle in sorted(bundles, key=lambda b: (b["GPU"], b["CPU"]), reverse=True):
        home = next((node for node in free if all(node[name] >= bundle[name] for name in bundle)), None)
        if home is None:
            return bundle
        for name, amount in bundle.items():
            home[name] -= amount
    return None


def _visible_gpus() -> int:
    present = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return present if chosen is None else min(present, len([part for part in chosen.split(",") if part.strip()]))


def _cgroup_memory_bytes() -> float:
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return float("inf") if text == "max" else float(text)


def _ray_nodes(address: str) -> list[Node]:
    """Asked in a process of its own: a connection attempt to nowhere can then be ended, and leaves nothing behind."""
    knock(address)
    try:
        answer = subprocess.run(
            [sys.executable, "-c", _ASK_RAY, address],
            capture_output=True,
            text=True,
            timeout=ASK_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ConnectionError(f"no answer from the Ray cluster at {address} within {ASK_TIMEOUT_S:g} s") from None
    if answer.returncode:
        reason = (answer.stderr.strip() or "no reason given").splitlines()[-1]
        raise ConnectionError(f"the Ray cluster at {address} cannot be joined: {reason}")
    resources = json.loads(answer.stdout.splitlines()[-1])
    return [Node(r.get("CPU", 0), r.get("GPU", 0), r.get("memory", 0)) for r in resources]


def knock(address: str) -> None:
    """Raises ConnectionError when nothing listens at host:port within KNOCK_TIMEOUT_S."""
    host, _, port = address.rpartition(":")
    if not host:
        return  # `auto`, which Ray resolves
    try:
        socket.create_connection((host, int(port)), KNOCK_TIMEOUT_S).close()
    except (OSError, OverflowError, UnicodeError) as error:  # the last two: no port, no host name
        raise ConnectionError(f"the Ray cluster at {address} cannot be reached: {error}") from None
