"""Rollout phases alone, arm against arm on the same engines: parts `phases` and `smollm2` of benchmarks/rollout.py."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actors.requests import GroupRequest, Sampling
from actors.rollout import RolloutWorker
from cluster.bubbles import Bubbles
from cluster.checkpoint import RunDirectory
from cluster.lengths import Lengths
from cluster.placement import Actors, Cluster
from cluster.rollouts import Rollouts
from cluster.spec import Spec, load_spec
from cluster.workers import Workers
from drafter.spec import DrafterSpec
from trainer.models import load_tokenizer, prepare_model, user_cache
from trainer.tasks import build_pools
from trainer.types import Group, Prompt

HERE = Path(__file__).parent
SCHEDULES: dict[str, list[tuple[int, int, int]]] = {
    "6 to 8, then 4": [(1, 8, 6), (9, 64, 4)],
    "6 to 16, then 3": [(1, 16, 6), (17, 64, 3)],
    "6 to 32, then 2": [(1, 32, 6), (33, 64, 2)],
    "6 to 4, 5 to 16, then 4": [(1, 4, 6), (5, 16, 5), (17, 64, 4)],
}
"""Hand-made K by running requests, [from, to, K]: the sweep."""
STATIC = (0, 2, 3, 4, 5, 6)
REPEATS, WARM_UP, SETTLE = 10, 1, 16


def phases(spec: Spec, models: Path) -> dict[str, Any]:
    """The policy and the drafter that a training run left in `models`, sampled from by two engines, arm after arm.

    Plain vLLM has engines of its own, without a speculative configuration; all other arms share one pair of engines.
    Every repeat gives each arm the same prompts, in an order that changes with the repeat. At temperature 0 all arms
    sample the same tokens, so that they do the same work: at 1 the longest response decides how long a phase takes, and
    differs from arm to arm (whole runs compare that regime).
    """
    arms: dict[str, Any] = {"plain": None, "adaptive": "adaptive", "ngram, adaptive": "ngram"}
    arms |= {f"K = {k}": k for k in STATIC} | SCHEDULES
    with Sampler(speculating(spec, str(models / "policy"), models / "drafter"), temperature=0.0) as sampler:
        return compared(sampler, arms, REPEATS, WARM_UP, SETTLE)


def speculating(spec: Spec, model: str, head: Path) -> Spec:
    """The spec with this model, and a drafter that is not trained."""
    drafter = spec.drafter.model_copy(
        update={"source": str(head), "train": spec.drafter.train.model_copy(update={"enabled": False})}
    )
    return spec.model_copy(update={"model": spec.model.model_copy(update={"source": model}), "drafter": drafter})


def compared(sampler: "Sampler", arms: dict[str, Any], repeats: int, warm_up: int, settle: int) -> dict[str, Any]:
    """Seconds of every arm and repeat, and the ratios of plain to each, and of each to the adaptive one.

    `settle`: phases in which what adapts may learn before the first repeat; in a run they are the first epochs.
    """
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    tokens: dict[str, list[int]] = {arm: [] for arm in arms}
    stats: dict[str, Any] = {}
    for arm in [arm for arm in arms.values() if isinstance(arm, str)] * settle:
        sampler.sample(arm, 0)
    for repeat in range(-warm_up, repeats):
        order = list(arms)
        for arm in order[repeat % len(order) :] + order[: repeat % len(order)]:
            took, count, row = sampler.sample(arms[arm], repeat + warm_up)
            if repeat >= 0:
                seconds[arm].append(took)
                tokens[arm].append(count)
                stats[arm] = row
        print(repeat, {arm: round(s[-1], 2) for arm, s in seconds.items() if s}, flush=True)
    rows = {}
    for arm in arms:
        rows[arm] = {
            "seconds": sum(seconds[arm]),
            "tokens_per_s": sum(tokens[arm]) / sum(seconds[arm]),
            "speedup": interval(seconds["plain"], seconds[arm]),
            "adaptive_is_faster_by": interval(seconds[arm], seconds["adaptive"]) if "adaptive" in arms else None,
            "accept_length": stats[arm]["accept_length"],
        }
        print(arm, rows[arm], flush=True)
    best = min((arm for arm in arms if not arm.endswith(("plain", "adaptive"))), key=lambda arm: sum(seconds[arm]))
    p50, p90, p99 = np.quantile(sampler.lengths, [0.5, 0.9, 0.99])
    return {
        "settling_phases": settle,
        "temperature": sampler.temperature,
        "response_tokens": {"p50": p50, "p90": p90, "p99": p99, "max": max(sampler.lengths), "p99_by_p50": p99 / p50},
        "repeats": repeats, "rollouts_per_phase": sampler.rollouts, "arms": rows, "best_fixed": best,
        "adaptive_against_best_fixed": rows[best]["adaptive_is_faster_by"], "seconds": seconds, "last": stats,
    }  # fmt: skip


def interval(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, float]:
    """Ratio of the sums, with a 95 % bootstrap interval over the repeats, and the median of the repeats' ratios."""
    n, d = np.array(numerator), np.array(denominator)
    draws = np.random.default_rng(0).integers(0, len(n), (4000, len(n)))
    low, high = np.quantile(n[draws].sum(1) / d[draws].sum(1), [0.025, 0.975])
    return {"ratio": n.sum() / d.sum(), "low": low, "high": high, "median": float(np.median(n / d))}


class Sampler:
    """Two pairs of rollout workers, one plain and one that speculates, and the service's own rollout phase."""

    def __init__(self, spec: Spec, temperature: float, skip: int = 0) -> None:
        """`skip`: prompts at the head of the pool that are left out."""
        self._spec, self.temperature, self._skip, self._phase = spec, temperature, skip, 0
        self.rollouts = spec.allocator.max_rollouts_per_epoch
        self.lengths: list[int] = []
        """Of the plain engines' responses, in tokens."""

    def __enter__(self) -> "Sampler":
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # read when ray is imported
        import ray

        ray.init(include_dashboard=False, num_cpus=2, object_store_memory=2**28, log_to_driver=False, logging_level=40)
        spec = self._spec
        tokenizer = load_tokenizer(spec.model.source)
        self.pools = build_pools(spec.task, tokenizer, spec.model.context_tokens - spec.rollout.max_response_tokens)
        del self.pools.train[: self._skip]
        self._plain = self._start(spec.model_copy(update={"drafter": DrafterSpec()}), None)
        if spec.drafter.source:
            self._speculating = self._start(spec, Path(spec.drafter.source))
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()

    def _start(self, spec: Spec, head: Path | None) -> "Side":
        import ray

        placed = Cluster(
            spec, RunDirectory(user_cache() / "benchmarks" / "phases"), spec.model.source, dtype_of(spec), head
        )
        environment = {"env_vars": {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}}
        actor = ray.remote(RolloutWorker).options(num_cpus=0, max_concurrency=8, runtime_env=environment)
        pools = {"train": self.pools.train, "heldout": self.pools.heldout}
        workers = {
            f"rollout-{i}": actor.remote(placed._configs.engine(), spec.task, pools, spec.run.seed) for i in range(2)
        }
        print(ray.get([worker.ready.remote() for worker in workers.values()]), flush=True)
        actors = Actors(workers, {}, [], None, {}, {}, head)
        served = Workers(spec, actors, nothing, nothing)
        bubbles = Bubbles(spec, actors, served, nothing)
        vocabulary = json.loads((Path(spec.model.source) / "config.json").read_text())["vocab_size"]
        lengths = Lengths(self.pools)
        return Side(workers, bubbles, Rollouts(spec, served, vocabulary, lengths, bubbles, nothing, nothing, nothing))

    def sample(self, arm: Any, repeat: int) -> tuple[float, int, dict[str, Any]]:
        """One rollout phase of an arm: seconds, tokens, and what was speculated."""
        import ray

        side = self._plain if arm is None else self._speculating
        if arm is not None:
            ray.get([worker.draft_by.remote(arm) for worker in side.workers.values()])
        groups = self.rollouts // self._spec.allocator.unit_rollouts
        began = time.perf_counter()
        chosen = [(repeat * groups + i) % len(self.pools.train) for i in range(groups)]
        sampled = self.groups(side, chosen, repeat)
        took = time.perf_counter() - began
        if arm is None:
            self.lengths += [int(n) for group in sampled for n in group.lengths]
        return took, sum(int(group.lengths.sum()) for group in sampled), side.bubbles.report()["speculation"]

    def groups(self, side: "Side | None", prompts: Sequence[int], seed: int, size: int | None = None) -> list[Group]:
        """One group per prompt, of the spec's unit of rollouts unless `size` is given, with the seeds of epoch `seed`;
        of the plain engines if no side is given."""
        self._phase += 1
        size, side = size or self._spec.allocator.unit_rollouts, side or self._plain
        requests = [GroupRequest(f"{self._phase}/{i}", seed, i, size, 0) for i in prompts]
        sampling = Sampling("train", self._spec.rollout.max_response_tokens, self.temperature)
        return side.rollouts.sample(requests, sampling)


@dataclass
class Side:
    workers: dict[str, Any]
    bubbles: Bubbles
    rollouts: Rollouts


def nothing(*_: Any, **__: Any) -> None:
    pass


def dtype_of(spec: Spec) -> str:
    return "float32" if spec.model.dtype == "auto" else spec.model.dtype


# --- SmolLM2 ----------------------------------------------------------------------------------------------------------

CHAT = user_cache() / "benchmarks" / "smollm2"
CHAT_PROMPTS, CHAT_SAMPLES, CHAT_PASSES, CHAT_STEPS = 192, 2, 6, 4
CHAT_REPEATS = 5
CHAT_ROLLOUTS = (2, 8)
"""Responses per phase, on two engines: one request each, as a chat or the end of a tail has it, and four each."""
CHAT_ARMS = {"plain": None, "adaptive": "adaptive", "ngram, adaptive": "ngram", "K = 0": 0, "K = 2": 2, "K = 3": 3}


def smollm2(problems: Path) -> dict[str, Any]:
    """SmolLM2-135M-Instruct answering GSM8K's questions, with a drafter that has learned from its own answers."""
    spec = load_spec(HERE / "rollout" / "smollm2.yaml", [f"task.sources.0.path={problems.absolute()}"])
    model = str(prepare_model(spec.model, CHAT, 0, dtype_of(spec)))
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"source": model})})
    head, learned = CHAT / "head", {}
    if not head.is_dir():
        with Sampler(spec, spec.rollout.temperature) as sampler:
            groups = [
                group
                for i in range(0, CHAT_PROMPTS, 16)
                for group in sampler.groups(None, range(i, i + 16), 0, CHAT_SAMPLES)
            ]
            learned = chat_head(spec, head, groups, sampler.pools.train)
    # The drafter has seen the first prompts; the comparison is on others.
    with Sampler(speculating(spec, model, head), temperature=0.0, skip=CHAT_PROMPTS) as sampler:
        found = {}
        for sampler.rollouts in CHAT_ROLLOUTS:
            sampler.lengths.clear()
            found[f"{sampler.rollouts} responses"] = compared(sampler, CHAT_ARMS, CHAT_REPEATS, 1, 2)
        return {"target": "SmolLM2-135M-Instruct, bfloat16", **learned, "phases": found}


def chat_head(spec: Spec, path: Path, groups: Sequence[Group], prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Train a head on sampled responses and write it; how long it took and what it promises on held-out prompts."""
    import torch

    from actors.drafter import is_held_out, target_tensors
    from actors.features import FeatureTap, TapConfig
    from drafter.config import HeadConfig
    from drafter.files import save_head
    from drafter.packing import plan_packs
    from drafter.training import DrafterTrainer, TrainingSettings
    from drafter.vocabulary import DraftVocabulary
    from trainer.batches import collate, samples
    from trainer.models import load_policy
    from trainer.policy import Policy

    torch.set_num_threads(2)
    source = Path(spec.model.source)
    target = json.loads((source / "config.json").read_text())
    config = HeadConfig.for_target(target, "eagle3", draft_vocab_size=8192, trained_steps=CHAT_STEPS)
    batch = samples(groups, [prompts[g.prompt].token_ids for g in groups], spec.learner.objective)
    policy = Policy(load_policy(str(source), dtype_of(spec)), 1.0)
    tap, sequences, began = FeatureTap(TapConfig(config.aux_layers, 2**40, 1), policy.model), [], time.time()
    with torch.no_grad():
        for sample in batch:
            tap.begin(0, 1)
            tap.choose([0], [len(sample.token_ids)])
            micro = collate([sample], 0)
            policy(micro.token_ids, micro.targets)
            tap.keep([0], [sample])
            sequences += tap.taken()
    counts = np.bincount(np.concatenate([s.token_ids for s in sequences]), minlength=config.vocab_size)
    vocabulary = DraftVocabulary.chosen(counts, 8192, keep=[load_tokenizer(source).eos_token_id])
    settings = TrainingSettings(steps=CHAT_STEPS, learning_rate=1e-3, temperature=spec.rollout.temperature)
    trainer = DrafterTrainer(config, *target_tensors(source), settings, vocabulary)
    data = [s for s in sequences if not is_held_out(s.id) and s.chains]
    held_out = [s for s in sequences if is_held_out(s.id) and s.chains]
    features_s, began, rng = time.time() - began, time.time(), np.random.default_rng(0)
    for lap in range(CHAT_PASSES):
        rng.shuffle(data)
        plans = plan_packs([len(s) for s in data], 1024)
        losses = [trainer.micro_step([data[i] for i in plans[p]])["loss"] for p in rng.permutation(len(plans))]
        right, drafts = trainer.evaluate(held_out[:24], CHAT_STEPS)
        print(
            f"pass {lap}: loss {np.mean(losses):.3f}, survival {right / drafts}, {time.time() - began:.0f} s",
            flush=True,
        )
    save_head(trainer.head, path, getattr(torch, dtype_of(spec)))
    return {
        "trained_on": {"sequences": len(data), "tokens": sum(map(len, data)), "passes": CHAT_PASSES},
        "features_s": features_s, "train_s": time.time() - began, "heldout_survival": (right / drafts).tolist(),
    }  # fmt: skip
