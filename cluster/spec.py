"""The spec: one YAML file that says everything about a run. Imports no torch, no Ray, no vLLM.

Each room owns its section (`<room>/spec.py`), the service its own (`sections.py`); this file composes them, loads
YAML with `--set path=value` overrides, and turns every violation into one `BadInput` that names the field.
"""

import os
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from actors.spec import RolloutSpec
from allocator.spec import AllocatorSpec
from cluster.sections import ClusterSpec, LimitsSpec, RunSpec
from cluster.spec_errors import explain
from cluster.yaml_text import parse_yaml, read_yaml
from drafter.spec import DrafterSpec
from trainer.spec import EvaluationSpec, LearnerSpec, ModelSpec, Section, TaskSpec
from trainer.stages import Budgeted, Stage, check_mixtures, check_recipe
from trainer.types import BadInput


class Spec(Section):
    """A run, complete."""

    run: RunSpec
    model: ModelSpec
    task: TaskSpec
    recipe: list[Stage] = Field(min_length=1)
    """Stages in order."""
    allocator: AllocatorSpec | None = None
    """Needed by `rl` and `parallel` stages."""
    rollout: RolloutSpec
    learner: LearnerSpec = LearnerSpec()
    drafter: DrafterSpec = DrafterSpec()
    cluster: ClusterSpec = ClusterSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    limits: LimitsSpec = LimitsSpec()

    @property
    def run_dir(self) -> Path:
        return Path(self.run.directory) / self.run.name

    @property
    def rl_epochs(self) -> int:
        """Epochs of all rl and parallel stages together (K in CERO)."""
        return sum(stage.epochs for stage in self.recipe if isinstance(stage, Budgeted))

    @model_validator(mode="after")
    def _stages_have_what_they_need(self) -> Self:
        kinds = [stage.stage for stage in self.recipe]
        budgeted = next((kind for kind in ("rl", "parallel") if kind in kinds), None)
        if budgeted and self.allocator is None:
            article = "an" if budgeted == "rl" else "a"
            raise ValueError(
                f"recipe has {article} {budgeted} stage, so the spec needs an allocator section with budget_rollouts "
                "or budget_tokens"
            )
        heldout = [s.heldout_prompts or getattr(s, "heldout_path", None) for s in self.task.sources]
        if "evaluate" in kinds and not any(heldout):
            raise ValueError("recipe has an evaluate stage, but no task source holds out any prompts (heldout_prompts)")
        check_mixtures(self.task)
        check_recipe(self.recipe, self.task)
        return self

    @model_validator(mode="after")
    def _budget_fits_the_epochs(self) -> Self:
        a = self.allocator
        if a is None or not self.rl_epochs:
            return self
        longest = self.rollout.max_response_tokens
        each = 1 if a.currency == "rollouts" else longest
        if a.budget > self.rl_epochs * a.max_rollouts_per_epoch * each:
            raise ValueError(
                f"allocator.budget_{a.currency} = {a.budget} cannot be spent: {self.rl_epochs} epochs x "
                f"max_rollouts_per_epoch {a.max_rollouts_per_epoch}{'' if each == 1 else f' x {longest} tokens'} = "
                f"{self.rl_epochs * a.max_rollouts_per_epoch * each}"
            )
        if a.currency == "tokens" and a.budget < a.unit_rollouts * longest:
            raise ValueError(
                f"allocator.budget_tokens = {a.budget} does not hold one group of unit_rollouts {a.unit_rollouts} x "
                f"rollout.max_response_tokens {longest}"
            )
        return self

    @model_validator(mode="after")
    def _objective_suits_the_groups(self) -> Self:
        a, objective = self.allocator, self.learner.objective
        if a is None or not self.rl_epochs:
            return self
        alone = ("leave_one_out", "group_mean", "z_score", "batch_z", "maxrl", "pass_at_k")
        least = objective.pass_k if objective.advantage == "pass_at_k" else 2
        if objective.advantage in alone and a.max_group_rollouts < least:
            raise ValueError(
                f"learner.objective.advantage: {objective.advantage} needs groups of at least {least}, and "
                f"allocator.unit_rollouts x max_units_per_prompt = {a.max_group_rollouts}: no response would ever have "
                "an advantage (history, shrinkage and raw work with groups of one)"
            )
        return self

    @model_validator(mode="after")
    def _speculation_can_repeat(self) -> Self:
        if self.run.deterministic and self.drafter.method != "none":
            raise ValueError(
                f"run.deterministic excludes drafter.method = {self.drafter.method}: how much is drafted depends "
                "on measured times, and with it which random number a token gets"
            )
        return self

    @model_validator(mode="after")
    def _engines_can_sleep(self) -> Self:
        if not self.rollout.sleep:
            return self
        if not self.cluster.gpus_per_rollout_worker:
            raise ValueError("rollout.sleep frees GPU memory, and cluster.gpus_per_rollout_worker is 0")
        if self.learner.stale_epochs:
            raise ValueError("rollout.sleep excludes learner.stale_epochs: engines sample while the learner works")
        return self

    @model_validator(mode="after")
    def _workers_can_repeat(self) -> Self:
        workers = self.rollout.workers
        if self.run.deterministic and workers.min != workers.max:
            raise ValueError(
                f"run.deterministic needs a fixed number of rollout.workers, not {workers.min} to {workers.max}: when "
                "one joins depends on measured times, and with it which groups are decoded together"
            )
        return self

    @model_validator(mode="after")
    def _drafter_fits_the_gpus(self) -> Self:
        if self.drafter.train.sleep and not self.cluster.gpus_per_rollout_worker:
            raise ValueError("drafter.train.sleep frees GPU memory, and cluster.gpus_per_rollout_worker is 0")
        if self.drafter.trains and self.tensor_parallel > 1:
            raise ValueError(
                "a drafter trains beside an engine of one process: with cluster.gpus_per_rollout_worker > 1, or "
                "rollout.tensor_parallel > 1, give a drafter.source and set drafter.train.enabled = false"
            )
        return self

    @model_validator(mode="after")
    def _engines_can_be_split(self) -> Self:
        gpus, cpus = self.cluster.gpus_per_rollout_worker, self.cluster.cpus_per_rollout_worker
        processes = self.tensor_parallel
        if gpus and processes != gpus:
            raise ValueError(
                f"rollout.tensor_parallel = {processes}: an engine has one process per GPU of its worker, and "
                f"cluster.gpus_per_rollout_worker = {gpus}"
            )
        if not gpus and cpus % processes:
            raise ValueError(
                f"cluster.cpus_per_rollout_worker = {cpus} cannot be shared out evenly among rollout.tensor_parallel = "
                f"{processes} processes of an engine"
            )
        return self

    @property
    def tensor_parallel(self) -> int:
        """Processes of one engine."""
        return self.rollout.tensor_parallel or max(self.cluster.gpus_per_rollout_worker, 1)

    @model_validator(mode="after")
    def _context_holds_the_response(self) -> Self:
        if self.rollout.max_response_tokens >= self.model.context_tokens:
            raise ValueError(
                f"rollout.max_response_tokens = {self.rollout.max_response_tokens} leaves no room for a prompt in "
                f"model.context_tokens = {self.model.context_tokens}"
            )
        if self.learner.micro_batch_tokens < self.model.context_tokens:
            raise ValueError(
                f"learner.micro_batch_tokens = {self.learner.micro_batch_tokens} cannot hold one sequence of "
                f"model.context_tokens = {self.model.context_tokens}"
            )
        return self

    @model_validator(mode="after")
    def _bundles_can_be_shared(self) -> Self:
        c, workers = self.cluster, self.rollout.workers
        if c.placement == "colocated" and self.learner.ranks > workers.min:
            raise ValueError(
                f"colocated placement puts one learner rank beside one rollout worker: learner.ranks = "
                f"{self.learner.ranks} > rollout.workers = {workers.min}"
            )
        clash = [
            key for key in c.worker_labels.keys() & c.learner_labels if c.worker_labels[key] != c.learner_labels[key]
        ]
        if c.placement == "colocated" and clash:
            raise ValueError(
                f"colocated actors share a node: cluster.worker_labels and cluster.learner_labels differ in {clash[0]}"
            )
        if c.placement == "colocated" and c.gpus_per_rollout_worker > 1:
            raise ValueError(
                f"colocated actors share one GPU each: cluster.gpus_per_rollout_worker = {c.gpus_per_rollout_worker} "
                "needs placement: disaggregated"
            )
        return self


def load_spec(path: str | Path, overrides: list[str] | None = None) -> Spec:
    """Read, override and validate a spec file. Raises BadInput naming the file and field."""
    path = Path(path)
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise BadInput(f"{path}: the top level must be a mapping of sections, not {type(data).__name__}")
    for override in overrides or []:
        _apply_override(data, override)
    spec = parse_spec(data, origin=str(path))
    for source in spec.task.sources:
        if source.kind == "jsonl":
            source.path = _relative_to(path.parent, source.path)
            source.heldout_path = source.heldout_path and _relative_to(path.parent, source.heldout_path)
    return spec


def parse_spec(data: Any, origin: str) -> Spec:
    """Validate plain data. Raises BadInput with one line per violated field."""
    try:
        return Spec.model_validate(data)
    except ValidationError as error:
        raise BadInput("\n".join(f"{origin}: {line}" for line in explain(error, Spec))) from None


def dump_spec(spec: Spec) -> str:
    """The fully resolved spec as YAML."""
    return yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False)


def _relative_to(directory: Path, path: str) -> str:
    return path if Path(path).is_absolute() else os.path.abspath(directory / path)


def _apply_override(data: dict, override: str) -> None:
    """`--set a.b.0.c=value`: value is YAML; list items are addressed by index."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise BadInput(f"--set {override}: expected path=value, for example --set run.seed=1")
    value = parse_yaml(text, f"--set {key[:200]}")
    *parents, last = key.split(".")
    node: Any = data
    for part in parents:
        node = _child(node, part, override)
    if isinstance(node, list):
        node[_index(node, last, override)] = value
    else:
        node[last] = value


def _child(node: Any, part: str, override: str) -> Any:
    if isinstance(node, list):
        child = node[_index(node, part, override)]
    else:
        child = node.setdefault(part, {})
        if child is None:
            child = node[part] = {}
    if not isinstance(child, dict | list):
        raise BadInput(f"--set {override}: {part} is a value, it has no fields")
    return child


def _index(node: list, part: str, override: str) -> int:
    if not (part.isascii() and part.isdigit() and len(part) < 10 and int(part) < len(node)):
        raise BadInput(f"--set {override}: {part!r} is not an index into a list of {len(node)}")
    return int(part)
