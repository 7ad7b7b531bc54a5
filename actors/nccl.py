"""The sending end of a weight publish over NCCL, for GPU clusters where learner and engines sit on different devices.

vLLM's own trainer engine broadcasts from learner rank 0 to every engine rank; this file gives it what it asks for: the
weights as a source that gathers ZeRO-3 shards, and the engines behind one control plane.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine


class GatheredSource(WeightSource):
    """Named parameters in the engine's dtype; iterating is a collective of all learner ranks under ZeRO-3."""

    def __init__(self, named: Sequence[tuple[str, Any]], dtype: torch.dtype, gathered: Callable[[list], Any]) -> None:
        self._named, self._dtype, self._gathered = named, dtype, gathered

    def metadata(self) -> list[ParamMeta]:
        """Full shapes: a ZeRO-3 shard carries its own in `ds_shape`."""
        return [ParamMeta(name, self._dtype, tuple(getattr(p, "ds_shape", p.shape))) for name, p in self._named]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in self._named:
            with self._gathered([parameter]):
                yield name, parameter.detach().to(self._dtype)


class Engines:
    """vLLM's VLLMWeightSyncClient over all rollout workers; each phase returns when every worker has done it."""

    def __init__(self, workers: Sequence[Any], gpus_per_worker: int, timeout_s: float) -> None:
        self._workers, self._gpus, self._timeout_s = workers, gpus_per_worker, timeout_s
        self.version = 0
        """Version that the next finished update puts into service."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        offsets = [{"rank_offset": 1 + i * self._gpus} for i in range(len(self._workers))]
        self._all("init_weight_transfer_engine", [({**init_info, **offset},) for offset in offsets])

    def start_weight_update(self) -> None:
        self._all("start_weight_update", [()] * len(self._workers))

    def update_weights(self, update_info: Any) -> None:
        self._all("update_weights", [(update_info,)] * len(self._workers))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Raises RuntimeError when the engines' weights differ from each other."""
        digests = self._all("finish_weight_update", [(self.version,)] * len(self._workers))
        if len(set(digests)) > 1:
            raise RuntimeError(f"engines hold different weights after publishing version {self.version}: {digests}")

    def _all(self, phase: str, arguments: list[tuple]) -> list[Any]:
        import ray

        calls = [w.transfer.remote(phase, *args) for w, args in zip(self._workers, arguments, strict=True)]
        return ray.get(calls, timeout=self._timeout_s)


def connect(
    named: Sequence[tuple[str, Any]],
    dtype: torch.dtype,
    gathered: Callable[[list], Any],
    rank: int,
    workers: Sequence[Any],
    gpus_per_worker: int,
    address: tuple[str, int],
    timeout_s: float,
) -> NCCLTrainerWeightTransferEngine:
    """Rendezvous of learner rank 0, at `address`, with all engine ranks; every learner rank calls it."""
    world_size = 1 + len(workers) * gpus_per_worker
    info = NCCLTrainerInitInfo(master_address=address[0], master_port=address[1], world_size=world_size, rank=rank)
    engines = Engines(workers, gpus_per_worker, timeout_s)
    source = GatheredSource(named, dtype, gathered)
    return NCCLTrainerWeightTransferEngine.trainer_init(info, client=engines, source=source)
