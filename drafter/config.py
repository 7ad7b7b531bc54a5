"""The shape of a draft head, derived from the target's configuration."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from drafter.vocabulary import DraftVocabulary
from trainer.types import BadInput

Form = Literal["eagle3", "eagle"]
TARGETS = ("llama", "qwen2", "qwen3")
"""Targets for which vLLM gives out hidden states, and whose layer the head's resembles."""


@dataclass(frozen=True, slots=True)
class HeadConfig:
    form: Form
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    rms_eps: float
    rope_theta: float
    vocab_size: int
    """Of the target."""
    draft_vocab_size: int
    """Tokens that the head can propose; all of the target's in the eagle form, whose lm_head is the target's."""
    aux_layers: tuple[int, ...]
    """Indices i of Hugging Face's `hidden_states[i]` whose concatenation is the feature; empty in the eagle form."""
    target_layers: int
    max_positions: int
    trained_steps: int
    """Draft steps that the head was unrolled for in training; drafts beyond them are guesses of an untrained depth."""

    def __post_init__(self) -> None:
        for field in ("hidden_size", "intermediate_size", "heads", "kv_heads", "head_dim", "vocab_size"):
            if getattr(self, field) < 1:
                raise BadInput(f"drafter.{field}: {getattr(self, field)} is not positive")
        if self.heads % self.kv_heads:
            raise BadInput(f"drafter.kv_heads: {self.kv_heads} does not divide the {self.heads} heads")
        if self.head_dim % 2:
            raise BadInput(f"drafter.head_dim: {self.head_dim} is odd; rotary embedding pairs its halves")
        if not 1 <= self.draft_vocab_size <= self.vocab_size:
            raise BadInput(f"drafter.draft_vocab_size: {self.draft_vocab_size} is not in 1 .. {self.vocab_size}")
        if self.form == "eagle" and (self.aux_layers or self.draft_vocab_size != self.vocab_size):
            raise BadInput("drafter.form: eagle takes no aux_layers and proposes from the whole vocabulary")
        if self.form == "eagle3" and list(self.aux_layers) != sorted(set(self.aux_layers)):
            raise BadInput(f"drafter.aux_layers: {self.aux_layers} are not distinct and ascending")
        # HF's hidden_states[L] is behind the final norm, vLLM's layer L before it: only indices below L agree.
        if self.form == "eagle3" and not (
            self.aux_layers and 0 <= self.aux_layers[0] <= self.aux_layers[-1] < self.target_layers
        ):
            raise BadInput(f"drafter.aux_layers: {self.aux_layers} are not within 0 .. {self.target_layers - 1}")
        if self.trained_steps < 1:
            raise BadInput(f"drafter.trained_steps: {self.trained_steps} is not positive")

    @classmethod
    def for_target(
        cls,
        target: Mapping[str, Any],
        form: Form = "eagle3",
        *,
        draft_vocab_size: int | None = None,
        trained_steps: int = 3,
    ) -> "HeadConfig":
        """The head for a target's config.json, given as plain data. BadInput names what is missing or does not fit."""
        if form not in ("eagle3", "eagle"):
            raise BadInput(f"drafter.form: {form!r} is neither eagle3 nor eagle")
        if target.get("model_type") not in TARGETS:
            raise BadInput(f"target config: model_type {target.get('model_type')!r} is none of {', '.join(TARGETS)}")
        heads, layers = _size(target, "num_attention_heads"), _size(target, "num_hidden_layers")
        hidden_size, vocab_size = _size(target, "hidden_size"), _size(target, "vocab_size")
        if target.get("head_dim") is None and hidden_size % heads:
            raise BadInput(f"target config: hidden_size {hidden_size} is no multiple of the {heads} heads")
        return cls(
            form=form,
            hidden_size=hidden_size,
            intermediate_size=_size(target, "intermediate_size"),
            heads=heads,
            kv_heads=target.get("num_key_value_heads") or heads,
            head_dim=target.get("head_dim") or hidden_size // heads,
            rms_eps=float(target.get("rms_norm_eps", 1e-6)),
            rope_theta=_rope_theta(target),
            vocab_size=vocab_size,
            draft_vocab_size=vocab_size if draft_vocab_size is None else draft_vocab_size,
            aux_layers=default_aux_layers(layers) if form == "eagle3" else (),
            target_layers=layers,
            max_positions=_size(target, "max_position_embeddings"),
            trained_steps=trained_steps,
        )

    @property
    def feature_size(self) -> int:
        """Numbers per position that the target must give."""
        return self.hidden_size * (len(self.aux_layers) if self.form == "eagle3" else 1)

    @property
    def fc_inputs(self) -> int:
        return self.feature_size if self.form == "eagle3" else 2 * self.hidden_size

    def check_vocabulary(self, vocabulary: DraftVocabulary) -> None:
        have, want = (len(vocabulary.ids), vocabulary.vocab_size), (self.draft_vocab_size, self.vocab_size)
        if have != want:
            raise BadInput(
                f"drafter vocabulary: {have[0]} of {have[1]} tokens, but the head is for {want[0]} of {want[1]}"
            )


def default_aux_layers(layers: int) -> tuple[int, ...]:
    """EAGLE-3's [2, L//2, L-3]; in a shallow target what is left of them, filled up with the deepest others."""
    if layers < 2:
        raise BadInput(f"target config: num_hidden_layers {layers} is too few for eagle3, which taps inner layers")
    chosen = {min(max(layer, 1), layers - 1) for layer in (2, layers // 2, layers - 3)}
    spare = [layer for layer in range(layers - 1, 0, -1) if layer not in chosen]
    return tuple(sorted(chosen | set(spare[: 3 - len(chosen)])))


def _size(target: Mapping[str, Any], field: str) -> int:
    value = target.get(field)
    if not isinstance(value, int) or value < 1:
        raise BadInput(f"target config: {field} is {value!r}, not a positive integer")
    return value


def _rope_theta(target: Mapping[str, Any]) -> float:
    """transformers 5 keeps it in `rope_parameters`, earlier ones beside. Scaling is the target's own affair."""
    nested = target.get("rope_parameters") or {}
    theta = nested.get("rope_theta", target.get("rope_theta", 10_000.0))
    if not isinstance(theta, (int, float)) or not math.isfinite(theta) or theta <= 0:
        raise BadInput(f"target config: rope_theta is {theta!r}, not a positive number")
    return float(theta)
