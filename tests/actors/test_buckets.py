"""Weights arrive as they were sent, and a checksum notices when not."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.buckets import Bucket, checksum, pack, partition, unpack

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(3,), (), (5, 7), (2, 3, 5), (1,), (64, 33)]


def tensors(dtype: torch.dtype) -> list[tuple[str, torch.Tensor]]:
    """Any bits at all, NaN patterns included, and one tensor that is not contiguous."""
    rng = np.random.default_rng(0)
    named = []
    for i, shape in enumerate(SHAPES):
        raw = torch.from_numpy(rng.integers(0, 256, int(np.prod(shape, dtype=int)) * dtype.itemsize, np.uint8))
        named.append((f"layer.{i}", raw.view(dtype).reshape(shape)))
    return [*named, ("turned", named[2][1].T)]


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 100))
def test_buckets_are_consecutive_and_bounded_and_not_smaller_than_they_need_be(sizes, limit):
    buckets = partition(sizes, limit)
    assert [i for span in buckets for i in span] == list(range(len(sizes)))
    filled = [sum(sizes[i] for i in span) for span in buckets]
    assert all(len(span) >= 1 for span in buckets)
    assert all(total <= limit or len(span) == 1 for total, span in zip(filled, buckets, strict=True))
    for total, following in zip(filled, buckets[1:], strict=False):
        assert total + sizes[following[0]] > limit


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_unpacked_is_bit_for_bit_what_was_packed(dtype):
    named = tensors(dtype)
    found = list(unpack(pack(named, dtype)))
    assert [name for name, _ in found] == [name for name, _ in named]
    for (_, sent), (_, received) in zip(named, found, strict=True):
        assert received.dtype == dtype
        assert received.shape == sent.shape
        assert bits(received) == bits(sent)


def test_packing_converts_to_the_dtype_of_the_engine_and_drops_the_graph():
    parameter = torch.nn.Parameter(torch.tensor([1.0, 1 / 3, 1e-30]))
    ((_, received),) = unpack(pack([("p", parameter)], torch.bfloat16))
    assert torch.equal(received, parameter.detach().to(torch.bfloat16))
    assert not received.requires_grad


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_read_only_bucket_can_be_unpacked_in_silence(dtype, recwarn):
    """As it comes out of shared memory."""
    bucket = pack(tensors(dtype), dtype)
    for _, _, array in bucket:
        array.flags.writeable = False
    assert len(list(unpack(bucket))) == len(bucket)
    assert not recwarn.list


def copied(bucket: Bucket) -> Bucket:
    return [(name, dtype, array.copy()) for name, dtype, array in bucket]


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_the_checksum_notices_one_flipped_bit(dtype, data):
    bucket = copied(pack(tensors(dtype), dtype))
    digest = checksum(bucket)
    assert checksum(copied(bucket)) == digest
    _, _, array = data.draw(st.sampled_from(bucket))
    raw = array.reshape(-1).view(np.uint8)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert checksum(bucket) != digest


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_checksum_notices_what_was_swapped_renamed_lost_or_doubled(dtype):
    bucket = pack(tensors(dtype), dtype)
    (a, kind, first), (b, _, second), *rest = bucket
    variants = {
        "sent": bucket,
        "swapped contents": [(a, kind, second), (b, kind, first), *rest],
        "swapped order": [(b, kind, second), (a, kind, first), *rest],
        "renamed": [("other", kind, first), (b, kind, second), *rest],
        "lost": bucket[1:],
        "lost at the end": bucket[:-1],
        "doubled": [*bucket, bucket[-1]],
        "nothing": [],
    }
    assert len({checksum(variant) for variant in variants.values()}) == len(variants)
