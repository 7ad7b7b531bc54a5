"""The draft head that a run starts with, and every check of it that can be made before anything is started."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from actors.features import TapConfig
from actors.speculation import Speculation
from cluster.spec import Spec
from trainer.tasks import Pools, token_ids
from trainer.types import BadInput

DRAFT_VOCABULARY = 8192
"""Tokens that an eagle3 head can propose where the spec does not say."""
FEATURE_BYTES = 2
"""Features travel and wait as float16."""


def prepare_head(spec: Spec, model_dir: Path, pools: Pools, tokenizer: Any, directory: Path) -> Path | None:
    """The directory of the head, written with random weights if the spec names none; None without a learned drafter.

    Raises BadInput naming what does not fit: the target's family, hidden size or vocabulary, more draft tokens than the
    head was trained for, a damaged file.
    """
    d = spec.drafter
    if not d.learned:
        return None
    import torch

    from actors.drafter import target_tensors
    from drafter.files import save_head
    from drafter.model import DraftHead

    target = json.loads((model_dir / "config.json").read_text())
    if d.source is not None:
        check_drafter(spec, target)
        return Path(d.source).expanduser().absolute()
    path = directory / f"drafter-{d.method}"
    vocabulary = _vocabulary(spec, target, pools, tokenizer)
    config = _config(spec, target, len(vocabulary.ids))
    if path.is_dir() and _is(path, config, vocabulary):
        return path
    head = DraftHead(config, vocabulary)
    _, lm_head = target_tensors(model_dir)
    head.initialise(lm_head[head.draft_ids].float(), torch.Generator().manual_seed(spec.run.seed))
    save_head(head, path)
    return path


def check_drafter(spec: Spec, target: dict[str, Any]) -> None:
    """All that can be told from the target's config.json. Raises BadInput."""
    from drafter.files import check_draft_tokens, load_head

    d = spec.drafter
    if not d.learned:
        return
    if d.source is None:
        _config(spec, target, None)
        return
    head = load_head(Path(d.source).expanduser(), target)
    if head.config.form != d.method:
        raise BadInput(f"drafter.source: {d.source} is a head for method {head.config.form}, not {d.method}")
    check_draft_tokens(head.config, d.max_draft_tokens)
    if d.train.enabled and d.train.steps != head.config.trained_steps:
        raise BadInput(f"drafter.train.steps: {d.train.steps}; {d.source} was trained with {head.config.trained_steps}")


def _config(spec: Spec, target: dict[str, Any], draft_vocab_size: int | None) -> Any:
    from drafter.config import HeadConfig

    d, form = spec.drafter, "eagle" if spec.drafter.method == "eagle" else "eagle3"
    try:
        return HeadConfig.for_target(target, form, draft_vocab_size=draft_vocab_size, trained_steps=d.train.steps)  # type: ignore[arg-type]
    except BadInput as error:
        raise BadInput(f"drafter.method: {d.method} does not fit model.source {spec.model.source}: {error}") from None


def speculation(spec: Spec, head_dir: Path | None) -> Speculation | None:
    """What the engines are asked for."""
    d = spec.drafter
    if d.method == "none":
        return None
    tokens = [tuple(entry) for entry in d.draft_tokens] if isinstance(d.draft_tokens, list) else d.draft_tokens
    head = str(head_dir) if head_dir else None
    return Speculation(d.method, head, tokens, d.max_draft_tokens, ready=d.source is not None)  # type: ignore[arg-type]


def tap(spec: Spec, head_dir: Path | None) -> TapConfig | None:
    """What the learner keeps for the drafter: an epoch's features may fill half of the buffer."""
    if not spec.drafter.trains or head_dir is None:
        return None
    from drafter.files import load_head

    config = load_head(head_dir).config
    states = len(config.aux_layers) + 1
    half = spec.drafter.train.buffer_mib * 2**20 // 2
    return TapConfig(config.aux_layers, half // spec.learner.ranks, states * config.hidden_size * FEATURE_BYTES)


def _is(path: Path, config: Any, vocabulary: Any) -> bool:
    """Whether the directory holds a whole head of this shape and vocabulary."""
    from drafter.files import load_head

    try:
        head = load_head(path)
    except BadInput:
        return False
    return head.config == config and np.array_equal(head.vocabulary.ids, vocabulary.ids)


def _vocabulary(spec: Spec, target: dict[str, Any], pools: Pools, tokenizer: Any) -> Any:
    """Every token of a small vocabulary; of a large one the most frequent in the task's prompts and answers."""
    from drafter.vocabulary import DraftVocabulary

    size = target["vocab_size"]
    wanted = min(spec.drafter.draft_vocabulary or DRAFT_VOCABULARY, size)
    if spec.drafter.method == "eagle" or wanted == size:
        return DraftVocabulary.full(size)
    counts = np.zeros(size)
    for prompt in pools.train:
        np.add.at(counts, list(prompt.token_ids), 1)
    for ids in token_ids(tokenizer, [prompt.answer for prompt in pools.train], add_special_tokens=False):
        np.add.at(counts, ids, 1)
    return DraftVocabulary.chosen(counts, wanted, keep={tokenizer.eos_token_id})
