"""Weights on their way from the learner to the engines: named tensors in buckets of bounded size, with a checksum.

A bucket is a list of (name, dtype, array); arrays travel out of band, so putting a bucket into the object store copies
every tensor once and reading it copies nothing.
"""

import warnings
import zlib
from collections.abc import Iterable, Iterator

import numpy as np
import torch

Bucket = list[tuple[str, str, np.ndarray]]
"""(parameter name, torch dtype name, array); bfloat16 travels as its bits in uint16."""


def partition(sizes_bytes: list[int], bucket_bytes: int) -> list[range]:
    """Split parameters into consecutive buckets of at most `bucket_bytes`; a larger parameter gets one of its own."""
    buckets, start, filled = [], 0, 0
    for i, size in enumerate(sizes_bytes):
        if i > start and filled + size > bucket_bytes:
            buckets.append(range(start, i))
            start, filled = i, 0
        filled += size
    return [*buckets, range(start, len(sizes_bytes))] if sizes_bytes else []


def pack(named: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype) -> Bucket:
    """Detached CPU tensors, numbers in the engine's dtype and indices in their own, as numpy arrays that share memory
    with them where possible."""
    bucket: Bucket = []
    for name, tensor in named:
        width = dtype if tensor.is_floating_point() else tensor.dtype
        cpu = tensor.detach().to(device="cpu", dtype=width).contiguous()
        array = cpu.view(torch.uint16).numpy() if width == torch.bfloat16 else cpu.numpy()
        bucket.append((name, str(width).removeprefix("torch."), array))
    return bucket


def unpack(bucket: Bucket) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors that share memory with the bucket's arrays; read-only by contract."""
    for name, dtype, array in bucket:
        with warnings.catch_warnings():
            # torch warns about arrays in shared memory because they are read-only; nobody writes to them here.
            warnings.simplefilter("ignore", UserWarning)
            yield name, torch.from_numpy(array).view(getattr(torch, dtype))


def checksum(bucket: Bucket) -> int:
    """64-bit digest of a bucket: the sum of each array's words, chained with its name, one pass at memory speed.

    It guards against buckets that were lost, mixed up or damaged on the way, not against an adversary.
    """
    digest = 0
    for name, _, array in bucket:
        raw = array.reshape(-1).view(np.uint8)
        whole = len(raw) // 8 * 8
        words = int(np.add.reduce(raw[:whole].view(np.uint64), dtype=np.uint64)) + zlib.crc32(raw[whole:].tobytes())
        digest = (digest * 1_000_003 + words + zlib.crc32(name.encode())) % 2**64
    return digest
