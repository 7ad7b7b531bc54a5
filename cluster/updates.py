"""An epoch's update as the driver hands it to the learner and takes it back, perhaps an epoch later."""

from dataclasses import dataclass
from typing import Any

from cluster.bubbles import Bubbles
from cluster.checkpoint import RunDirectory
from cluster.display import Display
from cluster.errors import RunFailed
from cluster.placement import Actors
from cluster.spec import Spec
from cluster.summary import Counters, Stopwatch
from cluster.waits import wait
from cluster.workers import Workers
from trainer.types import Group


@dataclass
class Update:
    """An epoch whose rollouts the learner works on."""

    epoch: int
    groups: list[Group]
    batch: list[Group]
    """What is learned from: the epoch's groups, those of held epochs beside them, or none."""
    budget: dict[str, Any]
    laps: dict[str, float]
    method: str
    calls: list[Any]


class Updates:
    """Part of `Driver`."""

    spec: Spec
    run: RunDirectory
    actors: Actors
    display: Display
    bubbles: Bubbles
    counters: Counters
    clock: Stopwatch
    workers: Workers
    update: Update | None
    version: int
    stage_index: int
    _learner: Any
    _record: Any
    _has_sft_half: Any
    _update_call: Any

    def _take_reference(self) -> None:
        """The policy that the stage begins with is what divergences are measured from, also after a resume."""
        if self.spec.learner.objective.kl == "none":
            return
        name = f"reference-{self.stage_index}"
        if not (self.run.models / name).is_dir():
            self.run.add_model(name, lambda directory: self._learner("export", str(directory)))
        self._learner("refer_to", str(self.run.models / name))

    def _begin_update(self, epoch: int, groups: list[Group], batch: list[Group] | None, budget: dict) -> Update:
        """Have the learner work on a batch; on an empty one it has nothing to do but the SFT half of a parallel stage.
        None: the epoch's groups are held for a later batch, and nothing is learned."""
        calls = []
        method, *args = self._update_call()
        if batch or (batch is not None and self._has_sft_half()):
            import ray

            if self.spec.rollout.sleep:
                self.workers.ask("sleep", dict.fromkeys(self.workers.serving, ()))
            stored = ray.put(batch)
            calls = [getattr(rank, method).remote(stored, *args) for rank in self.actors.ranks]
        return Update(epoch, groups, batch or [], budget, self.clock.laps, method, calls)

    def _finish_update(self) -> None:
        """Wait for the learner; with that the batch's epoch is over. Without any difference in reward, or with a loss
        that is not finite, the weights stay as they are."""
        done, self.update = self.update, None
        if done is None:
            return
        figures: dict[str, float] = {"updates": 0, "dropped": 0}
        if done.calls:
            figures = wait(done.calls, self.spec.limits.learn_timeout_s, f"learner: {done.method}")[0]
        figures["skipped"] = int(bool(done.batch) and not figures["updates"] and not figures["dropped"])
        self.counters.count_update(figures)
        if figures["updates"]:
            self.version += 1
            self.bubbles.learned(done.epoch)
        self.clock.lap("learn_s")
        self._record(done, figures)
        if figures["dropped"]:
            self._report_dropped(done)

    def _report_dropped(self, update: Update) -> None:
        path = self.run.save_dropped(update.epoch, update.batch)
        self.run.journal("update_dropped", epoch=update.epoch, batch=str(path.relative_to(self.run.path)))
        self.display.note(
            f"epoch {update.epoch}: the loss was not finite, the step was dropped; its batch is in {path}"
        )
        self._check_dropped(f"the last batch is in {path}")

    def _check_dropped(self, where: str) -> None:
        dropped, limit = self.counters.updates_dropped, self.spec.limits.dropped_updates
        if dropped > limit:
            raise RunFailed(
                f"{dropped} optimizer steps had a loss or gradient that is not finite, and limits.dropped_updates = "
                f"{limit}; {where}"
            )
