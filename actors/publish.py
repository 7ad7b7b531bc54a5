"""The sending end of a weight publish through the Ray object store; `transfer.py` is the receiving end."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import ray
import torch

from actors.buckets import checksum, pack, partition


def publish_through_store(
    named: Sequence[tuple[str, Any]],
    dtype: torch.dtype,
    bucket_bytes: int,
    gathered: Callable[[list], Any],
    rank: int,
    workers: Sequence[Any],
    version: int,
    timeout_s: float,
) -> None:
    """Send parameters to every worker in buckets of at most `bucket_bytes`; at most two exist at a time.

    All learner ranks call it. Under ZeRO-3 every rank enters every gather (`gathered(parameters)`) and stays until
    rank 0 has copied the bucket.

    Raises RuntimeError when an engine's checksum of a bucket differs from ours, GetTimeoutError when a bucket is not
    loaded within `timeout_s`.
    """
    sizes = [getattr(p, "ds_numel", p.numel()) * dtype.itemsize for _, p in named]
    buckets = partition(sizes, bucket_bytes)
    in_flight: deque[tuple[int, list[Any]]] = deque()
    for i, span in enumerate(buckets):
        members = [named[j] for j in span]
        with gathered([parameter for _, parameter in members]):
            if rank:
                continue
            if len(in_flight) == 2:
                _settle(in_flight.popleft(), timeout_s)
            bucket = pack(members, dtype)
            ref = ray.put(bucket)
            last = version if i == len(buckets) - 1 else None
            calls = [worker.load.remote([ref], i, last, timeout_s) for worker in workers]
            del ref
            # Our own checksum is computed while the engines load.
            in_flight.append((checksum(bucket), calls))
    while in_flight:
        _settle(in_flight.popleft(), timeout_s)


def _settle(bucket: tuple[int, list[Any]], timeout_s: float) -> None:
    """Wait until every engine has loaded a bucket, and compare checksums."""
    digest, calls = bucket
    for i, seen in enumerate(ray.get(calls, timeout=timeout_s)):
        if seen != digest:
            raise RuntimeError(f"engine {i} loaded a bucket with checksum {seen:016x}, sent was {digest:016x}")
