"""What a run keeps of its drafter on disk: in checkpoints, and in the end in the format that vLLM loads.

Trainable tensors only: the target's embedding and output head, most of the bytes, are the learner's to save. What is
saved lies in the object store already, so writing it needs nobody who trains or generates; it goes on in the background
while the learner writes its own part of the checkpoint.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.checkpoint import load_state, save_state
from drafter.buffer import Blob

STATE, SERVING, FEATURES = "drafter.safetensors", "drafter-serving.safetensors", "features-{}.safetensors"
DECISIONS = "drafter.json"
FACTS = ("epoch", "long", "sequences", "tokens")


@dataclass(frozen=True, slots=True)
class Kept:
    state: Any
    """Reference of a trainer's state; None before the first session."""
    serving: Any
    """List with the reference of the published weights in service; None without."""
    version: int
    blobs: list[Blob]
    facts: dict[str, Any]
    """Plain numbers and texts: decisions so far."""


def save(directory: Path, kept: Kept) -> None:
    import ray

    (directory / DECISIONS).write_text(json.dumps(kept.facts))
    if kept.state:
        save_state(directory / STATE, ray.get(kept.state))
    if kept.serving:
        weights = {name: array for name, _, array in ray.get(kept.serving[0])}
        save_state(directory / SERVING, {**weights, "version": kept.version})
    for i, blob in enumerate(kept.blobs):
        facts = {name: getattr(blob, name) for name in FACTS}
        save_state(directory / FEATURES.format(i), {**ray.get(blob.handle), **facts})


def load(directory: Path) -> Kept:
    """What `save` left in a checkpoint, in the object store again."""
    import ray

    state = ray.put(load_state(directory / STATE)) if (directory / STATE).is_file() else None
    serving, version = None, 0
    if (directory / SERVING).is_file():
        weights = load_state(directory / SERVING)
        version = weights.pop("version")
        serving = [ray.put([(name, str(array.dtype), array) for name, array in weights.items()])]
    blobs = []
    for file in sorted(directory.glob(FEATURES.format("*"))):
        columns = load_state(file)
        facts = {name: columns.pop(name) for name in FACTS}
        blobs.append(Blob(ray.put(columns), size_bytes=sum(a.nbytes for a in columns.values()), **facts))
    facts = json.loads((directory / DECISIONS).read_text()) if (directory / DECISIONS).is_file() else {}
    return Kept(state, serving, version, blobs, facts)


def from_head(directory: Path) -> Any:
    """The weights of a head on disk, in the object store as the engines load them."""
    import ray
    import torch

    from actors.buckets import pack
    from drafter.files import load_head, named_weights

    return ray.put(pack(list(named_weights(load_head(directory))), torch.float32))


def export(path: Path, head_dir: Path, serving: Any) -> None:
    """Write the weights in service, of the shape in `head_dir`, as a directory that vLLM loads."""
    import ray
    import torch

    from drafter.files import LAYER, load_head, save_head

    head = load_head(head_dir)
    prefix = LAYER[head.config.form]
    arrays = {name.replace(prefix, "midlayer."): np.array(array) for name, _, array in ray.get(serving[0])}
    head.load_state_dict({name: torch.from_numpy(a) for name, a in arrays.items() if name not in ("d2t", "t2d")})
    save_head(head, path)
