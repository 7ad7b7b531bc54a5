"""Weights to start a stage from: directories in Hugging Face format, one, or several to merge."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trainer.models import load_config, load_policy, parameter_shapes, weight_files
from trainer.types import BadInput


def check_weights(path: Path, field: str, config: Any) -> None:
    """Raises BadInput naming `field` unless `path` holds weights of the shapes that the model's `config` has.

    `config`: of transformers, or None where it is not at hand; then only the files are checked.
    """
    if not path.is_dir():
        raise BadInput(f"{field}: {path}: no such directory")
    if not (path / "config.json").is_file() or not any((path / name).is_file() for name in weight_files(path)):
        raise BadInput(f"{field}: {path} lacks config.json or weights (*.safetensors)")
    try:
        theirs = parameter_shapes(load_config(path))
    except BadInput as error:
        raise BadInput(f"{field}: {str(error).removeprefix('model.source: ')}") from None
    if config is not None:
        _check_shapes(parameter_shapes(config), theirs, f"{field}: {path}")


def merged_weights(paths: Sequence[str], shares: Sequence[float]) -> dict[str, torch.Tensor]:
    """Parameter name to the weighted mean over the models, float32. Raises BadInput if their shapes differ."""
    total: dict[str, torch.Tensor] = {}
    for path, share in zip(paths, shares, strict=True):
        found = {name: p.detach() for name, p in load_policy(path, "float32").named_parameters()}
        if total:
            _check_shapes({n: p.shape for n, p in total.items()}, {n: p.shape for n, p in found.items()}, path)
        total = {name: share * tensor + total.get(name, 0.0) for name, tensor in found.items()}
    return total


def _check_shapes(ours: dict[str, torch.Size], theirs: dict[str, torch.Size], place: str) -> None:
    for name in sorted(ours.keys() | theirs.keys()):
        mine, other = ours.get(name), theirs.get(name)
        if mine != other:
            shown = [None if shape is None else list(shape) for shape in (other, mine)]
            raise BadInput(f"{place} does not fit the model: {name} is {shown[0]} there and {shown[1]} here")
