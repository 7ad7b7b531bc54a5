"""Responses that go on on another worker: what one gives, what it takes, what it sends back. On the engine's thread.

A group stays with its owner, who completes and grades it; only the decoding of single responses moves. The taker
prefills the prompt and the tokens so far, and samples what follows with a seed of its own, as the state of the old
random generator stays behind. One that has no token yet keeps its seed, and with it its tokens.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from actors.engine import Engine, Response
from actors.requests import GroupRequest, Sampling
from actors.seeds import derive_seed
from trainer.types import Prompt

STEPS_KEPT = 1024
"""Newest steps that a worker remembers until it is asked for them."""


@dataclass
class OpenGroup:
    """A group that its owner has not finished."""

    request: GroupRequest
    sampling: Sampling
    responses: dict[int, Response] = field(default_factory=dict)

    @property
    def request_ids(self) -> list[str]:
        return [f"{self.request.id}:{sample}" for sample in range(self.request.rollouts)]


@dataclass(frozen=True, slots=True)
class Continuation:
    """An unfinished response as it travels."""

    request: GroupRequest
    sample: int
    sampling: Sampling
    token_ids: np.ndarray
    """int32 [tokens so far]."""
    logprobs: np.ndarray
    """float32 [tokens so far]; empty if they were not asked for."""

    @property
    def id(self) -> str:
        return f"{self.request.id}:{self.sample}"


@dataclass(frozen=True, slots=True)
class Delivery:
    """A response that was finished for another worker, whole."""

    group_id: str
    sample: int
    response: Response


@dataclass(frozen=True, slots=True)
class Underway:
    """How far an unfinished response is."""

    id: str
    prompt: int
    """Index into its pool."""
    prompt_tokens: int
    tokens: int
    """So far, those of earlier workers included."""
    waiting: bool
    """Nothing of it is computed on this worker."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a worker has under way, the running ones first."""

    responses: list[Underway]
    steps: list[tuple[int, int, float]]
    """Newest steps since the last report: responses that were running, tokens prefilled beside them, seconds."""


class Handover:
    def __init__(
        self, engine: Engine, own: Mapping[str, OpenGroup], pools: Mapping[str, list[Prompt]], run_seed: int
    ) -> None:
        """`own`: the groups of this worker by id, kept up to date by it."""
        self._engine, self._own, self._pools, self._run_seed = engine, own, pools, run_seed
        self._taken: dict[str, Continuation] = {}
        self._steps: deque[tuple[int, int, float]] = deque(maxlen=STEPS_KEPT)

    @property
    def taken_ids(self) -> list[str]:
        return list(self._taken)

    def forget(self) -> None:
        self._taken.clear()

    def drop(self, group_ids: Iterable[str]) -> list[str]:
        """Forget the responses taken over that belong to these groups; gives their ids."""
        groups = set(group_ids)
        dropped = [request_id for request_id, c in self._taken.items() if c.request.id in groups]
        for request_id in dropped:
            del self._taken[request_id]
        return dropped

    def timed(self, seconds: float) -> None:
        """The engine's last step took this long."""
        if self._engine.last_step is not None:
            self._steps.append((*self._engine.last_step, seconds))

    def progress(self) -> Progress:
        responses = []
        for request_id, prompt_tokens, tokens, waiting in self._engine.unfinished():
            before = self._taken.get(request_id)
            request = before.request if before else self._own[request_id.rpartition(":")[0]].request
            so_far = len(before.token_ids) if before else 0
            responses.append(Underway(request_id, request.prompt, prompt_tokens - so_far, tokens + so_far, waiting))
        steps = list(self._steps)
        self._steps.clear()
        return Progress(sorted(responses, key=lambda r: r.waiting), steps)

    def release(self, request_ids: Iterable[str]) -> list[Continuation]:
        """Stop these and give what they have so far; one that has ended meanwhile is left out."""
        given = []
        for request_id, token_ids, logprobs in self._engine.cut(request_ids):
            before = self._taken.pop(request_id, None)
            if before:
                request, sampling, sample = before.request, before.sampling, before.sample
                token_ids = np.concatenate([before.token_ids, token_ids])
                logprobs = np.concatenate([before.logprobs, logprobs])
            else:
                group_id, _, index = request_id.rpartition(":")
                group, sample = self._own[group_id], int(index)
                request, sampling = group.request, group.sampling
            given.append(Continuation(request, sample, sampling, token_ids, logprobs))
        return given

    def adopt(self, continuations: Iterable[Continuation]) -> None:
        for c in continuations:
            self.check_version(c.request)
            self._taken[c.id] = c
            self.start(c.request, c.sample, c.sampling, c.token_ids)

    def start(self, request: GroupRequest, sample: int, sampling: Sampling, so_far: np.ndarray | None = None) -> None:
        """Queue one response, from its prompt or from where another worker left it."""
        prompt = self._pools[sampling.pool][request.prompt]
        tokens = [] if so_far is None else so_far.tolist()
        moved: list[int | str] = ["moved", len(tokens)] if tokens else []
        self._engine.add(
            f"{request.id}:{sample}",
            [*prompt.token_ids, *tokens],
            max_tokens=sampling.max_tokens - len(tokens),
            temperature=sampling.temperature,
            seed=derive_seed(self._run_seed, sampling.pool, request.epoch, prompt.id, sample, *moved),
            logprobs=sampling.pool == "train" or sampling.temperature == 1,  # an evaluation's are for its entropy
        )

    def check_version(self, request: GroupRequest) -> None:
        if request.weight_version != self._engine.weight_version:
            raise RuntimeError(
                f"group {request.id} asks for weight version {request.weight_version}, "
                f"version {self._engine.weight_version} is in service"
            )

    def finished(self, request_id: str, rest: Response) -> Delivery | None:
        """What to send back for a response that was taken over; None for one of this worker's own."""
        before = self._taken.pop(request_id, None)
        if before is None:
            return None
        response = Response(
            np.concatenate([before.token_ids, rest.token_ids]),
            np.concatenate([before.logprobs, rest.logprobs]),
            rest.truncated,
        )
        return Delivery(before.request.id, before.sample, response)
