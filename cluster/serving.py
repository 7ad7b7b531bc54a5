"""Weights into service: which engines get them, when, and what becomes of one that cannot take them."""

import time
from collections.abc import Sequence
from typing import Any

from cluster.bubbles import Bubbles
from cluster.checkpoint import RunDirectory
from cluster.errors import ActorLost
from cluster.placement import Actors
from cluster.spec import Spec
from cluster.updates import Update
from cluster.waits import wait
from cluster.workers import POLL_S, Workers


class Serving:
    """Part of `Driver`."""

    spec: Spec
    run: RunDirectory
    actors: Actors
    workers: Workers
    bubbles: Bubbles
    update: Update | None
    version: int
    _check_stop: Any

    def _serve_current_weights(self) -> None:
        """Publish the learner's weights to every engine that has others; none gets work under another version."""
        self.bubbles.publish()
        workers, deterministic = self.workers, self.spec.run.deterministic
        while True:
            workers.tick()
            self._publish(workers.fleet.outdated(self.version))
            if len(workers.serving) >= (self.spec.rollout.workers.min if deterministic else 1):
                return
            if not workers.hope:
                raise ActorLost("no rollout worker is left")
            time.sleep(POLL_S)
            self._check_stop()

    def _refit(self) -> None:
        """In a rollout phase: the weights that it is sampled with, for workers that have come since it began. While the
        learner works on an update they are not to be had, and the workers wait for the next publish."""
        new = self.workers.fleet.outdated(self.version)
        if not new:
            return
        if self.update is None or not self.update.calls:
            self._publish(new)
        elif not self.workers.serving:
            raise ActorLost("no rollout worker is in service, and the learner's weights have moved on")

    def _publish(self, names: Sequence[str]) -> None:
        """Weights into service on these engines, and the drafter in service on those that are new."""
        if not names:
            return
        workers, limits = self.workers, self.spec.limits
        new = set(workers.fleet.names("stale"))
        failed: dict[int, str] = {}
        if self.version:  # an engine starts with the weights of version 0
            handles, each_s = (
                [workers.handles[name] for name in names],
                min(limits.worker_timeout_s, limits.publish_timeout_s),
            )
            calls = [rank.publish.remote(handles, self.version, each_s) for rank in self.actors.ranks]
            sent = wait(calls, limits.publish_timeout_s, f"weights of version {self.version} to be in service")[0]
            failed = sent.failed
            served = len(names) - len(failed)
            self.run.journal("published", weight_version=self.version, bytes=int(sent.bytes), engines=served)
        for place, why in failed.items():
            workers.lose(names[place], f"weights of version {self.version}: {why}")
        good = [name for place, name in enumerate(names) if place not in failed]
        workers.refitted(good, self.version)
        for name in new.intersection(good):
            self.bubbles.joined(name)
