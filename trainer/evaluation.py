"""What an evaluation says: pass@1 and pass@k with intervals, entropy, distinct solutions, language loss, the verdict.

Intervals are percentile bootstraps over prompts (Efron 1979), because prompts are what an evaluation has few of; the
draws have a fixed seed, so the same samples give the same interval. Pure.
"""

import hashlib
from collections.abc import Mapping, Sequence
from math import comb
from typing import Any

import numpy as np

from trainer.tasks import token_ids
from trainer.types import Group, Prompt

DRAWS = 1000
"""Resamplings of the prompts behind an interval."""
LEVEL = 0.95
"""Coverage of an interval; the two of a verdict have it together, 97.5 % each (Bonferroni)."""


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is right, 1 - C(n-c, k) / C(n, k).

    arXiv 2107.03374, Eq. 1. Raises ValueError for k above the number of samples.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} cannot be estimated from {samples} samples")
    return 1 - comb(samples - correct, k) / comb(samples, k)


def summarize(groups: Sequence[Group], prompts: Sequence[Prompt], ks: Sequence[int], temperature: float) -> dict:
    """pass@1 (mean reward) and pass@k for every k, over all prompts and by family, and what else the samples tell.

    A reward of 1 counts as right for pass@k. `entropy` is in nats per token, the mean of -log p over the sampled
    tokens, whose expectation at temperature 1 is the policy's entropy; None at any other. `counts` is what `verdict`
    needs: right responses by prompt, in the order of the pool. Raises ValueError without groups, and for a k that is
    more than a group has samples.
    """
    if not groups:
        raise ValueError("an evaluation without groups has nothing to summarize")
    groups = sorted(groups, key=lambda group: group.prompt)
    by_family: dict[str, list[Group]] = {}
    for group in groups:
        by_family.setdefault(prompts[group.prompt].family, []).append(group)
    values = _by_prompt(groups, ks)
    low_high = _interval(_resampled_means(np.array(list(values.values()))), LEVEL).tolist() if len(groups) > 1 else None
    tokens = sum(int(group.lengths.sum()) for group in groups)
    logprobs = np.concatenate([group.logprobs for group in groups])
    ids = "".join(prompts[group.prompt].id for group in groups)
    return {
        **_scores(groups, ks),
        "ci": low_high and dict(zip(values, low_high, strict=True)),
        "prompts": len(groups),
        "k": max(ks),
        "response_tokens_mean": tokens / sum(map(len, groups)),
        "truncated_share": float(np.concatenate([group.truncated for group in groups]).mean()),
        "entropy": -float(logprobs.mean(dtype=np.float64)) if temperature == 1 and len(logprobs) else None,
        "distinct_correct_mean": float(np.mean([_distinct_correct(group) for group in groups])),
        "families": {name: _scores(members, ks) for name, members in sorted(by_family.items())},
        "counts": {
            "prompts": hashlib.blake2b(ids.encode(), digest_size=8).hexdigest(),
            "samples": [len(group) for group in groups],
            "right": [_right(group) for group in groups],
        },
    }


def worked_answers(prompts: Sequence[Prompt], tokenizer: Any) -> list[tuple[str, list[int], int]]:
    """The examples of the language loss, as the pre-training corpus would write them, uncorrupted: family, token ids
    of prompt, answer and end of sequence, and tokens of the prompt. Of several reference solutions the first one is the
    answer; prompts without any give none."""
    answered = [prompt for prompt in prompts if prompt.solutions or prompt.answer]
    texts = [p.solutions[0] if p.solutions else p.answer for p in answered]
    answers = token_ids(tokenizer, texts, add_special_tokens=False) if texts else []
    return [
        (prompt.family, [*prompt.token_ids, *answer, tokenizer.eos_token_id], len(prompt.token_ids))
        for prompt, answer in zip(answered, answers, strict=True)
    ]


def with_language_loss(evaluation: dict, parts: Sequence[Mapping[str, Sequence[float]]]) -> dict:
    """The evaluation with `language_loss`, nats per token of the worked answers: by family, and the mean over families.

    `parts`: by rank, family to (nats, tokens). Without any tokens the mean is None.
    """
    families = {name: dict(scores) for name, scores in evaluation["families"].items()}
    names = sorted({name for part in parts for name in part})
    for name in names:
        nats, tokens = np.sum([part[name] for part in parts if name in part], axis=0)
        families.setdefault(name, {})["language_loss"] = float(nats / tokens)
    macro = float(np.mean([families[name]["language_loss"] for name in names])) if names else None
    return {**evaluation, "families": dict(sorted(families.items())), "language_loss": macro}


def verdict(base: dict, after: dict) -> dict[str, Any] | None:
    """Whether `after` can do more than `base`, by pass@1 and pass@k of the largest k of both (arXiv 2606.04272).

    `expansion`: both above base; `sharpening`: pass@1 above, pass@k below; `undecided`: an interval that this hangs on
    holds 0; `neither`: anything else, thus pass@1 below. Differences are of shares of right responses (reward 1), with
    intervals that hold together at 95 %; prompt by prompt where both evaluated the same prompts. None where there is no
    k above 1 or only one prompt.
    """
    k = min(base["k"], after["k"])
    old, new = (_pass_by_prompt(e["counts"]["samples"], e["counts"]["right"], [1, k]) for e in (base, after))
    if k < 2 or min(old.shape[1], new.shape[1]) < 2:
        return None
    paired = base["counts"]["prompts"] == after["counts"]["prompts"]
    draws = _resampled_means(new) - _resampled_means(old, seed=0 if paired else 1)
    intervals = _interval(draws, 1 - (1 - LEVEL) / 2).tolist()
    differences = (new.mean(axis=1) - old.mean(axis=1)).tolist()
    names = ("pass@1", f"pass@{k}")
    return {
        "verdict": _judged(*intervals),
        "paired": paired,
        "difference": dict(zip(names, differences, strict=True)),
        "ci": dict(zip(names, intervals, strict=True)),
    }


def _judged(one: Sequence[float], many: Sequence[float]) -> str:
    """By the intervals (low, high) of the differences in pass@1 and pass@k."""
    if one[1] < 0:
        return "neither"
    if one[0] <= 0 or many[0] <= 0 <= many[1]:
        return "undecided"
    return "expansion" if many[0] > 0 else "sharpening"


def _scores(groups: Sequence[Group], ks: Sequence[int]) -> dict[str, float]:
    values = _by_prompt(groups, ks)
    means = values["pass@1"]
    error = float(means.std(ddof=1) / len(means) ** 0.5) if len(means) > 1 else 0.0
    return {**{name: float(each.mean()) for name, each in values.items()}, "pass@1_stderr": error}


def _by_prompt(groups: Sequence[Group], ks: Sequence[int]) -> dict[str, np.ndarray]:
    """[prompts] of each: mean reward as pass@1, pass@k for every k above 1, and `pass@k` for the largest."""
    passed = _pass_by_prompt([len(group) for group in groups], [_right(group) for group in groups], ks)
    by_k = dict(zip(ks, passed, strict=True))
    above_1 = {f"pass@{k}": row for k, row in by_k.items() if k > 1}
    return {"pass@1": np.array([group.rewards.mean() for group in groups]), **above_1, "pass@k": by_k[max(ks)]}


def _pass_by_prompt(samples: Sequence[int], right: Sequence[int], ks: Sequence[int]) -> np.ndarray:
    """[ks, prompts]."""
    seen = list(zip(samples, right, strict=True))
    known = {(n, c, k): pass_at_k(n, c, k) for n, c in set(seen) for k in ks}
    return np.array([[known[n, c, k] for n, c in seen] for k in ks])


def _right(group: Group) -> int:
    return int((group.rewards >= 1).sum())


def _distinct_correct(group: Group) -> int:
    """Right responses that differ in at least one token."""
    return len({rollout.token_ids.tobytes() for rollout in group if rollout.reward >= 1})


def _resampled_means(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """[draws, metrics] from `values` [metrics, prompts]; the same seed and number of prompts draw the same prompts."""
    rng, n = np.random.default_rng(seed), values.shape[1]
    return np.stack([values[:, rng.integers(n, size=n)].mean(axis=1) for _ in range(DRAWS)])


def _interval(draws: np.ndarray, level: float) -> np.ndarray:
    """[metrics, 2]: what holds the middle share `level` of the draws [draws, metrics]."""
    return np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0).T
