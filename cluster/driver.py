"""The driver: carries out a spec, stage by stage and epoch by epoch, and leaves a run directory that can be resumed.

An epoch is decide, roll out, learn, publish, record; `Driver._epoch` reads in that order. What makes it survive a kill
at any moment: decisions are pure functions of the checkpointed state, the rollouts of every finished rollout phase are
on disk, and a learner step is a pure function of both. So `resume` goes back to the newest checkpoint and repeats the
epochs since then from their stored rollouts; only a rollout phase that had not finished is sampled again, with the same
ids and seeds.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from actors.requests import GroupRequest, Sampling
from allocator.allocator import Allocation
from cluster.allocation import opening
from cluster.bubbles import Bubbles
from cluster.checkpoint import RunDirectory, load_state, save_state, write_atomically
from cluster.display import Display
from cluster.errors import RunFailed
from cluster.lengths import Lengths
from cluster.metrics import Metrics
from cluster.placement import Actors
from cluster.report import leave_report
from cluster.rollouts import Rollouts
from cluster.serving import Serving
from cluster.sinks import Sinks
from cluster.spec import Spec
from cluster.stages import RecipeStages
from cluster.summary import Counters, Stopwatch, metrics_row, summary
from cluster.updates import Update, Updates
from cluster.waits import on_stall, wait
from cluster.watch import Watch
from cluster.workers import Workers
from trainer.spec import EvaluateStage
from trainer.stages import Budgeted, MergeStage, Supervised
from trainer.tasks import Pools
from trainer.types import Group, merged


class Driver(RecipeStages, Updates, Serving):
    def __init__(
        self, spec: Spec, run: RunDirectory, pools: Pools, vocabulary: int, actors: Actors, metrics: Metrics,
        sinks: Sinks, display: Display, stop_requested: Callable[[], bool], began: float,
    ) -> None:  # fmt: skip
        """`vocabulary`: tokens that the model knows. `began`: on the clock of time.perf_counter."""
        self.spec, self.run, self.pools, self.actors = spec, run, pools, actors
        self.metrics, self.sinks, self.display, self.stop_requested = metrics, sinks, display, stop_requested
        self.lengths = Lengths(pools)
        self.workers = Workers(spec, actors, run.journal, display.note)
        metrics.follow(self.workers.fleet)
        self.watch = Watch(actors, metrics, every_epoch=spec.drafter.method != "none")
        self.bubbles = Bubbles(spec, actors, self.workers, run.journal, display.note, self.watch)
        self.rollouts = Rollouts(
            spec, self.workers, vocabulary, self.lengths, self.bubbles, run.journal, self._refit, self._meanwhile
        )
        self.counters = Counters()
        self.version = 0  # of the learner's weights
        self.stage_index = 0
        self.stage_done = 0  # units (steps or epochs) of the current stage
        self.begun = False  # the current stage has the weights and the optimizer that it starts from
        self.epoch = 0  # RL epochs decided so far, over all stages
        self.evaluations: list[dict] = []
        self.journaled: set[int] = set()  # epochs whose rollouts the journal already holds, after a resume
        self.update: Update | None = None  # under way
        self.held: list[Group] = []  # sampled under the learner's weights, and waiting for the rest of a batch
        self.clock = Stopwatch()
        self.currency = spec.allocator.currency if spec.allocator else "rollouts"
        self._wall = began
        on_stall.set(self._stalled)

    # Stages.

    def run_stages(self) -> dict[str, Any]:
        self._restore()
        for index in range(self.stage_index, len(self.spec.recipe)):
            stage = self.spec.recipe[index]
            self.metrics.stage(stage.stage)
            self.run.journal("stage_started", index=index, stage=stage.stage, done=self.stage_done)
            self._begin(stage)
            if isinstance(stage, Supervised):
                self.workers.pause()
                self._teach(stage)
            elif isinstance(stage, Budgeted):
                self._reinforce(stage)
            elif isinstance(stage, MergeStage):
                self._finish_stage()
            elif isinstance(stage, EvaluateStage):
                self._evaluate()
        self._learner("export", str(self.run.models / "policy"))
        self.bubbles.export(self.run.models / "drafter")
        self.run.journal("run_finished", epochs=self.epoch, spent_rollouts=self.counters.rollouts)
        self._count_wall()
        result = summary(
            self.spec, self.counters, self.evaluations, self.epoch, self.actors.versions, self.run.events()
        )
        write_atomically(self.run.path / "summary.json", json.dumps(result, indent=1))
        leave_report(self.run)
        return result

    def _reinforce(self, stage: Budgeted) -> None:
        self._take_reference()
        self.display.stage(stage.stage, stage.epochs, "epochs", self.stage_done)
        self.clock = Stopwatch()
        exhausted = False
        while self.stage_done < stage.epochs and not exhausted:
            self._check_stop()
            exhausted = self._epoch(last=self.stage_done + 1 == stage.epochs)
            self.stage_done += 1
            over = exhausted or self.stage_done == stage.epochs
            due = self.stage_done % self.spec.run.checkpoint_every_epochs == 0
            if not over and (due or self.workers.take_notice()):
                self._checkpoint()
        self._finish_update()
        self._finish_stage()

    def _finish_stage(self) -> None:
        """The position moves behind the stage before the checkpoint, so that a resumed run does not repeat it."""
        self.run.journal("stage_finished", index=self.stage_index)
        self.stage_index, self.stage_done, self.begun = self.stage_index + 1, 0, False
        self._checkpoint()

    # One epoch.

    def _epoch(self, last: bool) -> bool:
        """One decision and what follows from it; true when the budget is spent. `last`: of its stage."""
        clock, epoch = self.clock, self.epoch
        clock.begin()
        allocation = self._allocator("decide", epoch)
        prompts, sizes = allocation.prompts.tolist(), allocation.rollouts.tolist()
        clock.lap("decide_s")

        stored = self.run.load_groups(epoch)
        if stored is None:
            self._serve_current_weights()
            clock.lap("publish_s")
            groups = self._roll_out(allocation)
            for group, believed in zip(groups, allocation.believed.tolist(), strict=True):
                group.believed = believed
            clock.lap("rollout_s")
            decision = {"prompts": prompts, "rollouts": sizes}
            self.run.save_groups(epoch, groups, {**decision, "rollout_s": clock.laps["rollout_s"]})
        else:
            groups, extra = stored
            if [extra["prompts"], extra["rollouts"]] != [prompts, sizes]:
                raise RunFailed(
                    f"{self.run.path}: epoch {epoch} was decided differently before; the run cannot be resumed"
                )
            clock.laps["rollout_s"] = extra["rollout_s"]
        successes = np.array([group.rewards.sum() for group in groups])
        failures = np.array([len(group) for group in groups]) - successes
        tokens = np.array([int(group.lengths.sum()) for group in groups], np.int64)
        if epoch not in self.journaled:
            figures = {"rollouts": sum(sizes), "reward_sums": successes.tolist(), "tokens": tokens.tolist()}
            self.run.journal("rolled_out", epoch=epoch, **figures)
        budget, holds, exhausted = self._allocator("observe", epoch, allocation.prompts, successes, failures, tokens)
        self.counters.count(groups)
        self.lengths.observe("train", groups)
        clock.lap("decide_s")

        if self.spec.learner.stale_epochs:  # sampling went beside the update of the epoch before
            self._finish_update()
            self._serve_current_weights()  # while no update is under way
            clock.lap("publish_s")
        self.held += groups
        self.update = self._begin_update(epoch, groups, None if holds else self._batch(), budget)
        self.watch.ask(last or exhausted)
        self.epoch += 1
        if not self.spec.learner.stale_epochs:
            self._finish_update()
        return exhausted

    def _batch(self) -> list[Group]:
        """The groups for an update. One that was filled over several epochs has one group per prompt, and only such as
        teach something: that is what it waited for."""
        held, self.held = self.held, []
        if len({group.epoch for group in held}) < 2:
            return held
        return [group for group in merged(held) if np.ptp(group.rewards)]

    def _roll_out(self, allocation: Allocation) -> list[Group]:
        epoch, prompts, sizes = allocation.epoch, allocation.prompts.tolist(), allocation.rollouts.tolist()
        ids = [self.pools.train[p].id for p in prompts]
        self.run.journal(
            "decided", epoch=epoch, weight_version=self.version, prompts=ids, rollouts=sizes,
            believed=allocation.believed.round(4).tolist(), price=allocation.price,
        )  # fmt: skip
        requests = [
            GroupRequest(f"{epoch}/{pid}", epoch, p, n, self.version)
            for pid, p, n in zip(ids, prompts, sizes, strict=True)
        ]
        rollout = self.spec.rollout
        sampling = Sampling("train", rollout.max_response_tokens, rollout.temperature)
        return self.rollouts.sample(requests, sampling)

    def _record(self, update: Update, figures: dict) -> None:
        """The epoch is over: its row of metrics, the display, the counters."""
        self.counters.add_laps(update.laps)
        stage = self.spec.recipe[self.stage_index].stage
        row = metrics_row(
            stage, update.epoch, update.groups, self.pools.train, figures, update.budget, self.version, update.laps
        )
        row |= self.bubbles.report()
        row["actors"] = self.watch.row()
        self.counters.add_report(row)
        self.run.add_metrics(row)
        self.metrics.observe_epoch(row)
        self.sinks.epoch(row)
        self.display.advance(
            self.stage_done + 1, epoch=update.epoch, spent=row[f"spent_{self.currency}"], reward=row["reward_mean"],
            effective_share=row["effective_share"], tokens_per_s=row["time"]["tokens_per_s"],
        )  # fmt: skip

    def _stalled(self, what: str, waited_s: float, limit_s: float) -> None:
        """Half of a limit is over: say who is waited for, while there is time to look."""
        self.run.journal("stalled", what=what, waited_s=round(waited_s, 1), limit_s=limit_s)
        self.metrics.stalled()
        self.display.note(f"waits for {what}: {waited_s:.0f} s so far, {limit_s:g} s at most")

    # Checkpoints.

    def _checkpoint(self) -> None:
        self._finish_update()
        self.run.flush_lines()
        number = self.counters.checkpoints
        self.counters.checkpoints += 1
        self._count_wall()
        manifest = {
            "stage_index": self.stage_index,
            "stage_done": self.stage_done,
            "begun": self.begun,
            "epoch": self.epoch,
            "held_from": self.held[0].epoch if self.held else self.epoch,
            "weight_version": self.version,
            "evaluations": self.evaluations,
            "counters": self.counters.to_dict(),
        }

        def write(directory: Path) -> None:
            drafter = self.bubbles.save(directory)
            self._learner("save", str(directory))
            save_state(directory / "lengths.safetensors", self.lengths.state_dict())
            if self.actors.allocator is not None:
                save_state(directory / "allocator.safetensors", self._allocator("state_dict"))
            drafter.result()

        path = self.run.save_checkpoint(number, self.spec.run.keep_checkpoints, manifest, write)
        oldest = self.run.oldest_manifest()
        self.run.drop_rollouts_before(oldest["held_from"] if oldest else 0)
        self.run.journal("checkpoint", path=path.name, stage=self.stage_index, done=self.stage_done, epoch=self.epoch)

    def _restore(self) -> None:
        """Go back to the newest checkpoint, if there is one; rows of metrics that will be written again are dropped."""
        events = self.run.events()
        self.journaled = {event["epoch"] for event in events if event["event"] == "rolled_out"}
        if self.actors.allocator is not None and not any(event["event"] == "allocator" for event in events):
            self.run.journal("allocator", **opening(self.spec, self.pools.train))
        found = self.run.newest_checkpoint()
        if found is None:
            self.run.keep_metrics(lambda row: False)
            return
        path, manifest = found
        self._learner("load", str(path))
        self.lengths.load_state_dict(load_state(path / "lengths.safetensors"))
        if self.actors.allocator is not None:
            self._allocator("load_state_dict", load_state(path / "allocator.safetensors"))
        self.bubbles.load(path)
        self.stage_index, self.stage_done = manifest["stage_index"], manifest["stage_done"]
        self.begun = manifest["begun"]
        self.epoch, self.version = manifest["epoch"], manifest["weight_version"]
        stored = [self.run.load_groups(epoch) for epoch in range(manifest["held_from"], self.epoch)]
        self.held = [group for groups, _ in filter(None, stored) for group in groups]
        self.evaluations = manifest["evaluations"]
        self.counters = Counters.from_dict(manifest["counters"])
        self.run.keep_metrics(lambda row: row["epoch"] < self.epoch)
        self.display.note(f"continues from checkpoint {path.name}: stage {self.stage_index}, epoch {self.epoch}")

    def _meanwhile(self) -> None:
        """Again and again while a rollout phase goes on."""
        self.watch.look()
        self._check_stop()

    def _check_stop(self) -> None:
        if self.stop_requested():
            self._checkpoint()
            self.run.journal("interrupted", epoch=self.epoch)
            raise KeyboardInterrupt

    def _count_wall(self) -> None:
        now = time.perf_counter()
        self.counters.wall_s += now - self._wall
        self._wall = now

    # Calls.

    def _learner(self, method: str, *args: Any) -> list[Any]:
        calls = [getattr(rank, method).remote(*args) for rank in self.actors.ranks]
        return wait(calls, self.spec.limits.learn_timeout_s, f"learner: {method}")

    def _allocator(self, method: str, *args: Any) -> Any:
        call = getattr(self.actors.allocator, method).remote(*args)
        return wait([call], self.spec.limits.learn_timeout_s, f"allocator: {method}")[0]
