"""The learner: a DeepSpeed engine over n ranks, one Ray actor each. Every method is called on all ranks together.

Owns: parameters, optimizer state, and the weight version they amount to. One engine lives for the whole run; a stage
that needs a fresh optimizer resets it in place, because DeepSpeed's process groups are global to a process.
"""

import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actors.features import FeatureTap, TapConfig
from actors.logs import send_output_to_log
from drafter.buffer import Blob
from trainer.spec import LearnerSpec, PretrainStage, TaskSpec
from trainer.types import Group, Prompt


@dataclass(frozen=True, slots=True)
class LearnerConfig:
    model_dir: str
    dtype: str
    spec: LearnerSpec
    temperature: float
    threads: int
    device: str
    """`cpu` or `cuda`."""
    seed: int
    bucket_bytes: int
    gpus_per_worker: int = 0
    """GPUs of one rollout worker, where weights go over NCCL; 0: through the object store."""
    tap: TapConfig | None = None
    """Which features of the policy a drafter learns from; None without one to train."""


class LearnerRank:
    """Runs inside Ray as `ray.remote(LearnerRank)`."""

    def __init__(self, config: LearnerConfig, rank: int, task: TaskSpec, pools: dict[str, list[Prompt]]) -> None:
        send_output_to_log()
        self._config = config
        self._rank = rank
        self._ranks = config.spec.ranks
        self._task = task
        self._pools = pools
        self._corpus: Any = None
        self._nccl: Any = None
        self._tap: FeatureTap | None = None

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

        from trainer.models import load_policy, load_tokenizer
        from trainer.policy import Policy

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
            model=policy, model_parameters=list(policy.parameters()), config=_deepspeed_config(self._config)
        )
        self._device = self._engine.device
        if self._config.tap:
            self._tap = FeatureTap(self._config.tap, policy.model)
        return {"deepspeed": deepspeed.__version__, "torch": torch.__version__}

    # Learning.

    def update(self, groups: Sequence[Group], learning_rate: float) -> dict[str, float]:
        """One epoch's optimizer steps on the given groups; figures over the whole batch, equal on every rank.

        `updates` is 0 where no response differs from its siblings: such a batch has no gradient, and stepping on
        momentum alone would be noise. Raises FloatingPointError before a step on a loss that is not finite.
        """
        from trainer.batches import minibatches, samples

        spec = self._config.spec
        prompts = [self._pools["train"][group.prompt].token_ids for group in groups]
        figures: dict[str, float] = {}
        updates = 0
        for part in minibatches(groups, spec.minibatches):
            whole = samples([groups[i] for i in part], [prompts[i] for i in part], spec.objective)
            # Without an advantage there is no gradient, and nothing to compute; the weights are those of the whole.
            batch = [sample for sample in whole if sample.advantage]
            if not batch:
                continue
            if self._tap:
                self._tap.begin(max(group.epoch for group in groups), spec.minibatches)
            new = self._step(batch, learning_rate, self._policy_loss)
            # Only before the first step is the learner's policy the one that sampled.
            figures = figures or new
            updates += 1
        spent = {"features_s": self._tap.seconds} if self._tap and updates else {}
        return {**figures, **spent, "updates": updates, "learning_rate": learning_rate}

    def pretrain(self, stage: PretrainStage, steps: range, run_seed: int) -> dict[str, float]:
        """Optimizer steps `steps` of a pretrain stage; mean figures of the last one."""
        from trainer.batches import Sample
        from trainer.corpus import Corpus
        from trainer.schedule import learning_rate

        if self._corpus is None:
            self._corpus = Corpus(self._task, self._tokenizer, self._pools["heldout"], run_seed)
        figures: dict[str, float] = {}
        for step in steps:
            examples = self._corpus.batch(step, stage.batch_examples)
            weight = 1 / sum(len(ids) - start for ids, start in examples)
            batch = [
                Sample(np.asarray(ids, np.int64), start, np.zeros(len(ids) - start, np.float32), 1.0, weight)
                for ids, start in examples
            ]
            rate = learning_rate(stage.learning_rate, "cosine", step, stage.steps, max(stage.steps // 20, 1), floor=0.1)
            figures = self._step(batch, rate, self._language_loss)
        return figures

    def language_loss(self) -> dict[str, list[float]]:
        """This rank's share of the next-token loss of the held-out worked answers: nats and tokens by family."""
        import torch

        from trainer.batches import Sample, collate, split
        from trainer.evaluation import worked_answers

        examples = worked_answers(self._pools["heldout"], self._tokenizer)
        batch = [
            Sample(np.asarray(ids, np.int64), start, np.zeros(len(ids) - start, np.float32), 1.0, 1.0)
            for _, ids, start in examples
        ]
        sizes = [len(sample.token_ids) for sample in batch]
        shares: dict[str, list[float]] = {}
        for rows in split(sizes, self._config.spec.micro_batch_tokens, self._ranks)[self._rank]:
            micro = collate([batch[i] for i in rows], self._pad_id).to(self._device)
            with torch.no_grad():
                logprobs, _ = self._engine(micro.token_ids, micro.targets, 1.0)
            ends = np.cumsum([len(batch[i].logprobs) for i in rows])
            for i, row in zip(rows, np.split(logprobs.cpu().numpy().astype(np.float64), ends), strict=False):
                share = shares.setdefault(examples[i][0], [0.0, 0.0])
                share[0] -= float(row.sum())
                share[1] += len(row)
        return shares

    def reset_optimizer(self) -> None:
        """Forget the moments, as a new stage with another loss should."""
        import torch

        base = getattr(self._engine.optimizer, "optimizer", self._engine.optimizer)
        for state in base.state.values():
            for key, value in state.items():
                if isinstance(value, torch.Tensor):
                    value.zero_()
                elif key == "step":  # a plain number in the fused Adam of GPUs
                    state[key] = 0

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

    def publish(self, workers: Sequence[Any], version: int, timeout_s: float) -> float:
        """Put the weights into service on every engine under `version`; gives the bytes of one copy.

        Through the object store, or over NCCL where learner and engines sit on GPUs of their own.
        """
        from actors.publish import publish_through_store

        named = [(name.removeprefix("model."), p) for name, p in self._engine.module.named_parameters()]
        if not self._config.gpus_per_worker:
            bucket_bytes, width = self._config.bucket_bytes, self._dtype
            publish_through_store(named, width, bucket_bytes, self._gathered, self._rank, workers, version, timeout_s)
        else:
            if self._nccl is None:
                from actors.nccl import connect

                gpus = self._config.gpus_per_worker
                address = self.address()
                self._nccl = connect(named, self._dtype, self._gathered, self._rank, workers, gpus, address, timeout_s)
            self._nccl.client.version = version
            self._nccl.send_weights()
        return float(sum(getattr(p, "ds_numel", p.numel()) * self._dtype.itemsize for _, p in named))

    def save(self, directory: str) -> None:
        """Write this rank's part of a checkpoint."""
        self._engine.save_checkpoint(directory, tag="learner", save_latest=False)

    def load(self, directory: str) -> None:
        """Read what `save` wrote, with the same ranks and ZeRO stage."""
        self._engine.load_checkpoint(directory, tag="learner")

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

    # Inside.

    def _gathered(self, parameters: list[Any]) -> Any:
        import deepspeed

        return deepspeed.zero.GatheredParameters(
            parameters, modifier_rank=None, enabled=self._config.spec.zero_stage == 3
        )

    def _micro_batches(self, batch: Sequence[Any]) -> Iterator[tuple[list[int], Any]]:
        """This rank's micro-batches, each with the indices of its rows."""
        from trainer.batches import collate, split

        lengths = [len(sample.token_ids) for sample in batch]
        mine = split(lengths, self._config.spec.micro_batch_tokens, self._ranks)[self._rank]
        if self._tap:
            rows = [i for part in mine for i in part]
            self._tap.choose(rows, [lengths[i] for i in rows])
        for part in mine:
            yield part, collate([batch[i] for i in part], self._pad_id).to(self._device)

    def _policy_loss(self, micro: Any) -> tuple[Any, Any, Any]:
        from trainer.objectives import token_losses

        logprobs, entropy = self._engine(micro.token_ids, micro.targets)
        # With one step per batch the policy that samples is the one that learns: the ratio is 1 by definition, and the
        # engine's rounding must not enter it.
        old = micro.logprobs if self._config.spec.minibatches > 1 else logprobs.detach()
        losses = token_losses(self._config.spec.objective, logprobs, old, micro.advantages)
        return losses, (logprobs.detach() - micro.logprobs).abs(), entropy

    def _language_loss(self, micro: Any) -> tuple[Any, Any, Any]:
        import torch

        logprobs, entropy = self._engine(micro.token_ids, micro.targets, 1.0)
        return -logprobs, torch.zeros_like(entropy), entropy

    def _step(self, batch: Sequence[Any], learning_rate: float, loss_of: Any) -> dict[str, float]:
        """Forward and backward over this rank's micro-batches, then one optimizer step."""
        import torch

        totals = torch.zeros(5, dtype=torch.float64)
        for rows, micro in self._micro_batches(batch):
            losses, gaps, entropy = loss_of(micro)
            if self._tap:
                self._tap.keep(rows, batch)
            loss = (losses * micro.weights).sum()
            # DeepSpeed averages gradients over the ranks; the weights are already those of the whole batch.
            self._engine.backward(loss * self._ranks)
            real = micro.weights > 0
            totals[0] += loss.item()
            totals[1] += gaps[real].sum().item()
            totals[2] += entropy[real].sum().item()
            totals[3] += int(real.sum())
            totals[4] = max(totals[4].item(), gaps[real].max().item() if real.any() else 0.0)
        loss_sum, gap_sum, entropy_sum, tokens, gap_max = self._over_ranks(totals)
        if not np.isfinite(loss_sum):
            raise FloatingPointError(f"the loss is {loss_sum}; no step was taken")
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        grad_norm = float(self._engine.get_global_grad_norm() or 0.0)
        if not np.isfinite(grad_norm):
            raise FloatingPointError(f"the gradient norm is {grad_norm}")
        return {
            "loss": loss_sum,
            "grad_norm": grad_norm,
            "logprob_gap_mean": gap_sum / max(tokens, 1),
            "logprob_gap_max": gap_max,
            "entropy": entropy_sum / max(tokens, 1),
        }

    def _over_ranks(self, totals: Any) -> list[float]:
        """Sums over the ranks, and the maximum of the last entry."""
        if self._ranks > 1:
            import torch.distributed as dist

            every = [totals.new_zeros(5) for _ in range(self._ranks)]
            dist.all_gather(every, totals) if self._config.device == "cpu" else dist.all_gather_object(every, totals)
            last = max(t[4] for t in every)
            totals = sum(every)
            totals[4] = last
        return totals.tolist()


def _deepspeed_config(config: LearnerConfig) -> dict[str, Any]:
    spec = config.spec
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # Micro-batches vary in number, so step() is the boundary.
        "managed_gradient_accumulation": False,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": spec.learning_rate,
                "betas": list(spec.adam_betas),
                "weight_decay": spec.weight_decay,
                "torch_adam": config.device == "cpu",
            },
        },
        "gradient_clipping": spec.max_grad_norm,
        "zero_optimization": {"stage": spec.zero_stage, "overlap_comm": False},
        "bf16": {"enabled": config.dtype == "bfloat16"},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
