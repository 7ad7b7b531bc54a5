"""What a learner rank makes of samples: their log-probabilities, losses and gradients, and optimizer steps.

Every method is called on all ranks together. A batch is divided among the ranks, and whatever is said of it is said of
the whole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.features import FeatureTap
from actors.figures import LearnerFigures, timed
from actors.learner_config import LearnerConfig
from trainer.types import Group, Prompt


@dataclass(frozen=True, slots=True)
class Step:
    """An optimizer step that was made, over the whole batch."""

    figures: dict[str, float]
    """`loss`, `grad_norm` and `entropy`."""
    drift: np.ndarray
    """Sums of trainer.off_policy.drift over its tokens; zeros where none were sampled by an engine."""
    gap_max: float


class LearningSteps:
    """Part of `LearnerRank`, which sets all of these."""

    _config: LearnerConfig
    _rank: int
    _ranks: int
    _pools: dict[str, list[Prompt]]
    _engine: Any
    _device: Any
    _tokenizer: Any
    _pad_id: int
    _reference: Any
    _tap: FeatureTap | None
    _figures: LearnerFigures
    _inside: bool

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
        made: list[Step] = []
        dropped = 0
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
                step = self._step(batch, learning_rate, self._policy_loss, tapped=not number)
                if step is None:
                    dropped += 1
                else:
                    made.append(step)
        spent = {"features_s": self._tap.seconds} if self._tap and made else {}
        return {
            **(_figures(made) if made else {}), **spent,
            "updates": len(made), "dropped": dropped, "learning_rate": learning_rate,
        }  # fmt: skip

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

    # Inside.

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
        from trainer.off_policy import drift

        spec = self._config.spec
        logprobs, entropy = self._engine(micro.token_ids, micro.targets)
        losses = batch_losses(spec.objective, spec.on_policy, logprobs, entropy, micro)
        return losses, entropy, drift(spec.objective, spec.on_policy, logprobs, micro)

    def _language_loss(self, micro: Any) -> tuple[Any, Any, None]:
        logprobs, entropy = self._engine(micro.token_ids, micro.targets, 1.0)
        return -logprobs, entropy, None

    def _step(self, batch: Sequence[Any], learning_rate: float, loss_of: Any, tapped: bool = False) -> Step | None:
        """Forward and backward over this rank's micro-batches, then one optimizer step; None if it was dropped."""
        import torch

        from trainer.off_policy import COLUMNS, GAP

        totals = torch.zeros(3 + len(COLUMNS) + 1, dtype=torch.float64)
        for rows, micro in self._micro_batches(batch, tapped):
            losses, entropy, drift = loss_of(micro)
            if self._tap and tapped:
                self._tap.keep(rows, batch)
            loss = self._backward((losses * micro.weights).sum())
            real = micro.weights > 0
            totals[0] += loss.item()
            totals[1] += entropy[real].sum().item()
            totals[2] += int(real.sum())
            if drift is not None and real.any():
                totals[3:-1] += drift[:, real].sum(1).cpu()
                totals[-1] = max(totals[-1].item(), drift[GAP, real].max().item())
        self._extra_backward()
        loss_sum, entropy_sum, tokens, *drifted, gap_max = self._over_ranks(totals)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        grad_norm = float(self._engine.get_global_grad_norm() or 0.0)
        if not np.isfinite([loss_sum, grad_norm]).all():
            return None
        figures = {"loss": loss_sum, "grad_norm": grad_norm, "entropy": entropy_sum / max(tokens, 1)}
        return Step(figures, np.array(drifted), gap_max)

    def _backward(self, loss: Any) -> Any:
        """Add a micro-batch's gradient to those of the step; gives the loss without its graph."""
        # An infinite loss may have a finite gradient; this one's is not, and DeepSpeed drops the step on all ranks.
        loss = loss if loss.isfinite() else loss * float("nan")
        # DeepSpeed averages gradients over the ranks; the weights are already those of the whole batch.
        self._engine.backward(loss * self._ranks)
        return loss.detach()

    def _extra_backward(self) -> None:
        """Gradients that a step takes along beside those of its batch; a recipe may have some."""

    def _over_ranks(self, totals: Any) -> list[float]:
        """Sums over the ranks, and the maximum of the last entry."""
        if self._ranks > 1:
            import torch.distributed as dist

            every = [totals.new_zeros(len(totals)) for _ in range(self._ranks)]
            dist.all_gather(every, totals) if self._config.device == "cpu" else dist.all_gather_object(every, totals)
            last = max(t[-1] for t in every)
            totals = sum(every)
            totals[-1] = last
        return totals.tolist()


def _figures(made: Sequence[Step]) -> dict[str, float]:
    """Of an update: what its first step found, and how far from the rollouts all of its steps were.

    Only before the first step has the learner's policy not moved since the update began.
    """
    from trainer.off_policy import GAP, shares

    first = made[0]
    gap = {"logprob_gap_mean": first.drift[GAP] / max(first.drift[0], 1), "logprob_gap_max": first.gap_max}
    return {**first.figures, **gap, **shares(np.sum([step.drift for step in made], 0))}
