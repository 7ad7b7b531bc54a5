"""A spec small enough to calculate by hand, as plain data."""

import json
from pathlib import Path
from typing import Any


def small() -> dict[str, Any]:
    """48 training and 12 held-out prompts of one generator, 240 rollouts in 6 epochs."""
    return {
        "run": {"name": "small", "seed": 3},
        "model": {
            "source": "tiny",
            "context_tokens": 64,
            "tiny": {"layers": 2, "hidden_size": 64, "intermediate_size": 128, "kv_heads": 2},
        },
        "task": {
            "template": "{question}=",
            "sources": [
                {
                    "kind": "reasoning_gym",
                    "generator": "gcd",
                    "train_prompts": 48,
                    "heldout_prompts": 12,
                    "config": {"max_value": 90},
                    "question_pattern": r"(\d+, \d+)",
                }
            ],
        },
        "recipe": [{"stage": "pretrain", "steps": 10}, {"stage": "evaluate"}, {"stage": "rl", "epochs": 6}],
        "allocator": {
            "budget_rollouts": 240,
            "unit_rollouts": 4,
            "max_units_per_prompt": 2,
            "max_rollouts_per_epoch": 64,
        },
        "rollout": {"workers": 2, "max_response_tokens": 16, "kv_cache_gib": 0.5, "publish_bucket_mib": 16},
        "learner": {"micro_batch_tokens": 1024, "minibatches": 2, "objective": {"mismatch": "tis"}},
        "cluster": {"placement": "colocated"},
        "evaluation": {"samples_per_prompt": 4, "k": 4},
    }


def jsonl_source(path: Path, lines: int = 20) -> dict[str, Any]:
    """A source whose file is written with `lines` problems, a quarter of them held out."""
    problems = [{"question": f"{n}+1", "answer": str(n + 1)} for n in range(lines)]
    path.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    return {"kind": "jsonl", "path": str(path), "verifier": "numeric", "heldout_prompts": lines // 4}
