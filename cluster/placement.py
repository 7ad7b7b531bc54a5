"""Ray, the bundles, and the actors in them: started together at first, and one by one where a process was lost."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.allocator import AllocatorActor
from actors.drafter import DrafterActor
from actors.learner import LearnerRank
from actors.rollout import RolloutWorker
from cluster.allocation import allocator_arguments
from cluster.checkpoint import RunDirectory
from cluster.configs import Configs
from cluster.errors import RunFailed
from cluster.places import Places, leaving_nodes
from cluster.spec import Spec
from cluster.waits import wait
from trainer.types import Prompt

OBJECT_STORE_SLACK_BYTES = 256 * 2**20
"""Room in a local object store beside two publish buckets: rollouts, prompts, messages."""

DRAFTER_GPU = 0.02
"""Share of its worker's GPU that Ray books for a drafter, so that it sees that GPU and no other."""


@dataclass
class Actors:
    """Handles of everything that a run has started."""

    workers: dict[str, Any]
    """Those that stand; kept up to date by `cluster.workers`."""
    cores: dict[str, list[int]]
    """That their engines are pinned to; none on GPU."""
    ranks: list[Any]
    allocator: Any
    """None without an rl stage."""
    versions: dict[str, str]
    drafters: dict[str, Any]
    """By the rollout worker beside which they sit; empty where no drafter is trained."""
    head_dir: Path | None
    """The head that the engines started with."""
    crew: Any = None
    """Starts another process for one that was lost; None where nobody does."""


class Cluster:
    """The run's share of a Ray cluster, as a context manager; leaves no process behind."""

    def __init__(self, spec: Spec, run: RunDirectory, model_dir: str, dtype: str, head_dir: Path | None) -> None:
        self._spec, self._run, self._head_dir = spec, run, head_dir
        self._places = Places(spec)
        self._connected = False
        # Two ranks of one NCCL group cannot share a device, so colocated weights go through the object store.
        c = spec.cluster
        # A drafter's do too, and an engine has one way in.
        both_on_gpus = bool(c.gpus_per_rollout_worker and c.gpus_per_learner_rank)
        fixed = spec.rollout.workers.min == spec.rollout.workers.max
        # Its group is made once: no engine joins it, and none leaves.
        self._nccl = both_on_gpus and c.placement == "disaggregated" and not spec.drafter.learned and fixed
        self._configs = Configs(spec, model_dir, dtype, head_dir, self._nccl)
        self._handles: list[Any] = []
        self._started = 0
        self._pools: Any = None

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
        if ray.is_initialized():
            self._places.leave()
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

        spec = self._spec
        self._places.reserve(self._run.go_on)
        self._pools = ray.put(pools)
        names = [f"rollout-{i}" for i in range(spec.rollout.workers.min)]
        workers = {name: self.start_worker(name) for name in names}
        ranks = [self._start_rank(i) for i in range(spec.learner.ranks)]
        drafters = {name: self.start_drafter(name) for name in names if spec.drafter.trains}
        allocator = self._start_allocator(pools["train"])
        timeout = spec.limits.start_timeout_s
        host, port = wait([ranks[0].address.remote()], timeout, "learner rank 0")[0]
        starting = [rank.start.remote(host, port) for rank in ranks]
        found = wait(
            [w.ready.remote() for w in workers.values()] + starting, timeout, "engines and learner ranks to start"
        )
        cores = {name: cores for name, (_, cores) in zip(names, found, strict=False)}
        for name, drafter in drafters.items():
            drafter.pin.remote(cores[name])
        versions = {"ray": ray.__version__}
        for of_one in [versions for versions, _ in found[: len(names)]] + found[len(names) :]:
            versions |= of_one
        return Actors(workers, cores, ranks, allocator, dict(sorted(versions.items())), drafters, self._head_dir, self)

    # One process each.

    def start_worker(self, name: str) -> Any:
        """A rollout worker in its bundle; it is ready when its `ready` answers."""
        import ray

        c = self._spec.cluster
        options = self._options(
            self._places.bundle_of(name), name, c.cpus_per_rollout_worker, c.gpus_per_rollout_worker
        )
        actor = ray.remote(RolloutWorker).options(**options, max_concurrency=8)
        return self._keep(actor.remote(self._configs.engine(), self._spec.task, self._pools, self._spec.run.seed))

    def start_drafter(self, worker: str) -> Any:
        """A drafter beside a rollout worker. It counts for nothing: it runs on the worker's cores while that has no use
        for them."""
        import ray

        name = worker.replace("rollout", "drafter")
        gpu = DRAFTER_GPU * bool(self._spec.cluster.gpus_per_rollout_worker)
        options = self._options(self._places.bundle_of(worker), name, 0, gpu)
        actor = ray.remote(DrafterActor).options(**options, max_concurrency=4)
        return self._keep(actor.remote(self._configs.drafter(int(name.rpartition("-")[2]))))

    def end(self, handle: Any) -> None:
        """Kill a process; nobody waits for it."""
        import ray

        ray.kill(handle)
        self._handles.remove(handle)

    @property
    def replaces(self) -> bool:
        """Whether a single worker can be started again; a group of NCCL takes in no new engine."""
        return not self._nccl

    def ask_place(self, worker: str) -> None:
        """A bundle for a further rollout worker; nobody waits for it."""
        self._places.ask(worker)

    def give_back_place(self, worker: str) -> None:
        self._places.give_back(worker)

    def node_of(self, worker: str) -> str | None:
        """The node that the worker's bundle is on; None while it is on none."""
        return self._places.node_of(worker)

    def rank_nodes(self) -> set[str]:
        """The nodes that learner ranks are on."""
        return self._places.nodes_of_ranks()

    def leaving_nodes(self) -> dict[str, float]:
        """Nodes that have been told to go, and when, in seconds since 1970 (0: not said)."""
        return leaving_nodes()

    def _start_rank(self, index: int) -> Any:
        import ray

        c = self._spec.cluster
        bundle = index if c.placement == "colocated" else self._spec.rollout.workers.min + index
        options = self._options(
            self._places.base(bundle), f"learner-{index}", c.cpus_per_learner_rank, c.gpus_per_learner_rank
        )
        actor = ray.remote(LearnerRank).options(**options)
        return self._keep(actor.remote(self._configs.learner(), index, self._spec.task, self._pools))

    def _start_allocator(self, pool: list[Prompt]) -> Any | None:
        import ray

        spec = self._spec
        if spec.allocator is None:
            return None
        bundle = 0 if spec.cluster.placement == "colocated" else spec.rollout.workers.min
        actor = ray.remote(AllocatorActor).options(**self._options(self._places.base(bundle), "allocator", 0, 0))
        return self._keep(actor.remote(**allocator_arguments(spec, pool)))

    def _options(self, bundle: tuple[Any, int], name: str, cpus: float, gpus: float) -> dict[str, Any]:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        spec = self._spec
        # Colocated actors take turns, so each counts half of what it needs.
        share = 2 if spec.cluster.placement == "colocated" else 1
        if gpus == 1 and spec.drafter.trains:
            gpus -= DRAFTER_GPU
        self._started += 1
        return {
            "name": f"{spec.run.name}-{os.getpid()}-{self._started}-{name}",
            "num_cpus": cpus / share,
            "num_gpus": gpus / share,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(*bundle),
            "runtime_env": {"env_vars": self._environment(name, int(cpus), gpus)},
        }

    def _keep(self, handle: Any) -> Any:
        self._handles.append(handle)
        return handle

    def _environment(self, name: str, cpus: int, gpus: float) -> dict[str, str]:
        log = str(self._run.logs / f"{name}.log")
        variables = {"OMP_NUM_THREADS": str(max(cpus, 1)), "TAILRACE_LOG": log}
        # Compiling a handful of small functions takes an engine 10 s of its start on CPU, and gains nothing there.
        return variables if gpus else {**variables, "TORCHDYNAMO_DISABLE": "1"}
