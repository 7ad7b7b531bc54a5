"""The trainer of a draft head: one optimizer step at a time, on whatever sequences it is handed.

It holds no data, no clock and no thread: a worker in a bubble calls `micro_step` until it has to stop, and whatever it
has learned so far is in `state_dict`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from drafter.config import HeadConfig
from drafter.features import FeatureSequence
from drafter.losses import EAGLE_TOKEN_WEIGHT, LOSSES, hidden_loss, target_distribution
from drafter.model import DraftHead
from drafter.packing import Pack, pack, plan_packs
from drafter.unroll import unrolled
from drafter.vocabulary import DraftVocabulary
from trainer.types import BadInput

SHALLOW_STEPS, FULL_DEPTH_EVERY = 3, 4
"""Three of four micro-steps unroll only so deep: the first drafts decide most, and cost the least to train."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's, by the names that torch gives them."""
EVALUATION_TOKENS = 8192
"""Tokens that an evaluation takes at a time, for the sake of memory."""


class Stopped(Exception):
    """A micro-step was abandoned because its time was over."""


class TrainingSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    steps: int = Field(default=3, ge=1, le=16)
    """Draft steps that the head is unrolled for."""
    loss: Literal["soft_cross_entropy", "total_variation", "hybrid"] = "soft_cross_entropy"
    """What each draft step is judged by."""
    step_weight: float = Field(default=0.8, gt=0, le=1)
    """Draft step i weighs step_weight ** i, since it matters only when all before it were accepted."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of AdamW, after the warm-up."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Of AdamW."""
    warmup_steps: int = Field(default=10, ge=0)
    """Optimizer steps over which the learning rate rises linearly; bubbles are short, so this is too."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    temperature: float = Field(default=1.0, gt=0)
    """At which the target samples, and so the temperature of the distribution to be matched."""


class DrafterTrainer:
    """Owns the head, its AdamW moments and the frozen rows of the target that both need."""

    def __init__(
        self,
        config: HeadConfig,
        embedding: torch.Tensor,
        lm_head: torch.Tensor,
        settings: TrainingSettings,
        vocabulary: DraftVocabulary | None = None,
        seed: int = 0,
    ) -> None:
        """`embedding` and `lm_head` are the target's, [vocab, hidden]; the head lives on their device, in float32."""
        if settings.steps != config.trained_steps:
            raise BadInput(f"drafter.steps: {settings.steps}, but the head is declared for {config.trained_steps}")
        self.config, self.settings = config, settings
        self.head = DraftHead(config, vocabulary).to(embedding.device)
        self.set_target(embedding, lm_head)
        self.head.initialise(self._target_head, torch.Generator().manual_seed(seed))
        self._names, parameters = zip(*self.head.named_parameters(), strict=True)
        self._optimizer = torch.optim.AdamW(
            parameters, settings.learning_rate, settings.betas, weight_decay=0.0, fused=True
        )
        self.step = 0

    @property
    def device(self) -> torch.device:
        return self._embedding.device

    def set_target(self, embedding: torch.Tensor, lm_head: torch.Tensor) -> None:
        """Take over the frozen tensors of a new target version; the head and its moments stay.

        The embedding is kept as it is, not copied where it is on the device already.
        """
        shape = (self.config.vocab_size, self.config.hidden_size)
        for name, tensor in (("embedding", embedding), ("lm_head", lm_head)):
            if tuple(tensor.shape) != shape:
                raise BadInput(f"target {name}: shape {tuple(tensor.shape)}, the drafter is for {shape}")
        device, ids = self.head.draft_ids.device, self.head.draft_ids
        self._embedding = embedding.detach().to(device)
        self._target_head = lm_head.detach()[ids.to(lm_head.device)].to(device, torch.float32)

    def micro_step(
        self, sequences: Sequence[FeatureSequence], stopped: Callable[[], bool] = lambda: False
    ) -> dict[str, float]:
        """One AdamW step on one pack. Returns loss, gradient norm, learning rate, chains and tokens.

        `stopped` is asked between draft steps; once it says so the step is abandoned with Stopped, the head as it was.

        Sequences without a drafted token are left out; ValueError if none is left. BadInput for features of another
        width, FloatingPointError for numbers that are not finite; the head is then as it was.
        """
        return self.optimize(self._packed(sequences), stopped)

    def optimize(self, packed: Pack, stopped: Callable[[], bool] = lambda: False) -> dict[str, float]:
        """`micro_step` on a pack that is laid out already."""
        deep = self.step % FULL_DEPTH_EVERY == FULL_DEPTH_EVERY - 1
        steps = self.settings.steps if deep else min(SHALLOW_STEPS, self.settings.steps)
        loss = self.loss(packed, steps, stopped)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.head.parameters(), self.settings.max_grad_norm)
        if not norm.isfinite():  # one such step would spoil the head and its moments for good
            self._optimizer.zero_grad()
            raise FloatingPointError(f"drafter: loss {loss.item()}, gradient norm {norm.item()} in step {self.step}")
        rate = self.settings.learning_rate * min(1.0, (self.step + 1) / max(self.settings.warmup_steps, 1))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.step += 1
        figures = {"loss": loss.item(), "grad_norm": norm.item(), "learning_rate": rate}
        return {**figures, "chains": packed.chains, "tokens": len(packed.token_ids)}

    def loss(self, packed: Pack, steps: int | None = None, stopped: Callable[[], bool] = lambda: False) -> torch.Tensor:
        """Sum over draft steps i of step_weight ** i times the mean loss of the chains that reach so far.

        `steps`: how deep to unroll, all of the settings' if not given.
        """
        measure, eagle = LOSSES[self.settings.loss], self.config.form == "eagle"
        target = target_distribution(packed.last, self._target_head, self.settings.temperature)
        total = torch.zeros((), device=self.device)
        for step, hidden in enumerate(unrolled(self.head, packed, self._embedding, steps or self.settings.steps)):
            if stopped():
                raise Stopped
            rows = (packed.reach > step).nonzero().squeeze(1)
            if not len(rows):
                break
            # The head at chain i, step j is judged by what the target said at the token that chain i + j starts from.
            logits = self.head.logits(hidden.index_select(0, rows), self._target_head)
            losses = measure(logits / self.settings.temperature, target.index_select(0, rows + step))
            if eagle:
                regression = hidden_loss(hidden.index_select(0, rows), packed.last.index_select(0, rows + step))
                losses = regression + EAGLE_TOKEN_WEIGHT * losses
            total = total + self.settings.step_weight**step * losses.mean()
        return total

    @torch.no_grad()
    def accepted(self, sequences: Sequence[FeatureSequence], k: int) -> np.ndarray:
        """int64 [chains of all sequences, each of which must have some]: how many of k greedy drafts were right.

        Right is what equals the sampled response, up to its end. The head is fed the sampled tokens instead of its own
        drafts, which is the same for as long as the drafts are right.
        """
        plans = plan_packs([len(sequence) for sequence in sequences], EVALUATION_TOKENS)
        packs = (self._packed([sequences[i] for i in plan]) for plan in plans)
        return np.concatenate([self._accepted(packed, k) for packed in packs])

    def _accepted(self, packed: Pack, k: int) -> np.ndarray:
        right = torch.ones(packed.chains, dtype=torch.bool, device=self.device)
        lengths = torch.zeros(packed.chains, dtype=torch.int64, device=self.device)
        for step, hidden in enumerate(unrolled(self.head, packed, self._embedding, k)):
            drafts = self.head.draft_ids[self.head.logits(hidden, self._target_head).argmax(-1)]
            sampled = packed.token_ids[(packed.starts + 2 + step).clamp_(max=len(packed.token_ids) - 1)]
            right &= (drafts == sampled) & (packed.reach > step)
            lengths += right
        return lengths.cpu().numpy()

    def evaluate(self, sequences: Sequence[FeatureSequence], k: int) -> tuple[np.ndarray, int]:
        """How many drafts had their first 1, 2 .. k tokens right, float64 [k], and how many drafts there were.

        The drafts are those that an engine would make while generating each response: one after the first token, the
        next after the accepted tokens and the one that the target adds. A greedy, one-hot draft token is accepted
        exactly when the engine's output is that token, and its output is a sample of the target as the response is: so
        this estimates without bias what vLLM's counters will say (at temperature 0, it is that). An average over all
        positions would not: easy runs are skipped in one draft, so real drafts begin more often before hard tokens.
        """
        usable = [sequence for sequence in sequences if sequence.chains]
        if not usable:
            return np.zeros(k), 0
        lengths, drafts, begin = self.accepted(usable, k), [], 0
        for sequence in usable:
            end = begin + sequence.chains
            while begin < end:
                drafts.append(lengths[begin])
                begin += int(lengths[begin]) + 1
            begin = end
        return (np.array(drafts)[:, None] > np.arange(k)).sum(0).astype(np.float64), len(drafts)

    def _packed(self, sequences: Sequence[FeatureSequence]) -> Pack:
        wanted = (self.config.feature_size, self.config.hidden_size)
        for sequence in sequences:
            found = (sequence.features.shape[1], sequence.last.shape[1])
            if found != wanted:
                raise BadInput(f"feature sequence {sequence.id}: features and last are {found} wide, not {wanted}")
        return pack(sequences, self.device)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The live tensors, flat: `head.*`, `exp_avg.*`, `exp_avg_sq.*`, `step`. Clone before the next step."""
        state = {"step": torch.tensor(self.step)}
        for name, parameter in self.head.named_parameters():
            state[f"head.{name}"] = parameter.detach()
            moments = self._optimizer.state[parameter]
            for moment in MOMENTS:
                state[f"{moment}.{name}"] = moments.get(moment, torch.zeros_like(parameter.detach()))
        return state

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue from a state; BadInput names a tensor that is missing, superfluous or of another shape."""
        have = self.state_dict()
        for name in sorted(have.keys() | state.keys()):
            if name not in state or name not in have or state[name].shape != have[name].shape:
                found = tuple(state[name].shape) if name in state else "missing"
                wanted = tuple(have[name].shape) if name in have else "no such tensor"
                raise BadInput(f"drafter state: {name}: {found}, the head has {wanted}")
        self.step = int(state["step"])
        for name, parameter in self.head.named_parameters():
            parameter.data.copy_(state[f"head.{name}"])
            moments = {
                moment: state[f"{moment}.{name}"].to(self.device, torch.float32, copy=True) for moment in MOMENTS
            }
            step = torch.tensor(float(self.step), device=self.device)
            self._optimizer.state[parameter] = {"step": step, **moments}


def average(states: Sequence[Mapping[str, torch.Tensor]], weights: Sequence[float]) -> dict[str, torch.Tensor]:
    """The weighted mean of replicas that trained apart from one start: parameters, moments, and the steps rounded.

    Local SGD (Stich 2019, arXiv 1805.09767): good while replicas stay close, that is for one bubble's worth of steps.
    """
    total = float(sum(weights))
    if len(states) != len(weights) or not states or min(weights) < 0 or total <= 0:
        raise ValueError(f"{len(states)} states with weights {list(weights)}")
    if any(state.keys() != states[0].keys() for state in states):
        raise BadInput("drafter state: the replicas do not hold the same tensors")
    result = {}
    for name, first in states[0].items():
        mean = sum(state[name].double() * (weight / total) for state, weight in zip(states, weights, strict=True))
        assert isinstance(mean, torch.Tensor)
        result[name] = (mean if first.is_floating_point() else mean.round()).to(first.dtype)
    return result
