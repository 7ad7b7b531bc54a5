"""What a preset's loss and gradient cost beside plain cross-entropy on the same batch, in time and in memory.

    python benchmarks/loss.py

From the last hidden states to gradients of hidden states and output head, which is where logits are, with the figures
of how far off-policy the batch was. One thread, processor time, presets and cross-entropy in turn. The forward pass of
a reference policy, which presets with a divergence need beside it, is not in it. The second part is a vocabulary of
150,000 and 8,192 tokens, in a process of its own, by the peak of its resident memory; `cross-entropy` as an argument
does the same for torch's. Writes results/loss.json.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
import torch
from torch import nn

from benchmarks.overhead import cpu_name
from trainer.batches import MicroBatch
from trainer.objective import PRESETS, ObjectiveSpec
from trainer.objectives import batch_losses
from trainer.off_policy import drift
from trainer.policy import CHUNK_LOGITS, KEPT_LOGITS, OutputHead

TOKENS, WIDTH, VOCABULARY = 512, 576, 49_152
"""Of SmolLM2-135M."""
LARGE = (8192, 1024, 150_000)
REPEATS = 7
RESPONSE = 64
"""Tokens of one response."""


def main() -> None:
    torch.set_num_threads(1)
    batch = Batch(TOKENS, WIDTH, VOCABULARY)
    ways: dict[str, Callable[[], None]] = {"cross-entropy": batch.cross_entropy}
    ways |= {name: lambda name=name: batch.preset(name) for name in PRESETS}  # type: ignore[misc]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(REPEATS + 1):
        for name, run in ways.items():
            began = time.process_time()
            run()
            if repeat:
                seconds[name].append(time.process_time() - began)
    base = seconds["cross-entropy"]
    ratios = {name: [a / b for a, b in zip(own, base, strict=True)] for name, own in seconds.items()}
    report = {
        "command": "python benchmarks/loss.py",
        "machine": {"cpu": cpu_name(), "threads": 1},
        "batch": {"tokens": TOKENS, "width": WIDTH, "vocabulary": VOCABULARY, "repeats": REPEATS},
        "seconds_median": {name: round(statistics.median(own), 3) for name, own in seconds.items()},
        "ratio_to_cross_entropy": {
            name: {"median": round(statistics.median(r), 3), "low": round(min(r), 3), "high": round(max(r), 3)}
            for name, r in ratios.items() if name != "cross-entropy"
        },
        "large_vocabulary": {"rgra": in_own_process("rgra")},
        "logits_held": {"chunk": CHUNK_LOGITS, "kept_up_to": KEPT_LOGITS},
    }  # fmt: skip
    (HERE / "results" / "loss.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


class Batch:
    """Hidden states of responses, and an output head."""

    def __init__(self, tokens: int, width: int, vocabulary: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.linear = nn.Linear(width, vocabulary, bias=False)
        self.head = OutputHead(self.linear)
        self.hidden = torch.randn(tokens, width, generator=generator).requires_grad_()
        self.tokens = torch.randint(0, vocabulary, (tokens,), generator=generator)
        flat = [torch.randn(tokens, generator=generator) for _ in range(5)]
        near = -np.log(vocabulary) + 0.1 * flat[0]
        rows = torch.arange(tokens) // RESPONSE
        weights = torch.full((tokens,), 1 / tokens)
        self.micro = MicroBatch(self.tokens, self.tokens, near, flat[1], weights, near, near + 0.1 * flat[2], rows)

    def cross_entropy(self) -> None:
        nn.functional.cross_entropy(self.linear(self.hidden), self.tokens).backward()

    def preset(self, name: str) -> None:
        logprobs, entropy = self.head(self.hidden, self.tokens, 1.0)
        objective = ObjectiveSpec(name=name)  # type: ignore[arg-type]
        losses = batch_losses(objective, False, logprobs, entropy, self.micro)
        drift(objective, False, logprobs, self.micro).sum(1)
        (losses * self.micro.weights).sum().backward()


def in_own_process(way: str) -> dict[str, float]:
    """Seconds and peak memory of one loss and gradient over the large vocabulary."""
    done = subprocess.run([sys.executable, __file__, way], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout)


def alone(way: str) -> None:
    torch.set_num_threads(1)
    batch = Batch(*LARGE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    batch.cross_entropy() if way == "cross-entropy" else batch.preset(way)
    took, after = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tokens, width, vocabulary = LARGE
    print(
        json.dumps(
            {
                "seconds": round(took, 1),
                "peak_gib_above_start": round((after - before) / 2**20, 2),
                "one_tensor_of_logits_gib": round(4 * tokens * vocabulary / 2**30, 2),
                "gradient_of_the_head_gib": round(4 * width * vocabulary / 2**30, 2),
            }
        )
    )


if __name__ == "__main__":
    alone(sys.argv[1]) if len(sys.argv) > 1 else main()
