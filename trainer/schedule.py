"""Learning rates as pure functions of the step."""

import math


def learning_rate(peak: float, kind: str, step: int, total: int, warmup: int, floor: float = 0.0) -> float:
    """Rate of optimizer step `step` (from 0) of `total`.

    Linear warm-up over `warmup` steps, then `kind`: constant, or linear or cosine down to `floor` x `peak`.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if kind == "constant":
        return peak
    done = (step - warmup) / max(total - warmup, 1)
    shape = 1 - done if kind == "linear" else 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return peak * (floor + (1 - floor) * max(shape, 0.0))
