"""The `drafter` section of a spec: speculative decoding in the rollout workers, and how its drafter is trained."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST_DRAFT_TOKENS = 16


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class DrafterTrainSpec(_Section):
    enabled: bool = True
    """Train the drafter in bubbles: while a rollout worker has nothing to generate and others of its epoch still do."""
    steps: int = Field(default=6, ge=1, le=MOST_DRAFT_TOKENS)
    """Draft steps unrolled in training (training-time test); no more than this many tokens can be drafted."""
    loss: Literal["soft_ce", "total_variation", "hybrid"] = "soft_ce"
    """What is minimised: cross-entropy with the target's distribution, the chance that a draft is rejected, or both."""
    learning_rate: float = Field(default=1e-3, gt=0, le=1)
    """Learning rate of AdamW after a short warm-up."""
    micro_step_tokens: int = Field(default=384, ge=16, le=2**22)
    """Tokens of one micro-step, which is the longest that a lease outlives its end. A longer sequence is one of its
    own."""
    buffer_mib: int = Field(default=64, ge=1, le=2**22)
    """Memory for features of past rollouts, in the object store and in every checkpoint."""
    cold_start_s: float = Field(default=0.0, ge=0)
    """Seconds of training bought on the critical path, in equal parts after each of the first eight updates."""
    sleep: bool = False
    """On GPU: free the engine's memory while its worker is in a bubble (vLLM's sleep mode, level 1)."""


class DrafterSpec(_Section):
    method: Literal["none", "ngram", "eagle3", "eagle"] = "none"
    """Who proposes tokens for speculative decoding: nobody, n-grams of the response itself, or a trained head with
    features of three target layers (`eagle3`) or of the last one (`eagle`). Until a trained head is ready n-grams
    serve."""
    source: Annotated[str, Field(min_length=1, pattern=r"^[^\x00]+$")] | None = None
    """Directory with a head that a run has left (its `models/drafter`); random weights if not given."""
    max_draft_tokens: int = Field(default=6, ge=1, le=MOST_DRAFT_TOKENS)
    """Most tokens that are drafted at once (K_max)."""
    draft_tokens: (
        Literal["adaptive"]
        | Annotated[int, Field(ge=0, le=MOST_DRAFT_TOKENS)]
        | list[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)], Annotated[int, Field(ge=0)]]]
    ) = "adaptive"
    """How many tokens are drafted: decided at every step from what it gains, a fixed number, or vLLM's own schedule by
    running requests, [[from, to, K], ...]."""
    draft_vocabulary: int | None = Field(default=None, ge=8, le=2**20)
    """Tokens that an `eagle3` head can propose: the most frequent of the task. Everything, but at most 8192, if not
    given."""
    train: DrafterTrainSpec = DrafterTrainSpec()
    """How the head is trained."""

    @property
    def learned(self) -> bool:
        """Whether there is a head."""
        return self.method in ("eagle3", "eagle")

    @property
    def trains(self) -> bool:
        return self.learned and self.train.enabled

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.trains and self.max_draft_tokens > self.train.steps:
            raise ValueError(
                f"max_draft_tokens = {self.max_draft_tokens} is more than the train.steps = {self.train.steps} draft "
                "steps that the head is trained for"
            )
        if self.learned and self.source is None and not self.train.enabled:
            raise ValueError(
                f"method = {self.method} without a source and with train.enabled = false is a head of random weights "
                "that nobody trains"
            )
        if isinstance(self.draft_tokens, int) and self.draft_tokens > self.max_draft_tokens:
            raise ValueError(
                f"draft_tokens = {self.draft_tokens} is more than max_draft_tokens = {self.max_draft_tokens}"
            )
        if isinstance(self.draft_tokens, list):
            self._check_schedule(self.draft_tokens)
        if self.source is not None and not self.learned:
            raise ValueError(f"source is of no use to method = {self.method}")
        return self

    def _check_schedule(self, schedule: list[tuple[int, int, int]]) -> None:
        previous = 0
        for start, end, k in schedule:
            if start != previous + 1 or end < start:
                raise ValueError(
                    f"draft_tokens: [{start}, {end}, {k}] does not follow on: ranges start at 1 and leave no gap"
                )
            if k > self.max_draft_tokens:
                raise ValueError(f"draft_tokens: K = {k} is more than max_draft_tokens = {self.max_draft_tokens}")
            previous = end
        if not schedule:
            raise ValueError("draft_tokens: an empty schedule")
