"""Ray, the bundles, and the actors in them. Every wait has a deadline and names what it waits for."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.allocator import AllocatorActor
from actors.drafter import DrafterActor, DrafterConfig
from actors.engine import EngineConfig
from actors.learner import LearnerRank
from actors.learner_config import LearnerConfig
from actors.plugin import BACKEND
from actors.rollout import RolloutWorker
from actors.seeds import derive_seed
from cluster.allocation import allocator_arguments
from cluster.bundles import bundles
from cluster.checkpoint import RunDirectory
from cluster.errors import ActorLost, RunFailed
from cluster.heads import speculation, tap
from cluster.spec import Spec
from trainer.types import Prompt

OBJECT_STORE_SLACK_BYTES = 256 * 2**20
"""Room in a local object store beside two publish buckets: rollouts, prompts, messages."""

DRAFTER_GPU = 0.02
"""Share of its worker's GPU that Ray books for a drafter, so that it sees that GPU and no other."""


@dataclass
class Actors:
    """Handles of everything that a run has started."""

    workers: dict[str, Any]
    ranks: list[Any]
    allocator: Any
    """None without an rl stage."""
    versions: dict[str, str]
    drafters: dict[str, Any]
    """By the rollout worker beside which they sit; empty where no drafter is trained."""
    head_dir: Path | None
    """The head that the engines started with."""


class Cluster:
    """The run's share of a Ray cluster, as a context manager; leaves no process behind."""

    def __init__(self, spec: Spec, run: RunDirectory, model_dir: str, dtype: str, head_dir: Path | None) -> None:
        self._spec, self._run, self._model_dir, self._dtype, self._head_dir = spec, run, model_dir, dtype, head_dir
        self._group: Any = None
        self._connected = False
        # Two ranks of one NCCL group cannot share a device, so colocated weights go through the object store.
        c = spec.cluster
        # A drafter's do too, and an engine has one way in.
        both_on_gpus = bool(c.gpus_per_rollout_worker and c.gpus_per_learner_rank)
        self._nccl = both_on_gpus and c.placement == "disaggregated" and not spec.drafter.learned
        self._handles: list[Any] = []

    def __enter__(self) -> "Cluster":
        # Read when ray is imported. Tokens by default; whoever has set the mode knows better.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        self._connect(ray)
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        for handle in self._handles:
            ray.kill(handle)
        if self._group is not None:
            ray.util.remove_placement_group(self._group)
        if self._connected:
            ray.shutdown()

    def _connect(self, ray: Any) -> None:
        """Join or start a cluster; a process that is connected already stays connected."""
        if ray.is_initialized():
            return
        spec = self._spec.cluster
        options: dict[str, Any] = {"address": spec.address}
        if spec.address is None:
            buckets = 2 * self._spec.rollout.publish_bucket_mib * 2**20
            if self._spec.drafter.trains:
                buckets += 2 * self._spec.drafter.train.buffer_mib * 2**20
            options = {
                "address": "local",
                "include_dashboard": False,
                "object_store_memory": buckets + OBJECT_STORE_SLACK_BYTES,
            }
        try:
            ray.init(**options, logging_level=logging.ERROR, log_to_driver=False, configure_logging=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise RunFailed(f"cluster.address = {spec.address!r}: Ray cannot be reached: {error}") from error
        self._connected = True

    def start(self, pools: dict[str, list[Prompt]]) -> Actors:
        """Reserve the bundles and start all actors side by side; returns when all are ready."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        spec = self._spec
        wanted = bundles(spec)
        self._group = reserve(wanted, spec.limits.placement_timeout_s)
        pools_ref = ray.put(pools)
        workers_n, ranks_n = spec.cluster.rollout_workers, spec.learner.ranks
        colocated = spec.cluster.placement == "colocated"

        def options(bundle: int, name: str, cpus: float, gpus: float, **more: Any) -> dict[str, Any]:
            # Colocated actors take turns, so each counts half of what it needs.
            share = 2 if colocated else 1
            if gpus == 1 and spec.drafter.trains:
                gpus -= DRAFTER_GPU
            return {
                "num_cpus": cpus / share,
                "num_gpus": gpus / share,
                "name": f"{spec.run.name}-{os.getpid()}-{name}",
                "scheduling_strategy": PlacementGroupSchedulingStrategy(self._group, bundle),
                "runtime_env": {"env_vars": self._environment(name, int(cpus), gpus)},
                **more,
            }

        workers = {}
        slots = _slots_on_node(self._group, workers_n)
        for i in range(workers_n):
            name = f"rollout-{i}"
            c = spec.cluster
            actor = ray.remote(RolloutWorker).options(
                **options(i, name, c.cpus_per_rollout_worker, c.gpus_per_rollout_worker, max_concurrency=8)
            )
            workers[name] = self._keep(actor.remote(self._engine_config(slots[i]), spec.task, pools_ref, spec.run.seed))
        ranks = []
        for i in range(ranks_n):
            c = spec.cluster
            bundle = i if colocated else workers_n + i
            actor = ray.remote(LearnerRank).options(
                **options(bundle, f"learner-{i}", c.cpus_per_learner_rank, c.gpus_per_learner_rank)
            )
            ranks.append(self._keep(actor.remote(self._learner_config(), i, spec.task, pools_ref)))
        drafters = {}
        for i, name in enumerate(workers if spec.drafter.trains else []):
            # They count for nothing: they run on a worker's cores while it has no use for them.
            gpu = DRAFTER_GPU * bool(spec.cluster.gpus_per_rollout_worker)
            actor = ray.remote(DrafterActor).options(**options(i, f"drafter-{i}", 0, gpu, max_concurrency=4))
            drafters[name] = self._keep(actor.remote(self._drafter_config(slots[i])))
        allocator = self._start_allocator(pools["train"])
        timeout = spec.limits.start_timeout_s
        host, port = wait([ranks[0].address.remote()], timeout, "learner rank 0")[0]
        starting = [rank.start.remote(host, port) for rank in ranks] + [w.ready.remote() for w in workers.values()]
        versions = wait(starting, timeout, "engines and learner ranks to start")
        merged = {key: value for found in versions for key, value in found.items()} | {"ray": ray.__version__}
        return Actors(workers, ranks, allocator, dict(sorted(merged.items())), drafters, self._head_dir)

    def _keep(self, handle: Any) -> Any:
        self._handles.append(handle)
        return handle

    def _environment(self, name: str, cpus: int, gpus: float) -> dict[str, str]:
        variables = {"OMP_NUM_THREADS": str(max(cpus, 1)), "TAILRACE_LOG": self._log(name)}
        # Compiling a handful of small functions takes an engine 10 s of its start on CPU, and gains nothing there.
        return variables if gpus else {**variables, "TORCHDYNAMO_DISABLE": "1"}

    def _log(self, name: str) -> str:
        return str(self._run.logs / f"{name}.log")

    def _start_allocator(self, pool: list[Prompt]) -> Any | None:
        import ray

        spec = self._spec
        if spec.allocator is None:
            return None
        actor = ray.remote(AllocatorActor).options(
            num_cpus=0, runtime_env={"env_vars": {"TAILRACE_LOG": self._log("allocator")}}
        )
        return self._keep(actor.remote(**allocator_arguments(spec, pool)))

    def _engine_config(self, slot: int) -> EngineConfig:
        spec = self._spec
        gpus = spec.cluster.gpus_per_rollout_worker
        return EngineConfig(
            model_dir=self._model_dir,
            dtype=self._dtype,
            context_tokens=spec.model.context_tokens,
            max_running_requests=spec.rollout.max_running_requests,
            kv_cache_bytes=None if gpus else int(spec.rollout.kv_cache_gib * 2**30),
            gpu_memory_fraction=spec.rollout.gpu_memory_fraction,
            tensor_parallel=max(gpus, 1),
            first_core=None if gpus else slot * spec.cluster.cpus_per_rollout_worker,
            cores=spec.cluster.cpus_per_rollout_worker,
            seed=spec.run.seed,
            transfer="nccl" if self._nccl else BACKEND,
            speculation=speculation(spec, self._head_dir),
            sleeps=spec.drafter.train.sleep,
        )

    def _drafter_config(self, slot: int) -> DrafterConfig:
        spec = self._spec
        gpus, cores = spec.cluster.gpus_per_rollout_worker, spec.cluster.cpus_per_rollout_worker
        return DrafterConfig(
            head_dir=str(self._head_dir),
            target_dir=self._model_dir,
            spec=spec.drafter.train,
            max_draft_tokens=spec.drafter.max_draft_tokens,
            temperature=spec.rollout.temperature,
            first_core=None if gpus else slot * cores,
            cores=cores,
            seed=derive_seed(spec.run.seed, "drafter", slot) % 2**32,
        )

    def _learner_config(self) -> LearnerConfig:
        spec = self._spec
        return LearnerConfig(
            model_dir=self._model_dir,
            dtype=self._dtype,
            spec=spec.learner,
            temperature=spec.rollout.temperature,
            threads=spec.cluster.cpus_per_learner_rank,
            device="cuda" if spec.cluster.gpus_per_learner_rank else "cpu",
            seed=derive_seed(spec.run.seed, "learner") % 2**32,
            bucket_bytes=spec.rollout.publish_bucket_mib * 2**20,
            gpus_per_worker=spec.cluster.gpus_per_rollout_worker if self._nccl else 0,
            longest_response=spec.rollout.max_response_tokens,
            tap=tap(spec, self._head_dir),
        )


def reserve(wanted: Sequence[dict[str, float]], timeout_s: float) -> Any:
    """A placement group of these bundles. Raises RunFailed with what is asked and what is there."""
    import ray

    wanted = [{key: amount for key, amount in bundle.items() if amount} for bundle in wanted]
    group = ray.util.placement_group(wanted, strategy="PACK")
    if not group.wait(timeout_s):
        ray.util.remove_placement_group(group)
        asked = {key: sum(bundle.get(key, 0) for bundle in wanted) for key in {k for b in wanted for k in b}}
        there = {key: ray.cluster_resources().get(key, 0) for key in asked}
        free = {key: ray.available_resources().get(key, 0) for key in asked}
        raise RunFailed(
            f"the cluster cannot hold the {len(wanted)} bundles within limits.placement_timeout_s = {timeout_s:g}: "
            f"asked {_listed(asked)} in bundles of {'; '.join(_listed(b) for b in wanted[:4])}; "
            f"the cluster has {_listed(there)}, free {_listed(free)}"
        )
    return group


def wait(refs: Sequence[Any], timeout_s: float, what: str) -> list[Any]:
    """Results of Ray calls. Raises ActorLost naming `what` on the deadline and where a process has died, RunFailed with
    the cause on an error inside an actor."""
    import ray

    try:
        return ray.get(list(refs), timeout=timeout_s)
    except ray.exceptions.GetTimeoutError as error:
        raise ActorLost(f"waited {timeout_s:g} s for {what}") from error
    except ray.exceptions.RayTaskError as error:
        cause: Any = error
        while isinstance(cause, ray.exceptions.RayTaskError) and getattr(cause, "cause", None) is not None:
            cause = cause.cause  # an actor that called an actor
        # An actor that called one which died has only failed with it.
        kind = ActorLost if isinstance(cause, ray.exceptions.RayError) else RunFailed
        raise kind(f"{what}: {type(cause).__name__}: {_first_line(cause)}") from error
    except ray.exceptions.RayError as error:
        raise ActorLost(f"{what}: {type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: Any) -> str:
    """What Ray says of a dead actor goes on for a page."""
    import ray

    return str(error).splitlines()[0] if isinstance(error, ray.exceptions.RayError) else str(error)


def _listed(resources: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in sorted(resources.items())) or "nothing"


def _slots_on_node(group: Any, workers: int) -> list[int]:
    """For each worker its index among the workers of its node, which decides the cores that it is pinned to."""
    import ray

    nodes = ray.util.placement_group_table(group)["bundles_to_node_id"]
    seen: dict[str, int] = {}
    slots = []
    for i in range(workers):
        slots.append(seen.get(nodes[i], 0))
        seen[nodes[i]] = slots[-1] + 1
    return slots
