"""The drafter beside a rollout worker: an actor that trains while it holds a lease on the worker's cores.

One call of `train` is one session. It goes on until `stop` is heard, looks between micro-steps, and returns; all that
decides who trains when is `drafter.leases`. A shell around `drafter.training`.
"""

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actors.buckets import Bucket, unpack
from actors.buckets import pack as bucketed
from actors.figures import resident_bytes
from actors.logs import send_output_to_log
from drafter.features import FeatureSequence, from_columns
from drafter.spec import DrafterTrainSpec

NICE = 5
"""Below the rollout workers: whatever else happens, drafting is trained with what they leave."""
EVALUATE_EVERY = 48
"""Micro-steps between two looks at the held-out slice."""
HELD_OUT = 8
"""The responses of one in so many prompts are never trained on."""
HELD_OUT_TOKENS = 2048
"""Tokens of the newest held-out sequences that a candidate is judged on."""


@dataclass(frozen=True, slots=True)
class DrafterConfig:
    head_dir: str
    """The head to start from, in the format that vLLM loads."""
    target_dir: str
    spec: DrafterTrainSpec
    max_draft_tokens: int
    temperature: float
    cores: int
    """Of the rollout worker; 0 on GPU."""
    seed: int


@dataclass(slots=True)
class Session:
    """What a lease was used for."""

    micro_steps: int = 0
    tokens: int = 0
    trained_s: float = 0.0
    """Seconds in micro-steps and evaluations."""
    longest_step_s: float = 0.0
    ended: float = 0.0
    """When the last micro-step was over, on the clock of time.time."""
    resident_bytes: int = 0
    """Main memory that the drafter holds at its end."""
    loss: float | None = None
    """Of the last micro-step."""
    accept_length: float | None = None
    survival: tuple[float, ...] = ()
    """Of the candidate on the held-out slice; empty when none was looked at."""
    serving_survival: tuple[float, ...] = ()


class DrafterActor:
    """Runs inside Ray as `ray.remote(DrafterActor)` with room for two concurrent calls."""

    def __init__(self, config: DrafterConfig) -> None:
        send_output_to_log()
        self._config = config
        self._stops: dict[int, threading.Event] = {}
        self._guard = threading.Lock()
        self._held: int | None = None  # the lease whose outcome the trainer still holds
        self._candidate: Bucket | None = None
        self._blobs: dict[str, list[FeatureSequence]] = {}
        self._since_look = 0
        self._serving_seen: tuple[Any, tuple[float, ...]] = (None, ())
        self._start()

    def _start(self) -> None:
        """Load the target's embedding and head, and build the trainer."""
        os.nice(NICE)
        import torch

        from drafter.files import load_head
        from drafter.training import DrafterTrainer, TrainingSettings

        config, train = self._config, self._config.spec
        device = "cpu" if config.cores else "cuda"
        if config.cores:
            torch.set_num_threads(config.cores)
        head = load_head(Path(config.head_dir))
        embedding, lm_head = target_tensors(Path(config.target_dir))
        settings = TrainingSettings(
            steps=train.steps,
            loss={"soft_ce": "soft_cross_entropy"}.get(train.loss, train.loss),
            learning_rate=train.learning_rate,
            temperature=config.temperature,
        )
        self._trainer = DrafterTrainer(
            head.config, embedding.to(device), lm_head.to(device), settings, head.vocabulary, seed=config.seed
        )
        self._trainer.head.load_state_dict(head.state_dict())

    def pin(self, cores: list[int]) -> None:
        """The rollout worker's engine has these; none on GPU, and where it is not pinned."""
        if cores:
            for thread in os.listdir("/proc/self/task"):
                with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                    os.sched_setaffinity(int(thread), cores)

    def set_target(self, refs: list[Any]) -> None:
        """The target has moved: its embedding and head, as a bucket of two."""
        import ray

        tensors = [tensor.to(self._trainer.device) for _, tensor in unpack(ray.get(refs[0]))]
        self._trainer.set_target(*tensors)

    def train(
        self,
        lease: int,
        states: Sequence[tuple[Any, float]],
        held: int | None,
        blobs: Sequence[Any],
        serving: Any,
    ) -> tuple[Session, dict[str, np.ndarray] | None, Bucket | None]:
        """One session: continue from the mean of `states` (reference, weight) on the features of `blobs` until stopped.

        `held`: the lease that left the only state; the drafter that had it need not load it again.

        `serving`: reference of the weights in service, None while n-grams serve. All references come in lists, so that
        Ray does not resolve them before the call. Gives the trainer's state, None if nothing was trained, and the
        candidate's weights, None if none was judged: as values, so that they outlive this actor.
        """
        session, stop, self._candidate = Session(), self._stop_of(lease), None
        self._continue_from(states, held)
        data, held_out = self._sequences(blobs)
        if not data:
            session.ended = time.time()
            return session, None, None
        packs = self._packs(data)
        while not stop.is_set():
            began = time.perf_counter()
            if self._since_look >= EVALUATE_EVERY and held_out:
                self._look(session, held_out, serving, stop)
            else:
                self._train_step(session, next(packs), stop)
            session.trained_s += time.perf_counter() - began
        state = None
        if session.micro_steps:
            state = {name: tensor.cpu().numpy().copy() for name, tensor in self._trainer.state_dict().items()}
            self._held = lease
        session.resident_bytes = resident_bytes()
        session.ended = time.time()
        return session, state, self._candidate

    def _train_step(self, session: Session, sequences: list[FeatureSequence], stop: threading.Event) -> None:
        from drafter.training import Stopped

        began = time.perf_counter()
        try:
            figures = self._trainer.micro_step(sequences, stop.is_set)
        except Stopped:
            return
        session.micro_steps += 1
        session.tokens += int(figures["tokens"])
        session.loss = figures["loss"]
        session.longest_step_s = max(session.longest_step_s, time.perf_counter() - began)
        self._since_look += 1

    def pid(self) -> int:
        """Its process, for whoever watches or breaks it."""
        return os.getpid()

    def stop(self, lease: int) -> None:
        """End a session after its micro-step; also one that has not begun yet."""
        self._stop_of(lease).set()

    def _stop_of(self, lease: int) -> threading.Event:
        with self._guard:
            for old in [number for number in self._stops if number < lease - 8]:
                del self._stops[old]
            return self._stops.setdefault(lease, threading.Event())

    def _continue_from(self, states: Sequence[tuple[Any, float]], held: int | None) -> None:
        import ray
        import torch

        from drafter.training import average

        if not states or (len(states) == 1 and held is not None and held == self._held):
            return
        loaded = [{k: torch.from_numpy(np.array(v)) for k, v in ray.get(ref).items()} for ref, _ in states]
        mean = average(loaded, [weight for _, weight in states]) if len(loaded) > 1 else loaded[0]
        self._trainer.load_state_dict(mean)
        self._held = None

    def _sequences(self, refs: Sequence[Any]) -> tuple[list[FeatureSequence], list[FeatureSequence]]:
        """All sequences to train on, and the newest held-out ones."""
        import ray

        known = {ref.hex(): self._blobs.get(ref.hex()) or from_columns(ray.get(ref)) for ref in refs}
        self._blobs = known
        every = [s for sequences in known.values() for s in sequences if s.chains]
        slice_, tokens = [], 0
        for sequence in sorted((s for s in every if is_held_out(s.id)), key=lambda s: -s.epoch):
            if tokens < HELD_OUT_TOKENS:
                slice_.append(sequence)
                tokens += len(sequence)
        return [s for s in every if not is_held_out(s.id)], slice_

    def _packs(self, data: list[FeatureSequence]) -> Any:
        """Packs of about `micro_step_tokens`, in a fresh order on every pass over the data."""
        from drafter.packing import plan_packs

        rng = np.random.default_rng([self._config.seed, self._trainer.step])
        while True:
            plans = plan_packs([len(s) for s in data], self._config.spec.micro_step_tokens)
            for plan in rng.permutation(len(plans)):
                yield [data[i] for i in plans[plan]]
            rng.shuffle(data)

    def _look(self, session: Session, held_out: list[FeatureSequence], serving: Any, stop: threading.Event) -> None:
        """Judge what is trained so far on the held-out slice, and what is in service on the same; unless stopped."""
        import ray

        from drafter.files import named_weights

        key = (serving and serving[0].hex(), held_out[0].epoch, len(held_out))
        if serving and self._serving_seen[0] != key:
            trained = {name: tensor.clone() for name, tensor in self._trainer.head.state_dict().items()}
            self._load_weights(ray.get(serving[0]))
            survival = self._survival(held_out, stop)
            self._trainer.head.load_state_dict(trained)
            if survival is None:
                return
            self._serving_seen = (key, survival)
        survival = self._survival(held_out, stop)
        if survival is None:
            return
        import torch

        self._since_look = 0
        session.survival, session.accept_length = survival, 1 + sum(survival)
        session.serving_survival = self._serving_seen[1] if serving else ()
        own = [(name, tensor.clone()) for name, tensor in named_weights(self._trainer.head)]
        self._candidate = bucketed(own, torch.float32)

    def _load_weights(self, bucket: Any) -> None:
        from drafter.files import LAYER

        prefix = LAYER[self._trainer.config.form]
        tensors = {name.replace(prefix, "midlayer."): tensor for name, tensor in unpack(bucket)}
        self._trainer.head.load_state_dict({k: v for k, v in tensors.items() if k not in ("d2t", "t2d")})

    def _survival(self, held_out: list[FeatureSequence], stop: threading.Event) -> tuple[float, ...] | None:
        """s_1 .. s_K on the slice, a micro-step's worth of tokens at a time; None if stopped on the way."""
        k = self._config.max_draft_tokens
        right, positions, tokens = np.zeros(k), 0, 0
        batch: list[FeatureSequence] = []
        for sequence in itertools.chain(held_out, [None]):
            if batch and (sequence is None or tokens + len(sequence) > self._config.spec.micro_step_tokens):
                if stop.is_set():
                    return None
                counts, n = self._trainer.evaluate(batch, k)
                right, positions, batch, tokens = right + counts, positions + n, [], 0
            if sequence is not None:
                batch.append(sequence)
                tokens += len(sequence)
        return tuple((right / positions).tolist()) if positions else (0.0,) * k


def is_held_out(sequence_id: str) -> bool:
    """The same for all responses of a prompt, in every process and run."""
    return int(sequence_id, 16) % HELD_OUT == 0


def target_tensors(path: Path) -> tuple[Any, Any]:
    """The target's embedding and output head, [vocabulary, hidden] each, from its directory in Hugging Face format."""
    from safetensors import safe_open

    found: dict[str, Any] = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in ("model.embed_tokens.weight", "lm_head.weight"):
                if name in tensors.keys():  # noqa: SIM118  it is no mapping
                    found[name] = tensors.get_tensor(name)
    embedding = found["model.embed_tokens.weight"]
    return embedding, found.get("lm_head.weight", embedding)
