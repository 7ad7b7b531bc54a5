"""The drafter's side of a run: bubbles leased to training, candidates published or rolled back, what is reported of it.

A shell around `drafter.leases`, `drafter.buffer` and `drafter.publishing`, which decide. Nothing here is waited for,
except the seconds that `cold_start_s` buys and the few milliseconds in which engines load another drafter. Whatever
goes wrong with a drafter ends its training with a warning, never the run.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actors.drafter import Session
from cluster.checkpoint import load_state, save_state
from cluster.placement import Actors, wait
from cluster.spec import Spec
from drafter.buffer import Blob, FeatureBuffer
from drafter.control import SpeculationStats
from drafter.leases import Leases
from drafter.publishing import Candidate, Publisher, Worth

TARGET_REFRESH_EPOCHS = 8
"""Epochs between two looks at the target's embedding and output head, which hardly move."""
COLD_START_EPOCHS = 5
"""Updates after which `cold_start_s` is bought in equal parts: fresh features each time."""
LEASE_TIMEOUT_S = 10.0
"""A drafter that has not stopped so long after it had to is given up."""


@dataclass
class _Running:
    number: int
    call: Any


class Bubbles:
    """One per run, also of a run that does not speculate: then it only measures the bubbles."""

    def __init__(self, spec: Spec, actors: Actors, journal: Callable[..., None]) -> None:
        self._spec, self._actors, self._journal = spec, actors, journal
        self._limit = spec.limits.learn_timeout_s
        self.leases = Leases(list(actors.workers))
        self.buffer = FeatureBuffer(spec.drafter.train.buffer_mib * 2**20)
        self.publisher = Publisher(serving=spec.drafter.source is not None)
        self.training = spec.drafter.trains
        self._worth = Worth()
        self._running: dict[str, _Running] = {}
        self._numbers = 0
        self._features: list[Any] = []
        # What each drafter's newest session left and how many micro-steps it took since the states were last averaged.
        self._states: dict[str, tuple[Any, float]] = {}
        self._candidate: Session | None = None
        self._serving: Any = None  # reference of the published weights in service, in a list
        self._previous: Any = None  # those before, for a rollback
        self._target_epoch = self._cold_starts = 0
        self._ngram_length: float | None = None
        self._figures = _nothing()

    # A rollout phase.

    def tick(self, busy: set[str]) -> None:
        """The phase goes on; `busy` are the workers that still have something to generate."""
        now = time.time()
        self._stop(self.leases.work(sorted(busy), now))
        for worker in self._actors.workers.keys() - busy:
            self.leases.idle(worker, now)
        self._take_sessions(0.0)
        if self.training and self._has_features(0.0):
            for worker in self.leases.grant(now):
                self._start(worker)

    def over(self) -> None:
        """The phase is over: every lease ends; nobody waits for it."""
        self._stop(self.leases.phase_over(time.time()))

    # Between phases.

    def learned(self, epoch: int) -> None:
        """An update has been made: its features are asked for, not waited for; the first ones buy the cold start."""
        if not self.training:
            return
        self._features = [rank.take_features.remote() for rank in self._actors.ranks]
        if epoch - self._target_epoch >= TARGET_REFRESH_EPOCHS:
            self._target_epoch = epoch
            calls = [rank.target_tensors.remote() for rank in self._actors.ranks]
            refs = wait(calls, self._limit, "the target's embedding for the drafter")[0]
            for drafter in self._drafters().values():
                drafter.set_target.remote(refs)
        seconds = self._spec.drafter.train.cold_start_s / COLD_START_EPOCHS
        if seconds and self._cold_starts < COLD_START_EPOCHS:
            self._cold_starts += 1
            self._buy(seconds)

    def publish(self) -> None:
        """At a safe point, no engine has work: put a better drafter into service, or the one before if live acceptance
        has dropped."""
        self._take_sessions(0.0)
        candidate, self._candidate = self._candidate, None
        if candidate is None or not candidate.survival:
            return
        judged = Candidate(candidate.survival, candidate.serving_survival)
        if self.publisher.wants(judged, self._ngram_length):
            self._previous, self._serving = self._serving, candidate.candidate
            version = self.publisher.published()
            self._load(candidate.candidate, list(candidate.survival))
            self._journal(
                "drafter_published", version=version, accept_length=judged.accept_length,
                serving_accept_length=1 + sum(judged.serving_survival) if judged.serving_survival else
                self._ngram_length,
            )  # fmt: skip

    def report(self) -> dict[str, Any]:
        """The epoch's figures for metrics.jsonl; they start afresh. Here a dropped acceptance is rolled back."""
        stats, off = SpeculationStats(), None
        if self._spec.drafter.method != "none":
            calls = [worker.speculation.remote() for worker in self._actors.workers.values()]
            for each, reason in wait(calls, self._limit, "what the engines speculated"):
                stats.add(each)
                off = off or reason
        bubbles, figures = self.leases.take_stats(), self._figures
        self._figures = _nothing()
        self._judge(stats)
        if self.training and self.publisher.version and not self._worth.epoch(figures["drafter_steps"]):
            self._end_training("the bubbles of this run are too small to train a drafter in")
        return {
            "speculation": {**stats.row(), "drafter_version": self.publisher.version, "off": off},
            "bubbles": {
                "idle_s": bubbles.idle_s,
                "harvested_s": bubbles.harvested_s,
                "long_idle_s": bubbles.counted_idle_s,
                "long_harvested_s": bubbles.counted_harvested_s,
                "late_s": bubbles.late_s,
                "give_back_s": [round(s, 4) for s in bubbles.give_back_s],
                "stretches": [[w, round(a, 3), round(b, 3), round(h, 3)] for w, a, b, h in bubbles.stretches],
                **figures,
            },
        }

    # Checkpoints.

    def save(self, directory: Path) -> None:
        """The trainable state, what is in service and the feature buffer; the target's frozen tensors are elsewhere."""
        import ray

        if not self._spec.drafter.learned:
            return
        if self._states:
            state, _ = max(self._states.values(), key=lambda item: item[1])
            save_state(directory / "drafter.safetensors", ray.get(state))
        if self._serving:
            weights = {name: array for name, _, array in ray.get(self._serving[0])}
            save_state(directory / "drafter-serving.safetensors", {**weights, "version": self.publisher.version})
        for i, blob in enumerate(self.buffer.blobs):
            facts = {"epoch": blob.epoch, "long": blob.long, "sequences": blob.sequences, "tokens": blob.tokens}
            save_state(directory / f"features-{i}.safetensors", {**ray.get(blob.handle), **facts})

    def load(self, directory: Path) -> None:
        """Continue from what `save` wrote: the engines get the drafter that was in service."""
        import ray

        if (file := directory / "drafter.safetensors").is_file():
            self._states = {"checkpoint": (ray.put(load_state(file)), 1.0)}
        if (file := directory / "drafter-serving.safetensors").is_file():
            weights = load_state(file)
            self.publisher.version = weights.pop("version") - 1
            self._serving = [ray.put([(name, str(array.dtype), array) for name, array in weights.items()])]
            self.publisher.published()
            self._load(self._serving, [])
        for file in sorted(directory.glob("features-*.safetensors")):
            columns = load_state(file)
            epoch, long, sequences, tokens = (columns.pop(k) for k in ("epoch", "long", "sequences", "tokens"))
            size = sum(array.nbytes for array in columns.values())
            self.buffer.blobs.append(Blob(ray.put(columns), epoch, long, sequences, tokens, size))

    def export(self, path: Path) -> None:
        """The drafter in service, in the format that vLLM loads."""
        import ray
        import torch

        from drafter.files import LAYER, load_head, save_head

        if not self._serving or self._actors.head_dir is None:
            return
        head = load_head(self._actors.head_dir)
        prefix = LAYER[head.config.form]
        arrays = {
            name.replace(prefix, "midlayer."): torch.from_numpy(np.array(a)) for name, _, a in ray.get(self._serving[0])
        }
        head.load_state_dict({name: tensor for name, tensor in arrays.items() if name not in ("d2t", "t2d")})
        save_head(head, path)

    # Inside.

    def _drafters(self) -> dict[str, Any]:
        return {name: d for name, d in self._actors.drafters.items() if name not in self.leases.lost}

    def _load(self, refs: Any, survival: list[float]) -> None:
        calls = [worker.load_drafter.remote(refs, survival) for worker in self._actors.workers.values()]
        wait(calls, self._spec.limits.publish_timeout_s, "the drafter to be in service")

    def _judge(self, stats: SpeculationStats) -> None:
        """Live acceptance decides about the newest publish; while n-grams serve, it is what a drafter must beat."""
        if not self.publisher.version:
            self._ngram_length = stats.accept_length or self._ngram_length
        elif self.publisher.drops(stats.kept[1], stats.tried[1]) and self._previous:
            self._serving, self._previous = self._previous, None
            self._load(self._serving, [])
            self._journal("drafter_rolled_back", version=self.publisher.published())

    def _has_features(self, timeout_s: float) -> bool:
        """Take in the newest features if they are there; whether there are any at all."""
        import ray

        if self._features:
            ready, missing = ray.wait(self._features, num_returns=len(self._features), timeout=timeout_s)
            if not missing:
                self.buffer.add([blob for blobs in wait(ready, self._limit, "features") for blob in blobs])
                self._features = []
        return bool(self.buffer.blobs)

    def _start(self, worker: str) -> None:
        self._numbers += 1
        blobs = [blob.handle for blob in self.buffer.blobs]
        call = self._actors.drafters[worker].train.remote(
            self._numbers, list(self._states.values()), blobs, self._serving
        )
        self._running[worker] = _Running(self._numbers, call)
        self._journal("leased", worker=worker, lease=self._numbers, epoch=self.buffer.newest)

    def _stop(self, workers: list[str]) -> None:
        for worker in workers:
            if worker in self._running:
                self._actors.drafters[worker].stop.remote(self._running[worker].number)

    def _take_sessions(self, timeout_s: float) -> None:
        """Take in sessions that have ended; give up drafters that died or do not stop."""
        import ray

        calls = {running.call: worker for worker, running in self._running.items()}
        ready = ray.wait(list(calls), num_returns=len(calls), timeout=timeout_s)[0] if calls else []
        for call in ready:
            worker = calls[call]
            lease = self._running.pop(worker).number
            try:
                session: Session = ray.get(call)
            except ray.exceptions.RayError as error:
                self._lose(worker, str(error).strip().splitlines()[-1])
                continue
            self.leases.returned(worker, session.ended, session.trained_s)
            self._take(worker, lease, session)
        for worker in self.leases.overdue(time.time(), LEASE_TIMEOUT_S):
            self._running.pop(worker, None)
            ray.kill(self._actors.drafters[worker])
            self._lose(worker, f"did not stop within {LEASE_TIMEOUT_S:g} s")

    def _take(self, worker: str, lease: int, session: Session) -> None:
        figures = self._figures
        figures["drafter_steps"] += session.micro_steps
        figures["drafter_tokens"] += session.tokens
        figures["longest_step_s"] = max(figures["longest_step_s"], session.longest_step_s)
        if session.micro_steps:
            # Drafters that trained in the same epoch are replicas; they are averaged when the next session begins.
            if not figures["sessions"]:
                self._states = {}
            _, before = self._states.get(worker, (None, 0.0))
            self._states[worker] = (session.state[0], before + session.micro_steps)
            figures["sessions"] += 1
            figures["drafter_loss"] = session.loss
        best = self._candidate.accept_length if self._candidate else None
        if session.accept_length is not None and (best is None or session.accept_length > best):
            self._candidate = session
            figures["heldout_accept_length"] = session.accept_length
        self._journal(
            "lease_returned", worker=worker, lease=lease, micro_steps=session.micro_steps,
            trained_s=round(session.trained_s, 4), accept_length=session.accept_length,
        )  # fmt: skip

    def _lose(self, worker: str, why: str) -> None:
        self.leases.lose(worker, time.time())
        self._journal("drafter_lost", worker=worker, why=why)
        if not self._drafters():
            self._end_training("every drafter is lost")

    def _end_training(self, why: str) -> None:
        self.training = False
        self.over()
        self._journal("drafter_training_ended", why=why)

    def _buy(self, seconds: float) -> None:
        """Train on the critical path, on every worker at once."""
        began = time.time()
        self._take_sessions(LEASE_TIMEOUT_S)
        self._has_features(self._limit)
        for worker in self._drafters():
            self._start(worker)
        time.sleep(seconds)
        self._stop(list(self._running))
        self._take_sessions(self._limit)
        self._figures["critical_s"] += time.time() - began


def _nothing() -> dict[str, Any]:
    return {
        "sessions": 0,
        "drafter_steps": 0,
        "drafter_tokens": 0,
        "drafter_loss": None,
        "longest_step_s": 0.0,
        "heldout_accept_length": None,
        "critical_s": 0.0,
    }
