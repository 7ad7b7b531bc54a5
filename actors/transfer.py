"""The receiving end of a weight publish: a vLLM weight-transfer engine that loads buckets from the Ray object store.

vLLM drives the phases (start, update per bucket, finish); the arrays of a bucket stay in the store's shared memory
until the model's own weight loaders copy them out; where the engine is more than one process, each is sent a copy.
Works on any device.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.buckets import Bucket, checksum, unpack


@dataclass
class ObjectStoreInitInfo(WeightTransferInitInfo):
    """Nothing to agree on: every bucket describes itself."""


@dataclass
class ObjectStoreUpdateInfo(WeightTransferUpdateInfo):
    buckets: list[Bucket] = field(default_factory=list)


class ObjectStoreTransferEngine(WeightTransferEngine[ObjectStoreInitInfo, ObjectStoreUpdateInfo]):
    init_info_cls = ObjectStoreInitInfo
    update_info_cls = ObjectStoreUpdateInfo

    digest = 0
    """Of the bucket that was loaded last, as this process saw it."""

    def init_transfer_engine(self, init_info: ObjectStoreInitInfo) -> None:
        pass

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            self._repack_tied_heads()

    def _repack_tied_heads(self) -> None:
        """Bring the output head up to date where it shares the embedding's weights.

        On CPU a head computes with a packed copy of its weights. One that is tied receives no weights of its own, so
        vLLM's reload leaves that copy at the version before.
        """
        embeddings = {m.weight.data_ptr() for m in self.model.modules() if type(m) is VocabParallelEmbedding}
        for head in self.model.modules():
            if isinstance(head, VocabParallelEmbedding) and head.weight.data_ptr() in embeddings:
                head.quant_method.process_weights_after_loading(head)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: ObjectStoreUpdateInfo) -> None:
        for bucket in update_info.buckets:
            self.model.load_weights(unpack(bucket))
            self.digest = checksum(bucket)

    def shutdown(self) -> None:
        pass


def last_digest(worker: Any) -> int:
    """Inside each process of an engine."""
    return worker.weight_transfer_engine.digest
