"""The sections of a spec that the service itself owns: run, cluster, limits."""

from typing import Literal

from pydantic import Field, field_validator

from trainer.spec import PathText, Section

LONGEST_WAIT_S = 7 * 24 * 3600
"""Upper bound of every limit: a wait beyond it is no deadline."""


class RunSpec(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """Name of the run; also the last part of its directory."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Root of the one seed tree: data order, allocator ties, sampling, weights."""
    directory: PathText = "runs"
    """Where run directories are created; the run lives in `directory/name`."""
    deterministic: bool = False
    """Fix assignment and admission order, so that the same seed gives the same tokens on one machine, at some cost in
    load balance."""
    checkpoint_every_epochs: int = Field(default=10, ge=1)
    """RL epochs between checkpoints; resume replays the epochs since the newest one from their stored rollouts."""
    checkpoint_every_steps: int = Field(default=500, ge=1)
    """Steps of pretrain and sft stages between checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints kept."""
    sinks: list[Literal["tensorboard", "mlflow", "wandb"]] = []
    """Where each epoch's metrics and each evaluation are sent beside the run directory, through the sink's own library
    and its own settings in the environment. One that fails is switched off; the run goes on."""

    @field_validator("sinks")
    @classmethod
    def _sinks_differ(cls, sinks: list[str]) -> list[str]:
        if len(set(sinks)) < len(sinks):
            raise ValueError("names a sink twice")
        return sinks


class ClusterSpec(Section):
    address: str | None = Field(default=None, pattern=r"^(auto|[A-Za-z0-9._-]+:[0-9]{1,5})$")
    """Ray cluster to join (`auto` or host:port); without one a Ray of this machine's own is started and stopped."""
    cpus_per_rollout_worker: int = Field(default=1, ge=1, le=1024)
    """Cores of one rollout worker; each engine is pinned to its own."""
    gpus_per_rollout_worker: int = Field(default=0, ge=0, le=1024)
    """GPUs of one rollout worker."""
    cpus_per_learner_rank: int = Field(default=1, ge=1, le=1024)
    """Cores (and torch threads) of one learner rank."""
    gpus_per_learner_rank: int = Field(default=0, ge=0, le=1)
    """GPUs of one learner rank."""
    placement: Literal["colocated", "disaggregated"] = "colocated"
    """`colocated`: learner ranks share the rollout workers' bundles and take turns with them; `disaggregated`: bundles
    of their own."""
    worker_labels: dict[str, str] = {}
    """Labels that a node must have to hold rollout workers, for example `{"ray.io/accelerator-type": "H200"}`."""
    learner_labels: dict[str, str] = {}
    """Labels that a node must have to hold learner ranks."""
    metrics_host: str = Field(default="127.0.0.1", pattern=r"^[A-Za-z0-9:][A-Za-z0-9:._-]*$", max_length=253)
    """Address or name at which the driver's Prometheus endpoint listens; `0.0.0.0` is every IPv4 interface. It asks for
    no token: whoever reaches it reads the metrics."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Port of the driver's Prometheus endpoint; 0 picks a free one and prints it."""


class LimitsSpec(Section):
    placement_timeout_s: float = Field(default=60, gt=0, le=LONGEST_WAIT_S)
    """Longest wait for the cluster to hold the bundles of the run, or that of a lost worker."""
    queue_timeout_s: float | None = Field(default=None, gt=0, le=LONGEST_WAIT_S)
    """Takes the place of `placement_timeout_s` when the run starts, or starts anew; `tailrace submit` sets it."""
    start_timeout_s: float = Field(default=300, gt=0, le=LONGEST_WAIT_S)
    """Longest wait for engines and learner ranks to be ready."""
    rollout_timeout_s: float = Field(default=600, gt=0, le=LONGEST_WAIT_S)
    """Longest wait for any group to come back while groups are out."""
    learn_timeout_s: float = Field(default=600, gt=0, le=LONGEST_WAIT_S)
    """Longest wait for one learner call: an update, a batch of pre-training steps, a checkpoint."""
    publish_timeout_s: float = Field(default=300, gt=0, le=LONGEST_WAIT_S)
    """Longest wait for new weights to be in service on every engine."""
    worker_timeout_s: float = Field(default=120, gt=0, le=LONGEST_WAIT_S)
    """Longest silence of a rollout worker that was asked something, and longest step of its engine; then it is taken as
    lost. Half of it makes it suspect."""
    worker_restarts: int = Field(default=10, ge=0, le=1_000_000)
    """Rollout workers started again in place of lost ones since the run last went back to a checkpoint, and drafters as
    many; when none is left, the next loss of a worker fails the run, which `tailrace resume` then continues."""
    group_attempts: int = Field(default=3, ge=1, le=1000)
    """Times that a group may be lost with the worker that samples it, before the run fails and names it."""
    restarts: int = Field(default=3, ge=0, le=1_000_000)
    """Times that this process may go back to the newest checkpoint with new actors, after a learner rank or the
    allocator died or stopped answering; once more fails the run, which `tailrace resume` then continues."""
    dropped_updates: int = Field(default=3, ge=0, le=1_000_000)
    """Optimizer steps with a loss or gradient that is not finite, over the run; one more fails it. Such a step is
    dropped; the rollouts of a policy update are written to `dropped/` in the run directory, a supervised batch is a
    function of the seed and the step that the journal names."""
