"""The drafter's features, tapped from the learner's own forward pass: no second pass, and exact alignment.

Row t of a sequence's features is what the target computed from tokens 0 .. t. The tap reads the inputs of the auxiliary
layers and the output of the final norm while the policy's loss is computed, for the sequences that are worth keeping.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from drafter.buffer import Blob, select
from drafter.features import FeatureSequence, to_columns

HALF_MAX = 65504.0
"""Largest float16; what lies beyond is clipped to it."""


@dataclass(frozen=True, slots=True)
class TapConfig:
    aux_layers: tuple[int, ...]
    """Layers whose inputs are kept; none: the last hidden state alone (the `eagle` form)."""
    budget_bytes: int
    """Largest size of one epoch's features on one rank."""
    bytes_per_token: int


class FeatureTap:
    """Sits on one rank's policy."""

    def __init__(self, config: TapConfig, model: Any) -> None:
        """`model`: a Hugging Face causal language model with `model.layers` and `model.norm`."""
        self._config = config
        self._seen: dict[int, Any] = {}
        for layer in config.aux_layers:
            model.model.layers[layer].register_forward_pre_hook(self._keeper(layer), with_kwargs=True)
        model.model.norm.register_forward_hook(lambda _m, _i, output: self._keep(-1, output))
        self._epoch, self._room_tokens = -1, 0
        self.seconds = 0.0
        """Spent on copying features since the newest update began."""
        self._chosen: dict[int, bool] = {}
        self._kept: dict[bool, list[FeatureSequence]] = {True: [], False: []}

    def begin(self, epoch: int, parts: int) -> None:
        """An update of `parts` batches begins, or one of its batches: from here on features are kept."""
        if epoch != self._epoch:
            self._epoch, self._kept, self.seconds = epoch, {True: [], False: []}, 0.0
        self._room_tokens = self._config.budget_bytes // self._config.bytes_per_token // parts

    def choose(self, mine: Sequence[int], lengths: Sequence[int]) -> None:
        """Of this rank's sequences (`mine`, indices into the batch; `lengths` in tokens) the ones to keep; none outside
        an update, as in pre-training."""
        if not self._room_tokens:
            self._chosen = {}
            return
        longest, rest = select(lengths, self._room_tokens, seed=self._epoch)
        self._chosen = {mine[i]: long for part, long in ((longest, True), (rest, False)) for i in part}

    def keep(self, rows: Sequence[int], samples: Sequence[Any]) -> None:
        """The micro-batch whose row i is sample `rows[i]` of the batch has passed."""
        import torch

        began = time.perf_counter()
        for row, index in enumerate(rows):
            long = self._chosen.pop(index, None)
            if long is None:
                continue
            sample = samples[index]
            n = len(sample.token_ids)
            states = [self._seen[layer][row, :n] for layer in (*self._config.aux_layers, -1)]
            both = torch.cat(states, -1).float().clamp(-HALF_MAX, HALF_MAX).half().cpu().numpy()
            ids = np.asarray(sample.token_ids, np.int32)
            last = both[:, -states[-1].shape[-1] :]
            features = both[:, : -last.shape[1]] if self._config.aux_layers else last
            # Named after its prompt: what is held out must share no prompt with what is trained on.
            name = hashlib.blake2b(ids[: sample.prompt_length].tobytes(), digest_size=8).hexdigest()
            self._kept[long].append(FeatureSequence(name, self._epoch, ids, sample.prompt_length, features, last))
        self._seen.clear()
        self.seconds += time.perf_counter() - began

    def taken(self) -> list[FeatureSequence]:
        """What the passes left, the longest first; from here on nothing is kept until another update begins."""
        kept = [*self._kept[True], *self._kept[False]]
        self._kept, self._room_tokens = {True: [], False: []}, 0
        return kept

    def take(self) -> list[Blob]:
        """What this epoch's passes left, put into the object store."""
        import ray

        blobs, kept = [], dict(self._kept)
        self.taken()
        for long, sequences in kept.items():
            if sequences:
                columns = to_columns(sequences)
                size = sum(array.nbytes for array in columns.values())
                tokens = sum(map(len, sequences))
                blobs.append(Blob(ray.put(columns), self._epoch, long, len(sequences), tokens, size))
        return blobs

    def _keeper(self, layer: int) -> Any:
        def hook(_module: Any, args: tuple, kwargs: dict) -> None:
            self._keep(layer, args[0] if args else kwargs["hidden_states"])

        return hook

    def _keep(self, layer: int, output: Any) -> None:
        if self._room_tokens:
            self._seen[layer] = output.detach()
