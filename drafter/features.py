"""What the drafter learns from: a sampled sequence and what the target computed while reading it. Numpy only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.types import BadInput


@dataclass(frozen=True, slots=True, eq=False)
class FeatureSequence:
    """One prompt and response. Row t of `features` and `last` is computed from tokens 0 .. t, token t included."""

    id: str
    epoch: int
    """In which it was sampled, and by whose weights the features were computed."""
    token_ids: np.ndarray
    """int32 [tokens], prompt and response."""
    prompt_length: int
    features: np.ndarray
    """float16 or float32 [tokens, feature_size]: eagle3: the auxiliary hidden states, side by side in layer order;
    eagle: the last hidden state, behind the final norm."""
    last: np.ndarray
    """float16 or float32 [tokens, hidden]: the last hidden state, behind the final norm: what lm_head is applied to."""

    def __post_init__(self) -> None:
        tokens = len(self.token_ids)
        if not 1 <= self.prompt_length <= tokens:
            raise BadInput(f"feature sequence {self.id}: prompt_length {self.prompt_length} of {tokens} tokens")
        for name in ("features", "last"):
            shape = getattr(self, name).shape
            if len(shape) != 2 or shape[0] != tokens:
                raise BadInput(f"feature sequence {self.id}: {name} {shape} for {tokens} tokens")

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def chains(self) -> int:
        """Positions from which at least one draft token lies in the response: prompt_length - 1 .. tokens - 3.

        The first response token is sampled by the target right after the prompt, so no draft ever proposes it.
        """
        return max(len(self.token_ids) - 1 - self.prompt_length, 0)

    @property
    def nbytes(self) -> int:
        shared = 0 if self.last is self.features else self.last.nbytes
        return self.token_ids.nbytes + self.features.nbytes + shared


def to_columns(sequences: Sequence[FeatureSequence]) -> dict[str, np.ndarray]:
    """Sequences end to end, as arrays that travel and are saved without pickling; `last` is left out where it is the
    features themselves."""
    columns = {
        "ids": np.array([int(s.id, 16) for s in sequences], np.uint64),
        "epochs": np.array([s.epoch for s in sequences], np.int64),
        "lengths": np.array([len(s) for s in sequences], np.int64),
        "prompt_lengths": np.array([s.prompt_length for s in sequences], np.int64),
        "token_ids": np.concatenate([s.token_ids for s in sequences]),
        "features": np.concatenate([s.features for s in sequences]),
    }
    if any(s.last is not s.features for s in sequences):
        columns["last"] = np.concatenate([s.last for s in sequences])
    return columns


def from_columns(columns: Mapping[str, np.ndarray]) -> list[FeatureSequence]:
    """The sequences again, as views of the columns."""
    result, end = [], 0
    for i, length in enumerate(columns["lengths"].tolist()):
        rows = slice(end, end + length)
        end += length
        features = columns["features"][rows]
        last = columns["last"][rows] if "last" in columns else features
        name, epoch, prompt = (
            f"{int(columns['ids'][i]):016x}",
            int(columns["epochs"][i]),
            int(columns["prompt_lengths"][i]),
        )
        result.append(FeatureSequence(name, epoch, columns["token_ids"][rows], prompt, features, last))
    return result
