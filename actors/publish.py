"""The sending end of a weight publish through the Ray object store; `transfer.py` is the receiving end."""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch

from actors.buckets import checksum, pack, partition


@dataclass(frozen=True, slots=True)
class Published:
    """What became of a publish."""

    bytes: float
    """Of one copy."""
    failed: dict[int, str]
    """Workers, by their place among those it was for, that do not have the weights, and why."""


def publish_through_store(
    named: Sequence[tuple[str, Any]],
    dtype: torch.dtype,
    bucket_bytes: int,
    gathered: Callable[[list], Any],
    rank: int,
    workers: Sequence[Any],
    version: int,
    timeout_s: float,
) -> dict[int, str]:
    """Send parameters to every worker in buckets of at most `bucket_bytes`; at most two exist at a time.

    All learner ranks call it. Under ZeRO-3 every rank enters every gather (`gathered(parameters)`) and stays until
    rank 0 has copied the bucket. Gives the workers that died, did not load a bucket within `timeout_s`, or loaded
    another than was sent: they get no further bucket, and the others all of them.
    """
    sizes = [getattr(p, "ds_numel", p.numel()) * dtype.itemsize for _, p in named]
    buckets = partition(sizes, bucket_bytes)
    in_flight: deque[tuple[int, dict[int, Any]]] = deque()
    failed: dict[int, str] = {}
    for i, span in enumerate(buckets):
        members = [named[j] for j in span]
        with gathered([parameter for _, parameter in members]):
            if rank:
                continue
            if len(in_flight) == 2:
                failed |= _settle(in_flight.popleft(), timeout_s, failed)
            bucket = pack(members, dtype)
            ref = ray.put(bucket)
            last = version if i == len(buckets) - 1 else None
            calls = {
                n: worker.load.remote([ref], i, last, timeout_s) for n, worker in enumerate(workers) if n not in failed
            }
            del ref
            # Our own checksum is computed while the engines load.
            in_flight.append((checksum(bucket), calls))
    while in_flight:
        failed |= _settle(in_flight.popleft(), timeout_s, failed)
    return failed


def _settle(bucket: tuple[int, dict[int, Any]], timeout_s: float, failed: Collection[int]) -> dict[int, str]:
    """Wait until every engine but those that have `failed` before has loaded a bucket, and compare checksums; the
    engines that have not, and why."""
    digest, sent = bucket
    calls = {n: call for n, call in sent.items() if n not in failed}
    ready = set(ray.wait(list(calls.values()), num_returns=len(calls), timeout=timeout_s)[0]) if calls else set()
    faults = {n: _fault(call, digest) if call in ready else f"no bucket loaded within {timeout_s:g} s"
              for n, call in calls.items()}  # fmt: skip
    return {n: fault for n, fault in faults.items() if fault}


def _fault(call: Any, digest: int) -> str | None:
    try:
        seen = ray.get(call)
    except ray.exceptions.RayError as error:
        return str(error).strip().splitlines()[0 if isinstance(error, ray.exceptions.RayActorError) else -1]
    return None if seen == digest else f"it loaded a bucket with checksum {seen:016x}, sent was {digest:016x}"
