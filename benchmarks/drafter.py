"""What training a draft head costs: `python benchmarks/drafter.py`, under 90 s on one core, or on CUDA where present.

packing      sequences/s of a micro-step, end to end against rows padded to the longest, same head, same sequences
throughput   tokens/s over packs of a fixed budget
micro-step   time of 512 tokens: the longest that a rollout can have to wait for a worker that trains
checkpoint   wall time for which training stops: everything at once, everything behind its back, the trainable part so
Writes benchmarks/results/drafter.json.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # before this folder, where `drafter` is this file
import numpy as np
import torch

from drafter.checkpoints import BackgroundSaver, save_state
from drafter.config import HeadConfig
from drafter.features import FeatureSequence
from drafter.packing import Pack, pack, plan_packs
from drafter.training import DrafterTrainer, TrainingSettings
from drafter.vocabulary import DraftVocabulary

RESULTS = Path(__file__).parent / "results" / "drafter.json"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STEPS, SEEDS, BATCH, PROMPT = 3, 8, 16, 16
MEDIAN, SIGMA, LONGEST = 64, 1.0, 1024
"""Response tokens are lognormal, p99 = 10 x median before the cut at LONGEST: the tail that rollouts have."""
CHECKPOINTS = 7

SMALL = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
"""The tiny model's shape, with a vocabulary of 512."""
WIDE = {"hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8, "num_key_value_heads": 4}
"""For checkpoints: a target's vocabulary of 65,536, of which the head keeps 8,192, so that files have a real size."""


def main() -> None:
    torch.set_num_threads(1)
    report = {
        "command": "python benchmarks/drafter.py",
        "machine": machine(),
        "packing": packing(),
        "throughput": throughput(),
        "micro_step": micro_step(),
        "checkpoint": checkpoint(),
    }
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


def packing() -> dict:
    """Each seed draws its own batch; both layouts take the same optimizer steps on it, alternating."""
    gains, rates, lengths = [], {"packed": [], "padded": []}, []
    for seed in range(SEEDS):
        learner = trainer(SMALL, 512)
        batch = tail(learner.config, BATCH, seed)
        lengths += [len(sequence) - PROMPT for sequence in batch]
        layouts: dict[str, Callable[..., Pack]] = {"packed": pack, "padded": padded}
        took: dict[str, list[float]] = {name: [] for name in layouts}
        for _ in range(4):
            for name, layout in layouts.items():
                took[name].append(seconds(step_on, learner, layout, batch))
        for name in layouts:
            rates[name].append(BATCH / statistics.median(took[name][1:]))
        gains.append(rates["packed"][-1] / rates["padded"][-1])
    return {
        "sequences_per_batch": BATCH,
        "response_tokens": {"p50": float(np.median(lengths)), "p99": float(np.quantile(lengths, 0.99))},
        "sequences_per_s": {name: spread(values) for name, values in rates.items()},
        "gain": spread(gains),
    }


def step_on(learner: DrafterTrainer, layout: Callable[..., Pack], batch: Sequence[FeatureSequence]) -> None:
    learner.optimize(layout(batch, DEVICE))


def padded(batch: Sequence[FeatureSequence], device: torch.device) -> Pack:
    """The usual layout, every row as long as the longest: the same calculation, its padding carried along unjudged."""
    width = max(len(sequence) for sequence in batch)
    rows = []
    for s in batch:
        ids, features, last = (filled(array, width) for array in (s.token_ids, s.features, s.last))
        rows.append(FeatureSequence(s.id, s.epoch, ids, s.prompt_length, features, last))
    whole = pack(rows, device)
    reach = [np.maximum(s.chains - np.arange(row.chains), 0) for s, row in zip(batch, rows, strict=True)]
    return replace(whole, reach=torch.from_numpy(np.concatenate(reach)).to(device))


def filled(array: np.ndarray, width: int) -> np.ndarray:
    return np.concatenate([array, np.zeros((width - len(array), *array.shape[1:]), array.dtype)])


def throughput(budget: int = 2048) -> dict:
    learner = trainer(SMALL, 512)
    sequences = tail(learner.config, 64, 0)
    packs = [[sequences[i] for i in plan] for plan in plan_packs([len(s) for s in sequences], budget)]
    rates = [sum(map(len, batch)) / seconds(learner.micro_step, batch) for _ in range(2) for batch in packs]
    return {"pack_tokens": budget, "draft_steps": STEPS, "tokens_per_s": spread(rates[len(packs) :])}


def micro_step() -> dict:
    """512 tokens as one document and as eight."""
    report = {}
    for documents in (1, 8):
        learner = trainer(SMALL, 512)
        batch = [sequence(learner.config, 512 // documents, i) for i in range(documents)]
        took = [1e3 * seconds(learner.micro_step, batch) for _ in range(23)]
        report[f"{documents}_documents_ms"] = spread(took[3:])
    return report


def checkpoint() -> dict:
    """What training waits for; the files of all three are the same kind, and complete before the next begins."""
    learner = trainer(WIDE, 65_536, 8_192)
    learner.micro_step([sequence(learner.config, 64, 0)])
    trainable = learner.state_dict()
    shape = (65_536, WIDE["hidden_size"])
    everything = trainable | {name: torch.randn(shape, device=DEVICE) for name in ("embedding", "target_lm_head")}
    saver, report = BackgroundSaver(), {}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "state"
        ways: dict[str, Callable[[], object]] = {
            "vanilla": lambda: save_state({name: tensor.cpu() for name, tensor in everything.items()}, path),
            "asynchronous": lambda: saver.save(everything, path),
            "selective_asynchronous": lambda: saver.save(trainable, path),
        }
        for name, way in ways.items():
            took = []
            for _ in range(CHECKPOINTS):
                took.append(1e3 * seconds(way, clock=time.perf_counter))
                saver.wait()
            report[name] = {"waits_ms": spread(took), "file_mib": round(path.stat().st_size / 2**20, 1)}
    saver.close()
    waits = {name: figures["waits_ms"]["median"] for name, figures in report.items()}
    return report | {"gain": round(waits["vanilla"] / waits["selective_asynchronous"], 2)}


# --- what is measured on --------------------------------------------------------------------------------------------


def trainer(shape: dict, vocab_size: int, draft_vocab_size: int | None = None) -> DrafterTrainer:
    target = shape | {"model_type": "qwen3", "head_dim": shape["hidden_size"] // shape["num_attention_heads"]}
    target |= {"vocab_size": vocab_size, "num_hidden_layers": 6, "max_position_embeddings": 4096}
    config = HeadConfig.for_target(target, draft_vocab_size=draft_vocab_size, trained_steps=STEPS)
    ids = np.arange(config.draft_vocab_size)
    generator = torch.Generator().manual_seed(0)
    frozen = [torch.randn(vocab_size, config.hidden_size, generator=generator).to(DEVICE) for _ in range(2)]
    settings = TrainingSettings(steps=STEPS)
    return DrafterTrainer(config, frozen[0], frozen[1] * 0.1, settings, DraftVocabulary(ids, vocab_size))


def tail(config: HeadConfig, count: int, seed: int) -> list[FeatureSequence]:
    lengths = np.random.default_rng(seed).lognormal(np.log(MEDIAN), SIGMA, count).astype(int).clip(4, LONGEST)
    return [sequence(config, PROMPT + int(length), i) for i, length in enumerate(lengths)]


def sequence(config: HeadConfig, tokens: int, seed: int) -> FeatureSequence:
    rng = np.random.default_rng(seed)
    sizes = (config.feature_size, config.hidden_size)
    features, last = (rng.normal(size=(tokens, size)).astype(np.float16) for size in sizes)
    ids = rng.integers(0, config.vocab_size, tokens).astype(np.int32)
    return FeatureSequence(str(seed), 0, ids, PROMPT, features, last)


def seconds(work: Callable[..., object], *arguments: object, clock: Callable[[], float] | None = None) -> float:
    """By the processor's clock where it does the work, so that neighbours on the machine do not count."""
    clock = clock or (time.perf_counter if DEVICE.type == "cuda" else time.process_time)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    start = clock()
    work(*arguments)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def spread(values: Sequence[float]) -> dict[str, float]:
    return {name: round(float(f(values)), 2) for name, f in (("median", np.median), ("min", np.min), ("max", np.max))}


def machine() -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    gpu = torch.cuda.get_device_name() if DEVICE.type == "cuda" else None
    return {"cpu": cpu, "gpu": gpu, "threads": torch.get_num_threads(), "torch": torch.__version__}


if __name__ == "__main__":
    main()
