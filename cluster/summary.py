"""What a run has done so far, in numbers: counters, the metrics row of an epoch, summary.json. Pure."""

import dataclasses
import platform
import time
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from cluster.spec import Spec
from trainer.evaluation import verdict
from trainer.stages import Budgeted
from trainer.types import Group, Prompt


@dataclasses.dataclass
class Counters:
    """Totals of a run; saved with every checkpoint."""

    rollouts: int = 0
    tokens: int = 0
    updates: int = 0
    updates_skipped: int = 0
    """Batches without a gradient: no response differed from what it was compared with."""
    updates_dropped: int = 0
    """Optimizer steps with a loss or gradient that was not finite."""
    checkpoints: int = 0
    wall_s: float = 0.0
    rollout_s: float = 0.0
    learn_s: float = 0.0
    publish_s: float = 0.0
    other_s: float = 0.0
    pretrain_s: float = 0.0
    pretrain_tokens: int = 0
    """Tokens of the worked examples that the pretrain stages have seen."""
    sft_s: float = 0.0
    evaluate_s: float = 0.0
    idle_s: float = 0.0
    """Seconds in which rollout workers had nothing to generate while a rollout phase went on, and of these, by
    harvest."""
    harvested_s: float = 0.0
    long_idle_s: float = 0.0
    long_harvested_s: float = 0.0
    drafter_steps: int = 0
    drafter_critical_s: float = 0.0
    """Seconds of drafter training bought on the critical path."""
    training_ended: str | None = None
    """Why the drafter was no longer trained."""
    engine_steps: float = 0.0
    speculating_steps: float = 0.0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    verified: int = 0

    def count(self, groups: Sequence[Group]) -> None:
        self.rollouts += sum(map(len, groups))
        self.tokens += sum(int(group.lengths.sum()) for group in groups)

    def count_update(self, figures: dict[str, float]) -> None:
        self.updates += int(figures["updates"])
        self.updates_dropped += int(figures["dropped"])
        self.updates_skipped += int(figures["skipped"])

    def add_laps(self, laps: dict[str, float]) -> None:
        """An epoch's times; what is neither rollout, learning nor publishing is `other`."""
        self.rollout_s += laps["rollout_s"]
        self.learn_s += laps["learn_s"]
        self.publish_s += laps["publish_s"]
        self.other_s += laps["decide_s"] + laps["other_s"]

    def add_report(self, row: dict[str, Any]) -> None:
        """What an epoch's row says of speculation and bubbles."""
        speculation, bubbles = row["speculation"], row["bubbles"]
        self.idle_s += bubbles["idle_s"]
        self.harvested_s += bubbles["harvested_s"]
        self.long_idle_s += bubbles["long_idle_s"]
        self.long_harvested_s += bubbles["long_harvested_s"]
        self.drafter_steps += bubbles["drafter_steps"]
        self.drafter_critical_s += bubbles["critical_s"]
        self.training_ended = bubbles["training_ended"]
        self.engine_steps += speculation["steps"]
        self.speculating_steps += speculation["steps"] * speculation["enabled_steps_fraction"]
        self.draft_tokens += speculation["draft_tokens"]
        self.accepted_tokens += speculation["accepted_tokens"]
        self.verified += speculation["verified"]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Counters":
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Stopwatch:
    """Splits the wall time of epochs into named parts without a gap: what lies between two epochs, a checkpoint for
    example, counts as `other_s` of the second."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def begin(self) -> None:
        """An epoch begins."""
        self.laps = dict.fromkeys(("decide_s", "rollout_s", "learn_s", "publish_s", "other_s"), 0.0)
        self.lap("other_s")

    def lap(self, name: str) -> float:
        """Time since the last lap goes to `name`."""
        now = time.perf_counter()
        elapsed, self._last = now - self._last, now
        self.laps[name] += elapsed
        return elapsed


def metrics_row(
    stage: str,
    epoch: int,
    groups: Sequence[Group],
    pool: Sequence[Prompt],
    figures: dict[str, float],
    budget: dict[str, float],
    weight_version: int,
    laps: dict[str, float],
) -> dict[str, Any]:
    """One line of metrics.jsonl. An epoch without groups has rewards and lengths of 0."""
    rewards = np.concatenate([group.rewards for group in groups]) if groups else np.zeros(0)
    lengths = np.concatenate([group.lengths for group in groups]) if groups else np.zeros(0, np.int64)
    truncated = np.concatenate([group.truncated for group in groups]) if groups else np.zeros(0)
    effective = [float(group.rewards.min() < group.rewards.max()) for group in groups]
    families: dict[str, list[float]] = {}
    for group in groups:
        families.setdefault(pool[group.prompt].family, []).extend(group.rewards.tolist())
    busy_s = laps["rollout_s"]
    return {
        **budget,
        "stage": stage,
        "epoch": epoch,
        "groups": len(groups),
        "rollouts": len(rewards),
        "tokens": int(lengths.sum()),
        "reward_mean": _mean(rewards),
        "effective_share": _mean(effective),
        "response_tokens_mean": _mean(lengths),
        "truncated_share": _mean(truncated),
        "weight_version": weight_version,
        **figures,
        "families": {name: _mean(values) for name, values in sorted(families.items())},
        "time": {**laps, "tokens_per_s": float(lengths.sum() / busy_s) if busy_s else 0.0},
    }


def summary(
    spec: Spec, counters: Counters, evaluations: Sequence[dict], epochs: int, versions: dict[str, str],
    events: Sequence[dict],
) -> dict[str, Any]:  # fmt: skip
    """Content of summary.json. `events`: the journal. Every training rollout was decided there; those of rollout phases
    that a kill cut short are lost, and were sampled again without being spent twice."""
    rl_s = counters.rollout_s
    decided = sum(sum(event["rollouts"]) for event in events if event["event"] == "decided")
    shown = [without_counts(evaluation) for evaluation in evaluations]
    return {
        "status": "finished",
        "name": spec.run.name,
        "seed": spec.run.seed,
        "stages": [stage.stage for stage in spec.recipe],
        "epochs": epochs,
        "updates": counters.updates,
        "updates_skipped": counters.updates_skipped,
        "updates_dropped": counters.updates_dropped,
        "rollouts": {
            "budget": (spec.allocator.budget_rollouts if spec.allocator else None) or 0,
            "budget_tokens": (spec.allocator.budget_tokens if spec.allocator else None) or 0,
            "spent": counters.rollouts,
            "tokens": counters.tokens,
            "lost": decided - counters.rollouts,
        },
        "pretrain_tokens": counters.pretrain_tokens,
        "evaluation": {
            "before": shown[0] if shown else None,
            "after": shown[-1] if shown else None,
            "all": shown,
            "verdict": _verdict(spec, evaluations),
        },
        "speed": {
            "wall_s": counters.wall_s,
            "rollout_s": counters.rollout_s,
            "learn_s": counters.learn_s,
            "publish_s": counters.publish_s,
            "other_s": counters.other_s,
            "pretrain_s": counters.pretrain_s,
            "sft_s": counters.sft_s,
            "evaluate_s": counters.evaluate_s,
            "tokens_per_s": counters.tokens / rl_s if rl_s else 0.0,
        },
        "speculation": {
            "accept_length": 1 + counters.accepted_tokens / counters.verified if counters.verified else None,
            "draft_tokens": counters.draft_tokens,
            "accepted_tokens": counters.accepted_tokens,
            "enabled_steps_fraction": (
                counters.speculating_steps / counters.engine_steps if counters.engine_steps else 0.0
            ),
        },
        "bubbles": {
            "idle_s": counters.idle_s,
            "harvested_s": counters.harvested_s,
            "long_idle_s": counters.long_idle_s,
            "long_harvested_s": counters.long_harvested_s,
            "drafter_steps": counters.drafter_steps,
            "critical_s": counters.drafter_critical_s,
            "training_ended": counters.training_ended,
        },
        "restarts": sum(event["event"] == "restarted" for event in events),
        "workers": workers_report(events),
        "versions": {**versions, "tailrace": version("tailrace"), "python": platform.python_version()},
    }


def workers_report(events: Sequence[dict]) -> dict[str, Any]:
    """What became of the rollout workers and drafters, from the journal; seconds from a loss to the return."""
    lost_s: dict[str, float] = {}
    absences: list[float] = []
    for event in events:
        if event["event"] == "worker_lost":
            lost_s.setdefault(event["worker"], event["time_s"])
        elif event["event"] == "worker_joined" and event["worker"] in lost_s:
            absences.append(round(event["time_s"] - lost_s.pop(event["worker"]), 3))
    kinds = Counter(event["event"] for event in events)
    return {
        "lost": kinds["worker_lost"],
        "joined": kinds["worker_joined"],
        "retired": kinds["worker_retired"],
        "drafters_lost": kinds["drafter_lost"],
        "longest_absence_s": max(absences, default=0.0),
        "stalls": kinds["stalled"],
    }


def without_counts(evaluation: dict) -> dict:
    """The evaluation without its counts by prompt: they are in the journal."""
    return {key: value for key, value in evaluation.items() if key != "counts"}


def _verdict(spec: Spec, evaluations: Sequence[dict]) -> dict[str, Any] | None:
    """The last evaluation against the one that the last rl or parallel stage started from; against the first without
    such a stage or an evaluation before it."""
    if len(evaluations) < 2:
        return None
    learned = [i for i, stage in enumerate(spec.recipe) if isinstance(stage, Budgeted)]
    before = [e for e in evaluations[:-1] if learned and e["stage"] < learned[-1]]
    return verdict((before or evaluations)[-1 if before else 0], evaluations[-1])


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else 0.0
