"""A task whose responses have a heavy tail by nature, and a deep model that half knows it.

The problem: from an odd n follow n -> n/2 (even) or 3n + 1 (odd) until a number below n is reached; the response lists
the numbers. Most end after three steps, a few take over a hundred: among the odd n below 3000 the median response has
15 characters, the 99th percentile 248.

`prepare(directory)` writes `problems.jsonl` and the model: four layers trained on worked examples, a share of them
with a wrong digit somewhere, then deepened with blocks whose output projections are zero. These pass everything
through unchanged, so the model says the same to the last bit and costs as much as a model of that depth; under
training they take part like any other layer.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from random import Random

import numpy as np
import torch
from transformers import Qwen3ForCausalLM

from trainer.corpus import corrupted
from trainer.models import character_tokenizer, load_tokenizer, tiny_config
from trainer.spec import TinySpec

CONTEXT_TOKENS = 640
LARGEST_START, LARGEST_VALUE, LONGEST = 3000, 99_999, 100
CORRUPTED_SHARE = 0.3
TRAINED_LAYERS = 4


def reward(question: str, answer: str, response: str) -> float:
    """1 for the whole trajectory, 0 for anything else."""
    return float(response.strip() == answer)


def trajectory(value: int, start: int) -> list[int] | None:
    """The numbers after `value` down to the first one below `start`; None if one grows too large."""
    numbers = []
    while value >= start:
        value = value // 2 if value % 2 == 0 else 3 * value + 1
        if value > LARGEST_VALUE or len(numbers) == LONGEST:
            return None
        numbers.append(value)
    return numbers


def problems() -> list[dict[str, str]]:
    """All of them, in an order of their own: question `n`, answer the numbers with blanks between."""
    found = {n: numbers for n in range(3, LARGEST_START, 2) if (numbers := trajectory(n, n))}
    order = sorted(found)
    Random(0).shuffle(order)
    return [{"question": str(n), "answer": " ".join(map(str, found[n]))} for n in order]


def example(question: str, rng: Random) -> str:
    """A worked response; with CORRUPTED_SHARE one of its numbers is wrong and the rest follows from it."""
    start = int(question)
    numbers = trajectory(start, start) or []
    if rng.random() < CORRUPTED_SHARE:
        place = rng.randrange(len(numbers))
        wrong = int(corrupted(str(numbers[place]), rng))
        rest = trajectory(wrong, start)
        if rest is not None and len(numbers[:place]) + len(rest) < LONGEST:
            numbers = [*numbers[:place], wrong, *rest]
    return " ".join(map(str, numbers))


def pretrain(model: Qwen3ForCausalLM, encode, eos: int, steps: int, batch: int = 64) -> None:
    """Next-token training on worked examples, cosine schedule; sequences of like length share a padded pass."""
    rng, questions = Random(1), [problem["question"] for problem in problems()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps, pct_start=0.05)
    began = time.time()
    for step in range(steps):
        rows = []
        for question in rng.choices(questions, k=batch):
            prompt = encode(question + ":")
            rows.append((len(prompt), prompt + encode(example(question, rng)) + [eos]))
        rows.sort(key=lambda row: len(row[1]))
        tokens = sum(len(ids) - start for start, ids in rows)
        total = 0.0
        for part in np.array_split(np.arange(batch), 8):
            part = [rows[i] for i in part]
            width = max(len(ids) for _, ids in part)
            ids = torch.tensor([ids + [0] * (width - len(ids)) for _, ids in part])
            labels = torch.tensor([[-100] * start + row[start:] + [-100] * (width - len(row)) for start, row in part])
            logits = model(ids, use_cache=False).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
            (loss / tokens).backward()
            total += float(loss.detach()) / tokens
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {total:.4f}, {time.time() - began:.0f} s", flush=True)


def deepen(model: Qwen3ForCausalLM, layers: int) -> Qwen3ForCausalLM:
    """The same function with `layers` layers: pass-through blocks spread evenly between the trained ones."""
    trained = model.config.num_hidden_layers
    config = type(model.config)(**{**model.config.to_dict(), "num_hidden_layers": layers, "layer_types": None})
    deep = Qwen3ForCausalLM(config)
    places = [i * layers // trained for i in range(trained)]
    state = {k: v for k, v in model.state_dict().items() if ".layers." not in k}
    for i, layer in enumerate(deep.model.layers):
        if i in places:
            layer.load_state_dict(model.model.layers[places.index(i)].state_dict())
        else:
            torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
            torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    deep.load_state_dict(state, strict=False)
    return deep


def prepare(directory: Path, layers: int = 24, steps: int = 1200) -> None:
    """Write problems and model into `directory`, unless they are there."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "problems.jsonl").write_text("".join(json.dumps(p) + "\n" for p in problems()))
    shallow, deep = directory / f"trained-{steps}", directory / f"deep-{layers}-{steps}"
    if not shallow.exists():
        torch.manual_seed(0)
        tokenizer = character_tokenizer(CONTEXT_TOKENS)
        model = Qwen3ForCausalLM(tiny_config(TinySpec(layers=TRAINED_LAYERS, intermediate_size=384), CONTEXT_TOKENS))
        pretrain(model, lambda text: tokenizer(text)["input_ids"], tokenizer.eos_token_id, steps)
        _save(model, tokenizer, shallow)
    if not deep.exists():
        torch.manual_seed(1)
        _save(deepen(Qwen3ForCausalLM.from_pretrained(shallow), layers), load_tokenizer(shallow), deep)


def _save(model: Qwen3ForCausalLM, tokenizer, path: Path) -> None:
    beside = Path(tempfile.mkdtemp(dir=path.parent))
    model.save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    beside.rename(path)


if __name__ == "__main__":
    torch.set_num_threads(1)
    prepare(Path(sys.argv[1]))
