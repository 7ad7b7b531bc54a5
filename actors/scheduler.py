"""vLLM's scheduler with a say in how much is drafted. A shell: `drafter.control` decides and counts.

vLLM asks at the end of `schedule` how many tokens this step shall draft for the next one (its own lookup by batch
size, which is replaced here); what was drafted is verified by the step after. Everything is read from what passes
through the scheduler anyway, so no device synchronisation is added. n-gram drafts are looked up here and put where
vLLM keeps a request's drafts; the learned drafter meanwhile only runs over the tokens that were kept, to be in step
when it takes over.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.spec_decode.dynamic.utils import build_dynamic_sd_schedule_lookup

from actors.speculation import NGRAM_MAX, NGRAM_MIN
from drafter.control import LEARNED, NGRAM, SpeculationControl


@dataclass(slots=True)
class _Step:
    began: float
    running: int
    timed: bool
    """Whether its seconds compare with those of other steps: decoding only, and as many drafts verified as proposed."""
    proposer: str
    k: int
    """Draft tokens per request that it verifies."""


class _Lookup:
    """Stands where vLLM keeps its list of K by running requests."""

    def __init__(self, choose: Any) -> None:
        self._choose = choose

    def __getitem__(self, running: int) -> int:
        return self._choose(running)


class SpeculatingScheduler(Scheduler):
    """Installed by `scheduler_cls`; the engine hands it a control before the first request."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._control: SpeculationControl | None = None
        self._learned = self._looks_up = False
        self._next = (NGRAM, 0)  # proposer and K of the drafts that the step under way proposes
        self._step: _Step | None = None
        self._tokens: dict[str, np.ndarray] = {}

    def take_control(self, control: SpeculationControl, learned: bool) -> None:
        """`learned`: vLLM's own proposer is the learned head, so n-grams are looked up here while they serve."""
        self._control, self._learned, self._looks_up = control, learned, learned and control.adaptive
        fixed = self.dynamic_sd_lookup
        if control.adaptive:
            self.dynamic_sd_lookup: Any = _Lookup(self._chosen)
        elif learned and control.proposer == NGRAM:
            # A schedule of its own knows nothing of n-grams: until a trained head is published nothing is drafted.
            self.dynamic_sd_lookup = _Lookup(lambda running: 0 if control.proposer == NGRAM else fixed[running])
        if self._looks_up and control.proposer == NGRAM:
            self._propose_ngram(np.zeros(8, np.int32), 1)  # compiles it

    def draft_by(self, draft_tokens: str | int | list[tuple[int, int, int]]) -> None:
        """From the next step on: `adaptive`, `ngram` (adaptive, with n-grams), one K, or a schedule by batch size.

        The last two are vLLM's own, so that a benchmark can compare all of them on one engine.
        """
        assert self._control is not None
        if self._control.off:
            return
        self._control.adaptive = isinstance(draft_tokens, str)
        self._control.proposer = LEARNED if self._learned and draft_tokens != NGRAM else NGRAM
        self._looks_up = self._learned and self._control.adaptive
        if self._control.adaptive:
            self.dynamic_sd_lookup = _Lookup(self._chosen)
            return
        most = self.max_num_running_reqs
        schedule = [(1, most, draft_tokens)] if isinstance(draft_tokens, int) else draft_tokens
        self.dynamic_sd_lookup = build_dynamic_sd_schedule_lookup(schedule, most, self.num_spec_tokens)

    def switch_off(self, reason: str) -> None:
        """No drafts from the next step on."""
        if self._control is not None:
            self._control.off = reason
        self._next = (NGRAM, 0)
        self.dynamic_sd_lookup = [0] * (self.max_num_running_reqs + 1)

    def schedule(self, throttle_prefills: bool = False) -> Any:
        began = time.perf_counter()
        control = self._control
        if control is None:
            return super().schedule(throttle_prefills)
        last = self._step
        if last is not None and last.timed:
            control.observe_time(last.proposer, last.running, last.k, began - last.began)
        proposer, k = self._next
        if k and proposer == NGRAM and self._looks_up:
            self._put_ngrams(k)
        output = super().schedule(throttle_prefills)
        running = len(output.num_scheduled_tokens)
        if running and not control.adaptive:
            self._next = (control.proposer, output.num_spec_tokens_to_schedule)
        decoding = not output.scheduled_new_reqs and not output.scheduled_cached_reqs.resumed_req_ids
        self._step = _Step(began, running, decoding and (proposer, k) == self._next, proposer, k)
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        if self._control is not None and self._step is not None and scheduler_output.num_scheduled_tokens:
            self._observe(self._step, scheduler_output, model_runner_output)
        result = super().update_from_output(scheduler_output, model_runner_output)
        if not self.running:
            self._step = None  # what comes before the next step is no part of this one
        return result

    def _chosen(self, running: int) -> int:
        control = self._control
        assert control is not None
        self._next = (control.proposer, control.choose(running))
        return 0 if control.proposer == NGRAM and self._looks_up else self._next[1]

    def _observe(self, step: _Step, scheduled: Any, model: Any) -> None:
        drafts = scheduled.scheduled_spec_decode_tokens
        drafted, accepted, lengths = [], [], []
        if step.k:
            fresh = {request.req_id for request in scheduled.scheduled_new_reqs}
            for request_id in scheduled.num_scheduled_tokens:
                if request_id in fresh or (request := self.requests.get(request_id)) is None:
                    continue
                count = len(drafts.get(request_id, ()))
                drafted.append(count)
                kept = len(model.sampled_token_ids[model.req_id_to_index[request_id]]) - 1 if count else 0
                accepted.append(max(kept, 0))
                lengths.append(request.num_output_tokens)
        assert self._control is not None
        self._control.observe(step.proposer, step.running, step.k, drafted, accepted, lengths)

    def _put_ngrams(self, k: int) -> None:
        known = {}
        for request in self.running:
            tokens, n = self._tokens.get(request.request_id), request.num_tokens
            if request.is_prefill_chunk or not request.num_output_tokens:
                continue
            if tokens is None:
                tokens = np.zeros(self.max_model_len + 1, np.int32)
                tokens[:n] = request.all_token_ids
            else:
                fresh = request.num_tokens - int(tokens[-1])
                tokens[n - fresh : n] = request.all_token_ids[n - fresh : n]
            tokens[-1] = n  # tokens filled in so far
            known[request.request_id] = tokens
            request.spec_token_ids = self._propose_ngram(tokens[:n], k)
        self._tokens = known

    def _propose_ngram(self, tokens: np.ndarray, k: int) -> list[int]:
        from vllm.v1.spec_decode.ngram_proposer import _find_longest_matched_ngram_and_propose_tokens as propose

        return propose(tokens, NGRAM_MIN, NGRAM_MAX, self.max_model_len, k).tolist()
