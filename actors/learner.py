"""The learner: a DeepSpeed engine over n ranks, one Ray actor each. Every method is called on all ranks together.

What it learns by stands in actors/steps.py and actors/recipes.py; here is its life as an actor.

Owns: parameters, optimizer state, and the weight version they amount to. One engine lives for the whole run; a stage
that needs a fresh optimizer resets it in place, because DeepSpeed's process groups are global to a process.
"""

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.features import FeatureTap
from actors.figures import LearnerFigures, peak_resident_bytes, resident_bytes, timed
from actors.learner_config import LearnerConfig, deepspeed_config
from actors.logs import send_output_to_log
from actors.recipes import RecipeSteps
from drafter.buffer import Blob
from trainer.spec import TaskSpec
from trainer.types import Prompt

if TYPE_CHECKING:
    from actors.publish import Published


class LearnerRank(RecipeSteps):
    """Runs inside Ray as `ray.remote(LearnerRank)`."""

    def __init__(self, config: LearnerConfig, rank: int, task: TaskSpec, pools: dict[str, list[Prompt]]) -> None:
        send_output_to_log()
        super().__init__()
        self._config = config
        self._rank = rank
        self._ranks = config.spec.ranks
        self._task = task
        self._pools = pools
        self._nccl: Any = None
        self._tap = None
        self._reference = None
        self._figures, self._inside = LearnerFigures(), False

    def address(self) -> tuple[str, int]:
        """Where the other ranks meet this one: its IP and a free port."""
        import ray

        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def start(self, host: str, port: int) -> dict[str, str]:
        """Join the process group and build the engine. Gives the versions of what learns here."""
        os.environ.update(
            RANK=str(self._rank),
            LOCAL_RANK="0",
            WORLD_SIZE=str(self._ranks),
            MASTER_ADDR=host,
            MASTER_PORT=str(port),
            OMP_NUM_THREADS=str(self._config.threads),
        )
        if self._config.device == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed
        import torch

        from actors.compiled import build_helper
        from trainer.models import load_policy, load_tokenizer, user_cache
        from trainer.policy import Policy

        if self._config.device == "cpu":
            build_helper(user_cache())
        torch.set_num_threads(self._config.threads)
        torch.manual_seed(self._config.seed)
        backend = "gloo" if self._config.device == "cpu" else "nccl"
        deepspeed.init_distributed(dist_backend=backend, verbose=False)
        self._dtype = getattr(torch, self._config.dtype)
        tokenizer = load_tokenizer(self._config.model_dir)
        self._pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._tokenizer = tokenizer
        policy = Policy(load_policy(self._config.model_dir, self._config.dtype), self._config.temperature)
        self._engine, *_ = deepspeed.initialize(
            model=policy, model_parameters=list(policy.parameters()), config=deepspeed_config(self._config)
        )
        self._device = self._engine.device
        if self._config.tap:
            self._tap = FeatureTap(self._config.tap, policy.model)
        return {"deepspeed": deepspeed.__version__, "torch": torch.__version__}

    def refer_to(self, directory: str) -> None:
        """Measure divergences from the model in a directory from now on. Every rank holds all of it."""
        from trainer.models import load_policy
        from trainer.policy import Policy

        reference = load_policy(directory, self._config.dtype).to(self._device).requires_grad_(False)
        self._reference = Policy(reference, self._config.temperature)

    # What the drafter learns from.

    def take_features(self) -> list[Blob]:
        """The features that the newest update left on this rank, in the object store."""
        return self._tap.take() if self._tap else []

    def target_tensors(self) -> list[Any]:
        """Embedding and output head as they are now, as a bucket in the object store; empty on ranks but the first."""
        import ray
        import torch

        from actors.buckets import pack

        model = self._engine.module.model
        named = [("embedding", model.get_input_embeddings().weight), ("head", model.get_output_embeddings().weight)]
        with self._gathered([tensor for _, tensor in named]):
            return [] if self._rank else [ray.put(pack(named, torch.float32))]

    # Weights.

    @timed("busy_s")
    def publish(self, workers: Sequence[Any], version: int, timeout_s: float) -> "Published":
        """Put the weights into service on these engines under `version`; who has them, as the first rank sees it.

        Through the object store, or over NCCL where learner and engines sit on GPUs of their own. `timeout_s`: longest
        wait for one bucket.
        """
        from actors.publish import Published, publish_through_store

        named = [(name.removeprefix("model."), p) for name, p in self._engine.module.named_parameters()]
        failed: dict[int, str] = {}
        if not self._config.gpus_per_worker:
            bucket_bytes, width = self._config.bucket_bytes, self._dtype
            failed = publish_through_store(
                named, width, bucket_bytes, self._gathered, self._rank, workers, version, timeout_s
            )
        else:
            if self._nccl is None:
                from actors.nccl import connect

                gpus = self._config.gpus_per_worker
                address = self.address()
                self._nccl = connect(named, self._dtype, self._gathered, self._rank, workers, gpus, address, timeout_s)
            self._nccl.client.version = version
            self._nccl.send_weights()
        sizes = [getattr(p, "ds_numel", p.numel()) * self._dtype.itemsize for _, p in named]
        return Published(float(sum(sizes)), failed)

    @timed("busy_s")
    def save(self, directory: str) -> None:
        """Write this rank's part of a checkpoint."""
        self._engine.save_checkpoint(directory, tag="learner", save_latest=False)
        self.save_second_adam(directory)

    def load(self, directory: str) -> None:
        """Read what `save` wrote, with the same ranks and ZeRO stage."""
        self._engine.load_checkpoint(directory, tag="learner")
        self.load_second_adam(directory)

    @timed("busy_s")
    def export(self, directory: str) -> None:
        """Write the policy in Hugging Face format."""
        model = self._engine.module.model
        parameters = list(model.parameters())
        with self._gathered(parameters):
            if self._rank == 0:
                Path(directory).mkdir(parents=True, exist_ok=True)
                model.save_pretrained(
                    directory, state_dict={k: v.detach().cpu() for k, v in model.state_dict().items()}
                )
                self._tokenizer.save_pretrained(directory)

    def take_figures(self) -> LearnerFigures:
        """What this rank did since this was last asked."""
        import torch

        taken, self._figures = self._figures, LearnerFigures()
        taken.resident_bytes = resident_bytes()
        on_gpu = self._config.device == "cuda"
        taken.peak_bytes = torch.cuda.max_memory_allocated() if on_gpu else peak_resident_bytes()
        return taken

    # Inside.

    def _gathered(self, parameters: list[Any], modifier_rank: int | None = None) -> Any:
        import deepspeed

        return deepspeed.zero.GatheredParameters(
            parameters, modifier_rank=modifier_rank, enabled=self._config.spec.zero_stage == 3
        )
