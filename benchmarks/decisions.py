"""What a decision of the budget scheduler and its update cost: `python benchmarks/decisions.py`, a line per setting.

Processor time of one epoch on one core, median and maximum of twelve; half of the responses are correct.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
import time

import numpy as np

from allocator import Allocator, AllocatorSpec

EPOCHS, MEASURED = 500, 12


def main() -> None:
    for policy in ("sluice", "cero"):
        for prompts, rollouts in ((9_000, 512), (1_000_000, 4_096), (1_000_000, 65_536)):
            sizes = {"budget_rollouts": EPOCHS * rollouts, "max_rollouts_per_epoch": rollouts + rollouts // 32}
            allocator = Allocator(AllocatorSpec(policy=policy, **sizes), prompts, EPOCHS, seed=0)
            took_ms = [1e3 * epoch_s(allocator) for _ in range(MEASURED)]
            state = sum(v.nbytes for v in allocator.state_dict().values() if isinstance(v, np.ndarray))
            print(
                f"{policy}: {prompts:,} prompts, {rollouts:,} rollouts an epoch: median {np.median(took_ms):.1f} ms, "
                f"max {max(took_ms):.1f} ms, state {state / prompts:.0f} bytes per prompt",
                flush=True,
            )


def epoch_s(allocator: Allocator) -> float:
    start = time.process_time()
    group = allocator.decide(allocator.epoch)
    allocator.observe(group.epoch, group.prompts, group.rollouts / 2, group.rollouts / 2)
    return time.process_time() - start


if __name__ == "__main__":
    main()
