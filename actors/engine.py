"""One vLLM engine in this process, stepped by hand. Knows nothing of Ray actors, rewards or epochs.

Owns: requests in flight, the weight version in service. Everything here runs on one thread.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.cores import claim
from actors.engine_config import EngineConfig
from actors.figures import WorkerFigures
from actors.plugin import BACKEND
from actors.speculation import Speculation, distribution_fault, engine_arguments
from drafter.control import SpeculationControl, SpeculationStats

PREFILL_TOKENS = 8192
"""Tokens that one scheduler step may prefill together."""

SUPPORTED_VLLM = ((0, 26), (0, 33))


@dataclass(frozen=True, slots=True)
class Response:
    """One finished response."""

    token_ids: np.ndarray
    """int32 [tokens]."""
    logprobs: np.ndarray
    """float32 [tokens], at the sampling temperature; empty if they were not asked for."""
    truncated: bool


class Engine:
    """A vLLM engine that takes requests at any time and gives each response when it is finished."""

    def __init__(self, config: EngineConfig) -> None:
        self.cores = claim(config.cores)
        _prepare_environment(config.cores, self.cores, config.tensor_parallel)
        import vllm
        from vllm import EngineArgs
        from vllm.config import WeightTransferConfig
        from vllm.v1.engine.llm_engine import LLMEngine

        version = tuple(int(part) for part in vllm.__version__.split(".")[:2])
        if not SUPPORTED_VLLM[0] <= version < SUPPORTED_VLLM[1]:
            raise RuntimeError(f"vLLM {vllm.__version__} is not supported: 0.26 <= version < 0.33")
        self.config = config
        self.weight_version = 0
        self._asleep = False
        self.last_step: tuple[int, int] | None = None
        """Of the last step: responses that were running, tokens prefilled beside them; None where it cannot be told."""
        self._llm = LLMEngine.from_engine_args(
            EngineArgs(
                model=config.model_dir,
                dtype=config.dtype,
                max_model_len=config.context_tokens,
                max_num_seqs=config.max_running_requests,
                kv_cache_memory_bytes=config.kv_cache_bytes,
                gpu_memory_utilization=config.gpu_memory_fraction,
                tensor_parallel_size=config.tensor_parallel,
                # Processes below this one; of itself vLLM would ask Ray for a second set of places for them.
                distributed_executor_backend="mp" if config.tensor_parallel > 1 else None,
                # A prompt split over two steps makes vLLM rewind the request's random generator, which a CPU generator
                # cannot do; whole prompts also keep the random numbers independent of what else is in the batch.
                enable_chunked_prefill=False,
                max_num_batched_tokens=max(config.context_tokens, PREFILL_TOKENS),
                enforce_eager=True,
                seed=config.seed,
                # The learner recomputes log-probabilities at the sampling temperature; so must the engine.
                logprobs_mode="processed_logprobs",
                weight_transfer_config=WeightTransferConfig(backend=config.transfer),
                disable_log_stats=True,
                async_scheduling=False,
                enable_sleep_mode=config.sleeps,
                **(engine_arguments(config.speculation, config.max_running_requests) if config.speculation else {}),
            )
        )
        self._figures = WorkerFigures()
        self._count_prefix_hits()
        self._control = self._speculate(config.speculation) if config.speculation else None
        if config.transfer == BACKEND:
            self._llm.collective_rpc("init_weight_transfer_engine", args=({},))

    def _speculate(self, speculation: Speculation) -> SpeculationControl:
        """Hand the scheduler its control, once the sampler has proved that speculation changes no distribution."""
        adaptive = speculation.draft_tokens == "adaptive"
        ready = speculation.ready and speculation.head_dir is not None
        control = SpeculationControl(speculation.k_max, self.config.seed, ready, adaptive)
        self._scheduler.take_control(control, learned=speculation.head_dir is not None)
        if fault := next(filter(None, self._llm.collective_rpc(distribution_fault)), None):
            self._scheduler.switch_off(f"speculative sampling differs from plain sampling: {fault}")
        return control

    def _count_prefix_hits(self) -> None:
        """Of vLLM's statistics only those of the prefix cache: a sum per new request, where the whole of them (off by
        `disable_log_stats`) are made anew and passed on at every step. Nobody else takes them."""
        from vllm.v1.metrics.stats import PrefixCacheStats

        cache = self._scheduler.kv_cache_manager
        cache.log_stats, cache.prefix_cache_stats = True, PrefixCacheStats()

    @property
    def _scheduler(self) -> Any:
        return self._llm.engine_core.engine_core.scheduler

    def add(
        self,
        request_id: str,
        prompt: list[int],
        *,
        max_tokens: int,
        temperature: float,
        seed: int | None,
        logprobs: bool,
    ) -> None:
        """Queue one response of at most `max_tokens` tokens; without a seed the engine's own generator draws it."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self._wake()
        params = SamplingParams(
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed if temperature > 0 else None,
            logprobs=0 if logprobs else None,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
        )
        self._llm.add_request(request_id, {"prompt_token_ids": prompt}, params)
        self._figures.prompt_tokens += len(prompt)

    @property
    def busy(self) -> bool:
        return self._llm.has_unfinished_requests()

    def step(self) -> list[tuple[str, Response]]:
        """One scheduler step; the responses that it finished, by request id."""
        running = len(self._scheduler.running)
        finished = [(out.request_id, _response(out.outputs[0])) for out in self._llm.step() if out.finished]
        self.last_step = self._step_taken(running, len(finished))
        self._count_step(finished)
        return finished

    def _count_step(self, finished: Sequence[tuple[str, Response]]) -> None:
        figures, scheduler = self._figures, self._scheduler
        running = len(scheduler.running) + len(finished)
        figures.steps += 1
        figures.request_steps += running
        figures.running_peak = max(figures.running_peak, running)
        figures.waiting_peak = max(figures.waiting_peak, len(scheduler.waiting))
        figures.kv_cache_peak = max(figures.kv_cache_peak, scheduler.kv_cache_manager.usage)
        figures.generated_tokens += sum(len(response.token_ids) for _, response in finished)

    def _step_taken(self, running: int, finished: int) -> tuple[int, int] | None:
        admitted = len(self._scheduler.running) - running + finished
        if admitted == 0:
            return (running, 0) if running else None
        known = self._llm.output_processor.request_states
        states = [known[r.request_id] for r in self._scheduler.running[-admitted:]] if admitted > 0 else []
        new = [state for state in states if state.detokenizer.num_output_tokens() == 1]
        tokens = sum(state.prompt_len - state.num_cached_tokens for state in new)
        return (running, tokens) if tokens > 0 else None

    def unfinished(self) -> list[tuple[str, int, int, bool]]:
        """Responses under way, in the order of their `add`: id, tokens of the prompt, tokens so far, not yet begun."""
        return [
            (state.external_req_id, state.prompt_len, state.detokenizer.num_output_tokens(), state.is_prefilling)
            for state in self._llm.output_processor.request_states.values()
        ]

    def cut(self, request_ids: Iterable[str]) -> list[tuple[str, np.ndarray, np.ndarray]]:
        """Stop those of these responses that are under way; id, tokens and log-probabilities so far of each.

        An abort gives nothing back, so they are read where vLLM collects them for the output.
        """
        processor, cut = self._llm.output_processor, []
        for request_id in request_ids:
            for internal_id in processor.external_req_ids.get(request_id, ()):
                state = processor.request_states[internal_id]
                token_ids = np.array(state.detokenizer.output_token_ids, np.int32)
                self._figures.generated_tokens += len(token_ids)
                cut.append((request_id, token_ids, _sampled_logprobs(state.logprobs_processor.logprobs)))
        self._llm.abort_request([request_id for request_id, *_ in cut])
        return cut

    def start_weight_update(self) -> None:
        """Begin a publish. The engine must be idle: no response may mix two versions unnoticed."""
        if self.busy:
            raise RuntimeError("weights cannot change while responses are being generated")
        self._wake()
        self.weight_version = -1
        self._llm.collective_rpc("start_weight_update")

    def load_bucket(self, ref: Any) -> int:
        """Load one bucket; returns its checksum as the engine's processes see it, which must agree."""
        from actors.transfer import last_digest

        self._load(ref)
        digests = set(self._llm.collective_rpc(last_digest))
        if len(digests) > 1:
            raise RuntimeError("the engine's processes have loaded different weights")
        return digests.pop()

    def _load(self, ref: Any) -> None:
        """Processes of a tensor-parallel engine do not know Ray, so they are sent the bucket itself; in this one it
        stays where it is."""
        import ray

        self._llm.collective_rpc("update_weights", args=({"buckets": [ray.get(ref)]},))

    def finish_weight_update(self, version: int) -> None:
        """Put the new weights into service under `version` and forget what was cached under the old ones."""
        self._llm.collective_rpc("finish_weight_update")
        self._llm.reset_prefix_cache()
        self._llm.set_weight_version(str(version))
        self.weight_version = version

    def load_drafter(self, ref: Any, survival: Sequence[float]) -> None:
        """Put other weights of the learned drafter into service, between two steps; requests may be under way."""
        if self._control is None:
            raise RuntimeError("this engine does not speculate")
        self._wake()
        self._llm.collective_rpc("start_draft_weight_update")
        try:
            self._load(ref)
        except Exception as error:  # the target is whole, so this costs speculation and not the run
            self._scheduler.switch_off(f"the drafter's weights could not be loaded: {error}")
        self._llm.collective_rpc("finish_weight_update")
        self._control.published(survival)

    def sleep(self) -> None:
        """Free the memory of the GPU until there is work again (vLLM's level 1: weights go to host memory)."""
        if self.config.sleeps and not self.busy and not self._asleep:
            self._llm.sleep(level=1)
            self._asleep = True

    def _wake(self) -> None:
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False

    def draft_by(self, draft_tokens: str | int | list[tuple[int, int, int]]) -> None:
        """Who decides from the next step on how much is drafted; see the scheduler."""
        self._scheduler.draft_by(draft_tokens)

    @property
    def speculation_off(self) -> str | None:
        """Why this engine does not speculate although it was asked to; None while it does."""
        return self._control.off if self._control else None

    def take_speculation_stats(self) -> SpeculationStats:
        """What speculation did since this was last asked."""
        return self._control.take_stats() if self._control else SpeculationStats()

    def take_figures(self) -> WorkerFigures:
        """What the engine did since this was last asked."""
        taken, self._figures = self._figures, WorkerFigures()
        cache = self._scheduler.kv_cache_manager.make_prefix_cache_stats()
        taken.prefix_queries, taken.prefix_hits = cache.queries, cache.hits
        taken.preemptions = cache.preempted_requests
        taken.running, taken.waiting = len(self._scheduler.running), len(self._scheduler.waiting)
        taken.speculation, taken.speculation_off = self.take_speculation_stats(), self.speculation_off
        return taken

    def transfer(self, phase: str, *args: Any) -> str | None:
        """One phase of a publish over NCCL; the last one gives a digest of the live weights."""
        if phase == "start_weight_update":
            self.start_weight_update()
        elif phase == "finish_weight_update":
            self.finish_weight_update(args[0])
            digests = self._llm.collective_rpc("compute_weight_checksums")
            return hashlib.blake2b(repr(digests).encode(), digest_size=8).hexdigest()
        else:
            self._llm.collective_rpc(phase, args=args)
        return None

    def warm_up(self) -> None:
        """Run two short responses, so that kernels are built before the first group is timed."""
        for i in range(2):
            self.add(f"warm-up:{i}", [0], max_tokens=2, temperature=1.0, seed=i, logprobs=True)
        while self.busy:
            self.step()
        self._llm.reset_prefix_cache()
        self.take_figures()

    def versions(self) -> dict[str, str]:
        """Versions of what samples here."""
        import torch
        import vllm

        return {"vllm": vllm.__version__, "torch": torch.__version__}

    def abort_all(self, request_ids: list[str]) -> None:
        self._llm.abort_request(request_ids)


def _response(output: Any) -> Response:
    return Response(
        token_ids=np.asarray(output.token_ids, np.int32),
        logprobs=_sampled_logprobs(output.logprobs),
        truncated=output.finish_reason == "length",
    )


def _sampled_logprobs(flat: Any) -> np.ndarray:
    """float32 [tokens], of the sampled tokens; empty if none were asked for or none are there yet."""
    # Where the sampled token is also among the top ones it stands first.
    return np.asarray(flat.logprobs, np.float32)[flat.start_indices] if flat else np.zeros(0, np.float32)


def _prepare_environment(threads: int, cores: list[int], processes: int) -> None:
    """vLLM reads these once, at import; one thread per core, or engines fight for cores. No cores: do not pin."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if threads:
        each = len(cores) // processes
        shares = [",".join(map(str, cores[i * each : (i + 1) * each])) for i in range(processes)]
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(shares) if each else "nobind"
        os.environ["OMP_NUM_THREADS"] = str(threads // processes)
        os.environ["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
