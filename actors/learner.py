"""The learner: a DeepSpeed engine over n ranks, one Ray actor each. Every method is called on all ranks together.

Owns: parameters, optimizer state, and the weight version they amount to. One engine lives for the whole run; a stage
that needs a fresh optimizer resets it in place, because DeepSpeed's process groups are global to a process.
"""

import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actors.features import FeatureTap
from actors.figures import LearnerFigures, peak_resident_bytes, resident_bytes, timed
from actors.learner_config import LearnerConfig, deepspeed_config
from actors.logs import send_output_to_log
from actors.recipes import RecipeSteps
from drafter.buffer import Blob
from trainer.spec import TaskSpec
from trainer.types import Group, Prompt


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
        self._tap: FeatureTap | None = None
        self._reference: Any = None
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
            model=policy, model_parameters=list(policy.parameters()), config=deepspeed_config(self._config)
        )
        self._device = self._engine.device
        if self._config.tap:
            self._tap = FeatureTap(self._config.tap, policy.model)
        return {"deepspeed": deepspeed.__version__, "torch": torch.__version__}

    # Learning.

    def refer_to(self, directory: str) -> None:
        """Measure divergences from the model in a directory from now on. Every rank holds all of it."""
        from trainer.models import load_policy
        from trainer.policy import Policy

        reference = load_policy(directory, self._config.dtype).to(self._device).requires_grad_(False)
        self._reference = Policy(reference, self._config.temperature)

    @timed("busy_s", "learning_s")
    def update(self, groups: Sequence[Group], learning_rate: float) -> dict[str, float]:
        """One epoch's optimizer steps on the given groups; figures over the whole batch, equal on every rank.

        `updates` counts the steps. It is 0 where no response differs from what it is compared with: such a batch has no
        gradient, and stepping on momentum alone would be noise. `dropped` counts steps whose loss or gradient was not
        finite: nothing of them reaches weights or moments.
        """
        from trainer.batches import group_advantages, minibatches, samples

        spec, longest = self._config.spec, self._config.longest_response
        objective = spec.objective
        prompts = [self._pools["train"][group.prompt].token_ids for group in groups]
        reference = self._scored(self._reference, groups, prompts) if objective.kl != "none" else None
        advantages = group_advantages(groups, objective, longest, reference)
        # The weights of tokens correct for the engine; the ratio is then to the learner's own policy as it was.
        decoupled = not spec.on_policy and objective.mismatch != "none" and objective.ratio != "none"
        old = self._scored(self._engine, groups, prompts) if decoupled else None
        figures: dict[str, float] = {}
        updates = dropped = 0
        newest = max((group.epoch for group in groups), default=0)
        for number in range(spec.passes):
            for part in minibatches(groups, spec.minibatches, seed=[self._config.seed, newest, number]):
                whole = samples(
                    [groups[i] for i in part], [prompts[i] for i in part], objective, longest,
                    *(column and [column[i] for i in part] for column in (advantages, old, reference)),
                )  # fmt: skip
                # Without an advantage there is no gradient, and nothing to compute; the weights are those of the whole.
                batch = [sample for sample in whole if sample.advantage or objective.has_loss_of_its_own]
                if not any(sample.advantage for sample in batch):
                    continue
                if self._tap and not number:
                    self._tap.begin(newest, spec.minibatches)
                new = self._step(batch, learning_rate, self._policy_loss, tapped=not number)
                if new is None:
                    dropped += 1
                    continue
                # Only before the first step is the learner's policy the one that sampled.
                figures = figures or new
                updates += 1
        spent = {"features_s": self._tap.seconds} if self._tap and updates else {}
        return {**figures, **spent, "updates": updates, "dropped": dropped, "learning_rate": learning_rate}

    @timed("busy_s")
    def language_loss(self) -> dict[str, list[float]]:
        """This rank's share of the next-token loss of the held-out worked answers: nats and tokens by family."""
        from trainer.batches import language_samples
        from trainer.evaluation import worked_answers

        examples = worked_answers(self._pools["heldout"], self._tokenizer)
        batch = language_samples([(ids, start) for _, ids, start in examples]) if examples else []
        shares: dict[str, list[float]] = {}
        for i, logprobs in self._logprobs(self._engine, batch, 1.0).items():
            share = shares.setdefault(examples[i][0], [0.0, 0.0])
            share[0] -= float(logprobs.sum(dtype=np.float64))
            share[1] += len(logprobs)
        return shares

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

    def _scored(self, policy: Any, groups: Sequence[Group], prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Log-probabilities of the responses under `policy` by group, float32 [tokens of all responses]."""
        import torch.distributed as dist

        from trainer.batches import samples

        found = self._logprobs(policy, samples(groups, prompts, self._config.spec.objective))
        if self._ranks > 1:
            every: list[Any] = [None] * self._ranks
            dist.all_gather_object(every, found)
            found = {i: values for part in every for i, values in part.items()}
        edges = np.cumsum([len(group) for group in groups])
        return [
            np.concatenate([found[i] for i in range(end - len(group), end)])
            for end, group in zip(edges, groups, strict=True)
        ]

    def _logprobs(self, policy: Any, batch: Sequence[Any], temperature: float | None = None) -> dict[int, np.ndarray]:
        """Of this rank's share of the batch by index: log-probabilities float32 [response], without gradient."""
        import torch

        found: dict[int, np.ndarray] = {}
        with torch.no_grad():
            for rows, micro in self._micro_batches(batch, tapped=False):
                logprobs = policy(micro.token_ids, micro.targets, temperature)[0].cpu().numpy()
                edges = np.cumsum([len(batch[i].logprobs) for i in rows])
                found |= dict(zip(rows, np.split(logprobs, edges), strict=False))
        return found

    def _micro_batches(self, batch: Sequence[Any], tapped: bool) -> Iterator[tuple[list[int], Any]]:
        """This rank's micro-batches, each with the indices of its rows."""
        from trainer.batches import collate, split

        lengths = [len(sample.token_ids) for sample in batch]
        mine = split(lengths, self._config.spec.micro_batch_tokens, self._ranks)[self._rank]
        if self._tap and tapped:
            rows = [i for part in mine for i in part]
            self._tap.choose(rows, [lengths[i] for i in rows])
        for part in mine:
            self._figures.tokens += sum(lengths[i] for i in part)
            yield part, collate([batch[i] for i in part], self._pad_id).to(self._device)

    def _policy_loss(self, micro: Any) -> tuple[Any, Any, Any]:
        from trainer.objectives import batch_losses

        spec = self._config.spec
        logprobs, entropy = self._engine(micro.token_ids, micro.targets)
        losses = batch_losses(spec.objective, spec.on_policy, logprobs, entropy, micro)
        return losses, (logprobs.detach() - micro.logprobs).abs(), entropy

    def _language_loss(self, micro: Any) -> tuple[Any, Any, Any]:
        import torch

        logprobs, entropy = self._engine(micro.token_ids, micro.targets, 1.0)
        return -logprobs, torch.zeros_like(entropy), entropy

    def _step(
        self, batch: Sequence[Any], learning_rate: float, loss_of: Any, tapped: bool = False
    ) -> dict[str, float] | None:
        """Forward and backward over this rank's micro-batches, then one optimizer step; None if it was dropped."""
        import torch

        totals = torch.zeros(5, dtype=torch.float64)
        for rows, micro in self._micro_batches(batch, tapped):
            losses, gaps, entropy = loss_of(micro)
            if self._tap and tapped:
                self._tap.keep(rows, batch)
            loss = self._backward((losses * micro.weights).sum())
            real = micro.weights > 0
            totals[0] += loss.item()
            totals[1] += gaps[real].sum().item()
            totals[2] += entropy[real].sum().item()
            totals[3] += int(real.sum())
            totals[4] = max(totals[4].item(), gaps[real].max().item() if real.any() else 0.0)
        self._extra_backward()
        loss_sum, gap_sum, entropy_sum, tokens, gap_max = self._over_ranks(totals)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        grad_norm = float(self._engine.get_global_grad_norm() or 0.0)
        if not np.isfinite([loss_sum, grad_norm]).all():
            return None
        return {
            "loss": loss_sum,
            "grad_norm": grad_norm,
            "logprob_gap_mean": gap_sum / max(tokens, 1),
            "logprob_gap_max": gap_max,
            "entropy": entropy_sum / max(tokens, 1),
        }

    def _backward(self, loss: Any) -> Any:
        """Add a micro-batch's gradient to those of the step; gives the loss without its graph."""
        # An infinite loss may have a finite gradient; this one's is not, and DeepSpeed drops the step on all ranks.
        loss = loss if loss.isfinite() else loss * float("nan")
        # DeepSpeed averages gradients over the ranks; the weights are already those of the whole batch.
        self._engine.backward(loss * self._ranks)
        return loss.detach()

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
