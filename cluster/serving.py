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
        """Publish the learner's weights to every engine that has others; none gets work under another version. Of a
        deterministic run all workers must be there, because who samples what depends on it."""
        self.bubbles.publish()
        needed = self.spec.rollout.workers.min if self.spec.run.deterministic else 1
        while True:
            self.workers.tick()
            self.workers.release(())  # nothing is out between two phases
            self._refit()
            if len(self.workers.serving) >= needed:
                return
            if not self.workers.hope:
                raise ActorLost("no rollout worker is left")
            time.sleep(POLL_S)
            self._check_stop()

    def _refit(self) -> None:
        """The current weights for workers that run and have others. While the learner works on an update they are not
        to be had: a worker that comes meanwhile waits for the next publish, or, where it cannot be done without, the
        run goes back to its checkpoint."""
        outdated = self.workers.fleet.outdated(self.version)
        if self.update is None or not self.update.calls:
            self._publish(outdated)
        elif outdated and (self.spec.run.deterministic or not self.workers.serving):
            raise ActorLost(f"{', '.join(outdated)} came back, and the learner's weights have moved on")

    def _publish(self, names: Sequence[str]) -> None:
        """Weights into service on these engines, and the drafter in service on those that are new."""
        if not names:
            return
        workers, limits = self.workers, self.spec.limits
        new = set(workers.fleet.names("stale"))
        failed: dict[int, str] = {}
        if self.version:  # an engine starts with the weights of version 0
            handles = [workers.handles[name] for name in names]
            each_s = min(limits.worker_timeout_s, limits.publish_timeout_s / 4)
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
