"""A draft head on disk, as vLLM loads it: a directory with config.json and model.safetensors.

eagle3  architecture LlamaForCausalLMEagle3, tensors `midlayer.*`, `fc`, `norm`, `lm_head`, and `d2t`, `t2d` if reduced
eagle   architecture EagleLlamaForCausalLM, tensors `layers.0.*`, `fc`

Neither has embeddings, and eagle no lm_head: vLLM then takes the target's (`_maybe_share_embeddings`).
"""

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from drafter.config import HeadConfig
from drafter.model import DraftHead
from drafter.vocabulary import DraftVocabulary
from trainer.types import BadInput

CONFIG, WEIGHTS = "config.json", "model.safetensors"
ARCHITECTURES = {"eagle3": "LlamaForCausalLMEagle3", "eagle": "EagleLlamaForCausalLM"}
LAYER = {"eagle3": "midlayer.", "eagle": "layers.0."}
OF_THE_TARGET = ("hidden_size", "vocab_size", "target_layers")
"""Fields in which a head must agree with the target that it is loaded for."""


def named_weights(head: DraftHead) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) as `load_weights` of vLLM's model takes them, from a file or live. Tensors are the head's own."""
    for name, tensor in head.state_dict().items():
        yield name.replace("midlayer.", LAYER[head.config.form]), tensor
    if head.vocabulary.reduced:
        yield "d2t", torch.from_numpy(head.vocabulary.d2t)
        yield "t2d", torch.from_numpy(head.vocabulary.t2d)


def vllm_config(config: HeadConfig, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """config.json: a one-layer Llama, and beside it the `tailrace` fields that only we read."""
    result: dict[str, Any] = {
        "architectures": [ARCHITECTURES[config.form]],
        "model_type": "llama",
        "num_hidden_layers": 1,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": config.rms_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rope_theta": config.rope_theta,  # where transformers 4 looks
        "max_position_embeddings": config.max_positions,
        "vocab_size": config.vocab_size,
        "draft_vocab_size": config.draft_vocab_size,
        "tie_word_embeddings": False,
        "dtype": str(dtype).removeprefix("torch."),
        "tailrace": {"form": config.form, "target_layers": config.target_layers, "trained_steps": config.trained_steps},
    }
    if config.form == "eagle3":
        result["eagle_config"] = {
            "use_aux_hidden_state": True,
            "eagle_aux_hidden_state_layer_ids": list(config.aux_layers),
        }
    return result


def save_head(head: DraftHead, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the directory beside its place and rename it there. Readers see the old, none for a moment, or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        tensors = {
            name: tensor.to("cpu", dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
            for name, tensor in named_weights(head)
        }
        save_file(tensors, beside / "new.safetensors", metadata={"format": "pt"})
        new = beside / "new"
        new.mkdir()
        os.replace(beside / "new.safetensors", new / WEIGHTS)
        (new / CONFIG).write_text(json.dumps(vllm_config(head.config, dtype), indent=2) + "\n")
        if path.exists():
            os.replace(path, beside / "old")
        os.replace(new, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def load_head(path: Path, target: Mapping[str, Any] | None = None) -> DraftHead:
    """The head in a directory, in float32, checked against the target's config.json where given.

    BadInput names the file and the field or tensor that is missing, misshapen, not finite or of another target.
    """
    config = _read_config(path / CONFIG)
    if target is not None:
        check_target(config, target, path / CONFIG)
    tensors = _read_tensors(path / WEIGHTS)
    vocabulary = DraftVocabulary.full(config.vocab_size)
    if config.draft_vocab_size < config.vocab_size:
        d2t, t2d = tensors.pop("d2t", None), tensors.pop("t2d", None)
        if d2t is None or tuple(d2t.shape) != (config.draft_vocab_size,) or d2t.is_floating_point():
            raise BadInput(f"{path / WEIGHTS}: d2t is missing or not {config.draft_vocab_size} integers")
        vocabulary = _checked(path / WEIGHTS, lambda: DraftVocabulary.from_d2t(d2t.numpy(), config.vocab_size))
        if t2d is not None and not torch.equal(t2d.bool(), torch.from_numpy(vocabulary.t2d)):
            raise BadInput(f"{path / WEIGHTS}: t2d does not belong to d2t")
    head = DraftHead(config, vocabulary)
    prefix = LAYER[config.form]
    state = {
        name.replace(prefix, "midlayer.", 1) if name.startswith(prefix) else name: t for name, t in tensors.items()
    }
    wanted = head.state_dict()
    for name in sorted(wanted.keys() | state.keys()):
        if name not in state or name not in wanted:
            raise BadInput(f"{path / WEIGHTS}: {name} is {'missing' if name in wanted else 'no tensor of this form'}")
        if state[name].shape != wanted[name].shape:
            raise BadInput(f"{path / WEIGHTS}: {name} is {tuple(state[name].shape)}, not {tuple(wanted[name].shape)}")
        if not state[name].is_floating_point() or not state[name].isfinite().all():
            raise BadInput(f"{path / WEIGHTS}: {name} holds numbers that are not finite")
    head.load_state_dict(state)
    return head


def check_target(config: HeadConfig, target: Mapping[str, Any], source: Path) -> None:
    """BadInput if the head was made for a target of another hidden size, vocabulary or depth."""
    fits = HeadConfig.for_target(target, config.form)
    for field in OF_THE_TARGET:
        if getattr(config, field) != getattr(fits, field):
            raise BadInput(f"{source}: {field} is {getattr(config, field)}, the target's is {getattr(fits, field)}")


def check_draft_tokens(config: HeadConfig, k: int) -> None:
    """BadInput if more tokens are to be drafted than the head was unrolled for."""
    if not 1 <= k <= config.trained_steps:
        raise BadInput(f"drafter: {k} draft tokens, but the head was trained for 1 .. {config.trained_steps}")


def _read_config(path: Path) -> HeadConfig:
    try:
        data = json.loads(path.read_text())
        ours, form = data["tailrace"], data["tailrace"]["form"]
        if form not in ARCHITECTURES or data["architectures"] != [ARCHITECTURES[form]]:
            raise BadInput(f"architectures {data['architectures']} do not belong to form {form!r}")
        target = data | {"num_hidden_layers": ours["target_layers"]}
        sizes = {"draft_vocab_size": data["draft_vocab_size"], "trained_steps": ours["trained_steps"]}
        config = HeadConfig.for_target(target, form, **sizes)
        if form == "eagle3":
            layers = tuple(data["eagle_config"]["eagle_aux_hidden_state_layer_ids"])
            config = dataclasses.replace(config, aux_layers=layers)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from error
    except KeyError as error:
        raise BadInput(f"{path}: {error.args[0]} is missing") from error
    except (ValueError, TypeError) as error:  # BadInput, JSON and number errors: what is wrong, without where
        raise BadInput(f"{path}: {error}") from error
    return config


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path}: {error}") from error


def _checked(path: Path, make: Any) -> Any:
    try:
        return make()
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error
