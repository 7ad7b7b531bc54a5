"""What each actor of a run is configured with. Pure."""

from pathlib import Path

from actors.drafter import DrafterConfig
from actors.engine_config import EngineConfig
from actors.learner_config import LearnerConfig
from actors.plugin import BACKEND
from actors.seeds import derive_seed
from cluster.heads import speculation, tap
from cluster.spec import Spec


class Configs:
    def __init__(self, spec: Spec, model_dir: str, dtype: str, head_dir: Path | None, nccl: bool) -> None:
        """`nccl`: weights travel from GPU to GPU and not through the object store."""
        self._spec, self._model_dir, self._dtype, self._head_dir, self._nccl = spec, model_dir, dtype, head_dir, nccl

    def engine(self) -> EngineConfig:
        spec = self._spec
        gpus = spec.cluster.gpus_per_rollout_worker
        return EngineConfig(
            model_dir=self._model_dir,
            dtype=self._dtype,
            context_tokens=spec.model.context_tokens,
            max_running_requests=spec.rollout.max_running_requests,
            kv_cache_bytes=None if gpus else int(spec.rollout.kv_cache_gib * 2**30) // spec.tensor_parallel,
            gpu_memory_fraction=spec.rollout.gpu_memory_fraction,
            tensor_parallel=spec.tensor_parallel,
            cores=0 if gpus else spec.cluster.cpus_per_rollout_worker,
            seed=spec.run.seed,
            transfer="nccl" if self._nccl else BACKEND,
            speculation=speculation(spec, self._head_dir),
            sleeps=spec.drafter.train.sleep or spec.rollout.sleep,
        )

    def drafter(self, index: int) -> DrafterConfig:
        spec = self._spec
        gpus, cores = spec.cluster.gpus_per_rollout_worker, spec.cluster.cpus_per_rollout_worker
        return DrafterConfig(
            head_dir=str(self._head_dir),
            target_dir=self._model_dir,
            spec=spec.drafter.train,
            max_draft_tokens=spec.drafter.max_draft_tokens,
            temperature=spec.rollout.temperature,
            cores=0 if gpus else cores,
            seed=derive_seed(spec.run.seed, "drafter", index) % 2**32,
        )

    def learner(self) -> LearnerConfig:
        spec = self._spec
        return LearnerConfig(
            model_dir=self._model_dir,
            dtype=self._dtype,
            spec=spec.learner,
            temperature=spec.rollout.temperature,
            threads=spec.cluster.cpus_per_learner_rank,
            device="cuda" if spec.cluster.gpus_per_learner_rank else "cpu",
            seed=derive_seed(spec.run.seed, "learner") % 2**32,
            bucket_bytes=spec.rollout.publish_bucket_mib * 2**20,
            gpus_per_worker=spec.cluster.gpus_per_rollout_worker if self._nccl else 0,
            longest_response=spec.rollout.max_response_tokens,
            tap=tap(spec, self._head_dir),
        )
