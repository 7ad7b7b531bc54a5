"""The rollout worker: one vLLM engine in a Ray actor, fed with groups at any time, giving back each one when finished.

One thread owns the engine and steps it while there is work; actor calls only exchange messages with it. Hence a call
never waits for a step, and weights change between steps only. Another thread grades, so that a slow reward function
stops no decoding. Invariants: every accepted group comes back exactly once
through `collect`; nothing is generated unless the version asked for is the version in service.
"""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.engine import Engine, Response
from actors.engine_config import EngineConfig
from actors.figures import WorkerFigures, resident_bytes
from actors.handover import Continuation, Delivery, Handover, OpenGroup, Progress
from actors.logs import send_output_to_log
from actors.requests import GroupRequest, Sampling
from trainer.spec import TaskSpec
from trainer.types import Group, Prompt


@dataclass(slots=True)
class Collected:
    """What a worker has finished since it was last asked."""

    items: list[Group | Delivery]
    step_s: float = 0.0
    """How long the step that the engine is in has taken so far."""


class RolloutWorker:
    """Runs inside Ray as `ray.remote(RolloutWorker)` with room for a few concurrent calls."""

    def __init__(self, config: EngineConfig, task: TaskSpec, pools: dict[str, list[Prompt]], run_seed: int) -> None:
        send_output_to_log()
        self._pools = pools
        self._run_seed = run_seed
        self._open: dict[str, OpenGroup] = {}
        self._finished: queue.SimpleQueue[Group | Delivery | BaseException] = queue.SimpleQueue()
        self._ungraded: queue.SimpleQueue[OpenGroup] = queue.SimpleQueue()
        self._calls: queue.SimpleQueue[tuple[Callable[..., Any], tuple, Future]] = queue.SimpleQueue()
        self._buckets = threading.Condition()
        self._next_bucket = 0
        self._step_began: float | None = None
        self._busy_s = 0.0
        self._ungraded_peak = 0
        self._grading_s = self._grading_told_s = 0.0  # the grader alone adds to the first
        self._ready: Future = Future()
        threading.Thread(target=self._own_engine, args=(config, task), daemon=True, name="engine").start()

    # Calls from outside.

    def ready(self) -> tuple[dict[str, str], list[int]]:
        """Wait for the engine; its versions, and the cores that it is pinned to."""
        return self._ready.result()

    def submit(self, requests: list[GroupRequest], sampling: Sampling) -> None:
        """Accept groups. All of one call are queued before the next step, in order."""
        self._call(self._admit, requests, sampling)

    def collect(self, timeout_s: float) -> Collected:
        """Wait up to `timeout_s` for a finished group or a response finished for another worker, then give all that
        are finished."""
        found = Collected([])
        with suppress(queue.Empty):
            item = self._finished.get(timeout=timeout_s)
            while True:
                if isinstance(item, BaseException):
                    raise item
                found.items.append(item)
                item = self._finished.get_nowait()
        if (since := self._step_began) is not None:
            found.step_s = time.perf_counter() - since
        return found

    def abandon(self, group_ids: list[str]) -> None:
        """Drop what is left of these groups, of this worker's own and of responses taken over: they are sampled anew
        elsewhere."""
        self._call(self._drop, group_ids)

    def progress(self) -> Progress:
        """What is under way, and how long steps took."""
        return self._call(lambda: self._handover.progress())

    def release(self, request_ids: list[str]) -> list[Continuation]:
        """Stop these responses, for another worker to go on with; one that has ended meanwhile is left out."""
        return self._call(lambda: self._handover.release(request_ids))

    def adopt(self, continuations: list[Continuation]) -> None:
        """Go on with responses of other workers; `collect` gives each when it is finished."""
        self._call(lambda: self._handover.adopt(continuations))

    def deliver(self, deliveries: list[Delivery]) -> None:
        """Responses of this worker's groups that others have finished."""
        self._call(self._take_back, deliveries)

    def load(self, refs: list[Any], index: int, last_version: int | None, timeout_s: float) -> int:
        """Bucket `index` of a publish: opens the update before the first, closes it after the last; gives its checksum.

        Concurrent calls may start in any order; each waits here for the bucket before its own.
        """
        with self._buckets:
            if not self._buckets.wait_for(lambda: index in (0, self._next_bucket), timeout_s):
                raise TimeoutError(f"bucket {index} of a publish waited for bucket {self._next_bucket}")
            digest = self._call(self._load, refs[0], index == 0, last_version)
            self._next_bucket = index + 1 if last_version is None else 0
            self._buckets.notify_all()
            return digest

    def transfer(self, phase: str, *args: Any) -> str | None:
        """One phase of a publish over NCCL."""
        return self._call(lambda: self._engine.transfer(phase, *args))

    def load_drafter(self, refs: list[Any], survival: list[float]) -> None:
        """Put other weights of the drafter into service, between two steps."""
        self._call(self._engine.load_drafter, refs[0], survival)

    def sleep(self) -> None:
        """Free the engine's GPU memory until there is work again."""
        self._call(self._engine.sleep)

    def draft_by(self, draft_tokens: str | int | list[tuple[int, int, int]]) -> None:
        """Who decides from the next step on how much is drafted: a benchmark compares on one engine."""
        self._call(self._engine.draft_by, draft_tokens)

    def take_figures(self) -> WorkerFigures:
        """What this worker and its engine did since this was last asked."""
        return self._call(self._take_figures)

    # The engine's thread.

    def _call(self, fn: Callable[..., Any], *args: Any) -> Any:
        done: Future = Future()
        self._calls.put((fn, args, done))
        return done.result()

    def _own_engine(self, config: EngineConfig, task: TaskSpec) -> None:
        try:
            self._engine = Engine(config)
            self._handover = Handover(self._engine, self._open, self._pools, self._run_seed)
            from trainer.models import load_tokenizer
            from trainer.verifiers import Grader

            self._tokenizer = load_tokenizer(config.model_dir)
            self._grade = Grader(task)  # holds locks, so it is built here and not sent
            self._engine.warm_up()
        except BaseException as error:
            self._ready.set_exception(error)
            return
        threading.Thread(target=self._grade_groups, daemon=True, name="grader").start()
        self._ready.set_result((self._engine.versions(), self._engine.cores))
        while True:
            self._serve_calls()
            if self._engine.busy:
                self._step_began = started = time.perf_counter()
                self._step()
                self._step_began = None
                seconds = time.perf_counter() - started
                self._busy_s += seconds
                self._handover.timed(seconds)

    def _serve_calls(self) -> None:
        """Answer what has come in; with nothing to generate, wait for the next call."""
        while not (self._calls.empty() and self._engine.busy):
            fn, args, done = self._calls.get()
            try:
                done.set_result(fn(*args))
            except BaseException as error:
                done.set_exception(error)

    def _admit(self, requests: list[GroupRequest], sampling: Sampling) -> None:
        for request in requests:
            self._handover.check_version(request)
            if request.id in self._open:
                continue
            self._open[request.id] = OpenGroup(request, sampling)
            for sample in range(request.rollouts):
                self._handover.start(request, sample, sampling)

    def _step(self) -> None:
        try:
            for request_id, response in self._engine.step():
                if delivery := self._handover.finished(request_id, response):
                    self._finished.put(delivery)
                else:
                    group_id, _, sample = request_id.rpartition(":")
                    self._complete(group_id, int(sample), response)
        except BaseException as error:
            # The failed epoch is over for this worker: drop what is left of it, so that the actor stays answerable.
            self._finished.put(error)
            self._engine.abort_all(
                [request_id for group in self._open.values() for request_id in group.request_ids]
                + self._handover.taken_ids
            )
            self._open.clear()
            self._handover.forget()

    def _complete(self, group_id: str, sample: int, response: Response) -> None:
        group = self._open[group_id]
        group.responses[sample] = response
        if len(group.responses) == group.request.rollouts:
            self._ungraded.put(self._open.pop(group_id))
            self._ungraded_peak = max(self._ungraded_peak, self._ungraded.qsize())

    def _take_back(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            if delivery.group_id in self._open:  # it may have been abandoned meanwhile
                self._complete(delivery.group_id, delivery.sample, delivery.response)

    def _drop(self, group_ids: list[str]) -> None:
        dropped = self._handover.drop(group_ids)
        for group_id in group_ids:
            if group := self._open.pop(group_id, None):
                dropped += group.request_ids
        self._engine.abort_all(dropped)

    def _grade_groups(self) -> None:
        while True:
            group = self._ungraded.get()
            began = time.perf_counter()
            try:
                graded: Group | BaseException = self._close(group)
            except BaseException as error:
                graded = error
            self._grading_s += time.perf_counter() - began
            self._finished.put(graded)

    def _close(self, group: OpenGroup) -> Group:
        request = group.request
        prompt = self._pools[group.sampling.pool][request.prompt]
        responses = [group.responses[i] for i in range(request.rollouts)]
        texts = self._tokenizer.batch_decode([r.token_ids for r in responses], skip_special_tokens=True)
        return Group(
            id=request.id,
            epoch=request.epoch,
            prompt=request.prompt,
            weight_version=request.weight_version,
            token_ids=np.concatenate([r.token_ids for r in responses]),
            logprobs=np.concatenate([r.logprobs for r in responses]),
            lengths=np.array([len(r.token_ids) for r in responses], np.int32),
            rewards=np.array([self._grade(prompt, text) for text in texts], np.float64),
            truncated=np.array([r.truncated for r in responses]),
        )

    def _take_figures(self) -> WorkerFigures:
        figures, graded_s = self._engine.take_figures(), self._grading_s
        figures.resident_bytes = resident_bytes()
        figures.busy_s, self._busy_s = self._busy_s, 0.0
        figures.grading_s, self._grading_told_s = graded_s - self._grading_told_s, graded_s
        figures.ungraded_peak, self._ungraded_peak = self._ungraded_peak, self._ungraded.qsize()
        return figures

    def _load(self, ref: Any, first: bool, last_version: int | None) -> int:
        if first:
            self._engine.start_weight_update()
        digest = self._engine.load_bucket(ref)
        if last_version is not None:
            self._engine.finish_weight_update(last_version)
        return digest
