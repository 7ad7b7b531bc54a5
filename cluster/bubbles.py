"""The drafter's side of a run: bubbles leased to training, candidates published or rolled back, what is reported of it.

A shell around `drafter.leases`, `drafter.buffer` and `drafter.publishing`, which decide. Nothing here is waited for,
except the seconds that `cold_start_s` buys and the few milliseconds in which engines load another drafter. Whatever
goes wrong with a drafter ends its training with a warning, never the run.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from actors.drafter import Session
from cluster import drafter_files
from cluster.drafter_files import Kept
from cluster.drafters import Drafters, Running
from cluster.placement import Actors
from cluster.spec import Spec
from cluster.waits import wait
from cluster.watch import Watch
from cluster.workers import Workers
from drafter.buffer import FeatureBuffer
from drafter.control import SpeculationStats
from drafter.leases import Leases
from drafter.publishing import Candidate, Publisher, Worth, expected_length

TARGET_REFRESH_EPOCHS = 8
"""Epochs between two looks at the target's embedding and output head, which hardly move."""
COLD_START_EPOCHS = 8
"""Updates after which `cold_start_s` is bought in equal parts: fresh features each time."""
LEASE_TIMEOUT_S = 10.0
"""A drafter that has not stopped so long after it had to is given up."""
KEPT = ("_cold_starts", "_ngram_length", "training", "ended")
"""What a checkpoint keeps beside tensors."""


class Bubbles:
    """One per run, also of a run that does not speculate: then it only measures the bubbles."""

    def __init__(
        self, spec: Spec, actors: Actors, workers: Workers, journal: Callable[..., None],
        warn: Callable[[str], None] = lambda text: None, watch: Watch | None = None,
    ) -> None:  # fmt: skip
        """`warn` tells a person what the journal is told too."""
        self._watch = watch or Watch(actors)
        self._spec, self._actors, self._workers, self._journal, self._warn = spec, actors, workers, journal, warn
        self._limit = spec.limits.learn_timeout_s
        self._replacements = spec.limits.worker_restarts
        self.leases = Leases(workers.serving)
        self.buffer = FeatureBuffer(spec.drafter.train.buffer_mib * 2**20)
        self.publisher = Publisher(serving=spec.drafter.source is not None)
        self.training = spec.drafter.trains
        self._worth = Worth()
        self.drafters = Drafters(actors.drafters, LEASE_TIMEOUT_S)
        self._features: list[Any] = []
        self._candidate: tuple[Session, Any] | None = None  # and the reference of its weights
        self._serving: Any = None  # reference of the learned weights in service, in a list
        self._previous: Any = None  # those before, for a rollback
        self._target_epoch, self._cold_starts = -TARGET_REFRESH_EPOCHS, 0
        self.ended: str | None = None
        """Why the drafter is no longer trained."""
        self._ngram_length: float | None = None
        self._figures = _nothing()
        self._off: str | None = None
        self._saver = ThreadPoolExecutor(1, thread_name_prefix="drafter-save")
        if actors.head_dir and self.publisher.version:
            self._serving = [drafter_files.from_head(actors.head_dir)]
        self.step_tokens = 1.0
        """Tokens that a response got per step of an engine, in the newest epoch that was reported."""

    # A rollout phase.

    def tick(self, busy: set[str]) -> None:
        """The phase goes on; `busy` are the workers that still have something to generate."""
        now, serving = time.time(), set(self._workers.serving)
        self.drafters.stop(self.leases.members(serving, now))
        self.drafters.stop(self.leases.work(sorted(busy & serving), now))
        for worker in serving - busy:
            self.leases.idle(worker, now)
        self._take_sessions(0.0)
        if self.training and self._has_features(0.0):
            for worker in self.leases.grant(now):
                self._start(worker)

    def joined(self, worker: str) -> None:
        """A rollout worker has come into service, with an engine that has loaded the drafter of the run's start."""
        if self._serving:
            self._load([worker], self._serving, [])
        if worker in self.drafters.alive:
            self.drafters.alive[worker].pin.remote(self._actors.cores[worker])
        elif self.training and worker not in self.drafters.beside:
            self._start_drafter(worker)

    def over(self) -> None:
        """The phase is over: every lease ends; nobody waits for it."""
        self.drafters.stop(self.leases.phase_over(time.time()))
        self.drafters.phase += 1

    # Between phases.

    def learned(self, epoch: int) -> None:
        """An update has been made: its features are asked for, not waited for; the first ones buy the cold start."""
        if not self.training:
            return
        for worker, fault in self.drafters.arrived():
            if fault:
                self._lose(worker, fault)
                continue
            self.leases.found(worker)
            self._target_epoch = -TARGET_REFRESH_EPOCHS  # it has the target of the run's start
        self._features = [rank.take_features.remote() for rank in self._actors.ranks]
        if epoch - self._target_epoch >= TARGET_REFRESH_EPOCHS:
            self._target_epoch = epoch
            calls = [rank.target_tensors.remote() for rank in self._actors.ranks]
            refs = wait(calls, self._limit, "the target's embedding for the drafter")[0]
            for drafter in self.drafters.alive.values():
                drafter.set_target.remote(refs)
        seconds = self._spec.drafter.train.cold_start_s / COLD_START_EPOCHS
        if seconds and self._cold_starts < COLD_START_EPOCHS:
            self._cold_starts += 1
            self._buy(seconds)

    def publish(self) -> None:
        """At a safe point, no engine has work: put a better drafter into service."""
        self._take_sessions(0.0)
        found, self._candidate = self._candidate, None
        if found is None:
            return
        session, ref = found
        judged = Candidate(session.survival, session.serving_survival)
        if self.publisher.wants(judged, self._ngram_length):
            self._previous, self._serving = self._serving, [ref]
            version = self.publisher.published()
            self._load(self._workers.serving, self._serving, list(session.survival))
            rival = expected_length(judged.serving_survival) if judged.serving_survival else self._ngram_length
            self._journal(
                "drafter_published", version=version, accept_length=judged.accept_length, serving_accept_length=rival
            )

    def forget(self) -> None:
        """What was speculated since the last report is of another kind, an evaluation's: it counts for nothing."""
        self._watch.forget()
        self._take_sessions(0.0)
        self.leases.take_stats()

    def report(self) -> dict[str, Any]:
        """The epoch's figures for metrics.jsonl; they start afresh. Here a dropped acceptance is rolled back."""
        stats, off = self._speculated()
        self.step_tokens = stats.step_tokens
        self._take_sessions(0.0)
        bubbles, figures = self.leases.take_stats(), self._figures
        self._figures = _nothing()
        if off and not self._off:
            self._off = off
            self._journal("speculation_off", why=off)
            self._warn(f"speculation is off: {off}")
        self._judge(stats)
        if self.training and not self._worth.epoch(figures["drafter_steps"] - figures["bought_steps"]):
            self._end_training("the bubbles of this run are too small to train a drafter in")
        return {
            "speculation": {
                **stats.row(),
                "drafter_version": self.publisher.version,
                "off": off,
                "is_off": int(bool(off)),
            },
            "bubbles": {**bubbles.row(self._workers.serving), "training_ended": self.ended, **figures},
        }

    def _speculated(self) -> tuple[SpeculationStats, str | None]:
        """What the engines did since they were last asked, and why one of them has switched speculation off."""
        stats, off = SpeculationStats(), None
        for figures in self._watch.workers().values():
            stats.add(figures.speculation)
            off = off or figures.speculation_off
        return stats, off

    # Checkpoints.

    def save(self, directory: Path) -> Future[None]:
        """Into a checkpoint, in the background: the trainable state, what is in service, the feature buffer and the
        decisions so far."""
        facts = {name: getattr(self, name) for name in KEPT} | {"leases": self.drafters.leases}
        state, version = self.drafters.newest_state(), self.publisher.version
        kept = Kept(state, self._serving, version, list(self.buffer.blobs), facts)
        return self._saver.submit(drafter_files.save, directory, kept)

    def load(self, directory: Path) -> None:
        """Continue from what `save` wrote: the engines get the drafter that was in service."""
        kept = drafter_files.load(directory)
        self.drafters.leases = kept.facts.get("leases", 0)
        self.drafters.continue_from(kept.state)
        self.buffer.blobs = kept.blobs
        for name in KEPT:
            setattr(self, name, kept.facts.get(name, getattr(self, name)))
        if kept.serving and kept.version != self.publisher.version:
            self._serving, self.publisher.version = kept.serving, kept.version
            self._load(self._workers.serving, kept.serving, [])

    def export(self, path: Path) -> None:
        """The drafter in service, in the format that vLLM loads."""
        if self._serving and self._actors.head_dir:
            drafter_files.export(path, self._actors.head_dir, self._serving)

    # Inside.

    def _load(self, workers: Sequence[str], refs: Any, survival: list[float]) -> None:
        began = time.time()
        self._workers.ask("load_drafter", dict.fromkeys(workers, (refs, survival)))
        self._figures["publish_s"] += time.time() - began

    def _judge(self, stats: SpeculationStats) -> None:
        """Live acceptance decides about the newest publish; while n-grams serve, it is what a drafter must beat."""
        if not self.publisher.version:
            self._ngram_length = stats.step_tokens if stats.request_steps else self._ngram_length
        elif self.publisher.drops(stats.kept[1], stats.tried[1]) and self._previous:
            self._serving, self._previous = self._previous, None
            self._load(self._workers.serving, self._serving, [])
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

    def _start(self, worker: str, bought: bool = False) -> None:
        if self._spec.drafter.train.sleep:
            self._workers.handles[worker].sleep.remote()
        blobs = [blob.handle for blob in self.buffer.blobs]
        lease = self.drafters.start(worker, blobs, self._serving, bought)
        self._journal("leased", worker=worker, lease=lease, epoch=self.buffer.newest)

    def _take_sessions(self, timeout_s: float) -> None:
        """Take in sessions that have ended; give up drafters that died or do not stop."""
        for worker, running, session in self.drafters.take(timeout_s):
            if isinstance(session, str):
                self._lose(worker, session)
                continue
            if not running.bought:
                self.leases.returned(worker, session.ended, session.trained_s)
            self._take(worker, running, session)
        for worker in self.leases.overdue(time.time(), LEASE_TIMEOUT_S):
            self._lose(worker, self.drafters.give_up(worker))

    def _take(self, worker: str, running: Running, session: Session) -> None:
        figures = self._figures
        figures["drafter_steps"] += session.micro_steps
        figures["bought_steps"] += session.micro_steps if running.bought else 0
        figures["drafter_tokens"] += session.tokens
        figures["resident_by_worker"][worker] = session.resident_bytes
        figures["longest_step_s"] = max(figures["longest_step_s"], session.longest_step_s)
        if session.micro_steps:
            figures["drafter_loss"] = session.loss
        best = self._candidate[0].accept_length if self._candidate else None
        if session.accept_length is not None and (best is None or session.accept_length > best):
            self._candidate = session, running.candidate
            figures["heldout_accept_length"] = session.accept_length
        self._journal(
            "lease_returned", worker=worker, lease=running.lease, micro_steps=session.micro_steps,
            trained_s=round(session.trained_s, 4), accept_length=session.accept_length,
        )  # fmt: skip

    def _lose(self, worker: str, why: str) -> None:
        self.leases.lose(worker, time.time())
        self._journal("drafter_lost", worker=worker, why=why)
        self._replacements -= 1
        if self._replacements < 0 and not self.drafters.beside:
            self._end_training("every drafter is lost")
        elif self._replacements >= 0 and worker in self._workers.serving:  # otherwise when it comes back
            self._start_drafter(worker)

    def _start_drafter(self, worker: str) -> None:
        """Beside this rollout worker; it trains when the target has been given to it."""
        handle = self._actors.crew.start_drafter(worker)
        handle.pin.remote(self._actors.cores[worker])
        self.drafters.start_beside(worker, handle)

    def _end_training(self, why: str) -> None:
        self.training, self.ended = False, why
        self.drafters.stop(self.drafters.running)
        self._journal("drafter_training_ended", why=why)
        self._warn(f"the drafter is no longer trained: {why}")

    def _buy(self, seconds: float) -> None:
        """Train on the critical path, on every worker at once."""
        began = time.time()
        self._take_sessions(LEASE_TIMEOUT_S)
        if self._has_features(self._limit):
            for worker in self._workers.handles.keys() & self.drafters.alive.keys() - self.drafters.running:
                self._start(worker, bought=True)
            time.sleep(seconds)
            self.drafters.stop(self.drafters.running)
            self._take_sessions(LEASE_TIMEOUT_S)
            for worker in self.drafters.running:
                self._lose(worker, self.drafters.give_up(worker))
        self.drafters.phase += 1
        self._figures["critical_s"] += time.time() - began


def _nothing() -> dict[str, Any]:
    return {
        "drafter_steps": 0,
        "bought_steps": 0,
        "drafter_tokens": 0,
        "drafter_loss": None,
        "longest_step_s": 0.0,
        "heldout_accept_length": None,
        "critical_s": 0.0,
        "publish_s": 0.0,
        "resident_by_worker": {},
    }
