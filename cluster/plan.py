"""What a spec means, before anything is started: prompts, budget, steps, bundles, memory, and what is lacking for them.

The pools are really built, so that whatever is wrong with the task shows up here and not after the engines are up. A
model that would have to be downloaded or converted first is left alone: its prompts are counted, not measured.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.bundles import bundles
from cluster.capacity import lacks, nodes_of
from cluster.memory import Share, estimate, host_bytes
from cluster.remarks import objective_remarks
from cluster.spec import Spec
from cluster.user_code import check_reward
from trainer.spec import EvaluateStage, TaskSpec
from trainer.stages import MergeStage, ParallelStage, PretrainStage, RLStage, SftStage, Stage

if TYPE_CHECKING:
    from trainer.tasks import Pools

MOST_GENERATED = 5000
"""Prompts that a plan generates for each pool of a source; of a larger pool it takes the rest from the spec."""
ANY_LENGTH = 2**30
"""Tokens; stands for a limit that is not known."""


@dataclass(frozen=True)
class BudgetPlan:
    """The rl stages together; rollouts and tokens of training, evaluations not included."""

    rollouts: int
    """Under a token budget: those that it pays for if every response is as long as it may be."""
    epochs: int
    rollouts_per_epoch_mean: float
    rollouts_per_epoch_max: int
    group_rollouts_min: int
    group_rollouts_max: int
    groups_per_epoch_mean: float
    """If all groups are of the smallest size."""
    groups_per_epoch_max: int
    visits_per_prompt: float
    """Groups per prompt over the run, if all are of the smallest size and all prompts are alike."""
    tokens_max: int
    """Response tokens, if every response is as long as it may be."""


@dataclass(frozen=True)
class Plan:
    name: str
    run_dir: str
    stages: list[str]
    recipe: list[str]
    """What each stage does, in words."""
    prompts: dict[str, dict[str, int]]
    """Family to `train` and `heldout`."""
    budget: BudgetPlan | None
    evaluation_rollouts: int
    """Responses of all evaluate stages together; they are not part of the budget."""
    optimizer_steps: int
    """At most; fewer when the budget is spent earlier."""
    bundles: list[dict[str, float]]
    parameters: int | None
    memory: list[Share]
    memory_host_bytes: float
    lacks: list[str]
    """What the cluster or this machine does not have; empty when the run can start."""
    remarks: list[str]

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


def make_plan(spec: Spec) -> Plan:
    """Raises BadInput when the task cannot be built."""
    model_dir = _local_model(spec)
    prompts, solutions, remarks = _count_prompts(spec, model_dir)
    _check_starts(spec, model_dir)
    _check_drafter(spec, model_dir)
    questions = sum(counts["train"] for counts in prompts.values())
    budget = _budget(spec, questions)
    parameters = _parameters(spec, model_dir)
    memory = estimate(spec, parameters) if parameters else []
    if not parameters:
        remarks.append(f"memory is not estimated: that takes the config of {spec.model.source}")
    evaluations = sum(isinstance(stage, EvaluateStage) for stage in spec.recipe)
    heldout = sum(counts["heldout"] for counts in prompts.values())
    return Plan(
        name=spec.run.name,
        run_dir=str(spec.run_dir),
        stages=[stage.stage for stage in spec.recipe],
        recipe=[_in_words(stage, spec, questions, solutions) for stage in spec.recipe],
        prompts=prompts,
        budget=budget,
        evaluation_rollouts=evaluations * heldout * spec.evaluation.samples_per_prompt,
        optimizer_steps=sum(_steps(stage, spec, questions, solutions) for stage in spec.recipe),
        bundles=bundles(spec),
        parameters=parameters,
        memory=memory,
        memory_host_bytes=host_bytes(memory),
        lacks=_lacks(spec, host_bytes(memory)),
        remarks=remarks + _budget_remarks(spec, budget) + objective_remarks(spec),
    )


def _steps(stage: Stage, spec: Spec, questions: int, solutions: int) -> int:
    """Optimizer steps of a stage, at most; `questions` and their `solutions` are those of the training pool."""
    if isinstance(stage, PretrainStage):
        return stage.steps
    if isinstance(stage, SftStage):
        from trainer.solutions import sft_steps

        return sft_steps(stage, questions, solutions)
    if isinstance(stage, RLStage):
        return stage.epochs * spec.learner.minibatches * spec.learner.passes
    if isinstance(stage, ParallelStage):
        own = 0 if stage.combine == "sum_losses" else 1
        return stage.epochs * (spec.learner.minibatches * spec.learner.passes + own)
    return 0


def _in_words(stage: Stage, spec: Spec, questions: int, solutions: int) -> str:
    """One line about a stage."""
    if isinstance(stage, EvaluateStage):
        return stage.stage
    if isinstance(stage, MergeStage):
        shares = [f"{share:g} x {path}" for share, path in zip(stage.weights, stage.models, strict=True)]
        return f"merge: {' + '.join(shares)}"
    steps = f"{_steps(stage, spec, questions, solutions):,} steps"
    if isinstance(stage, PretrainStage):
        text = f"{steps} of {stage.batch_examples:,} examples, mixture {stage.mixture or 'of equal shares'}"
        if stage.checkpoint_tokens:
            text += f", exports at {', '.join(f'{mark:,}' for mark in stage.checkpoint_tokens)} tokens"
    elif isinstance(stage, SftStage):
        text = f"{steps} of {stage.batch_examples:,} examples, {stage.solutions} of the reference solutions"
    elif isinstance(stage, ParallelStage):
        text = f"{stage.epochs:,} epochs, {stage.combine} with {stage.sft.batch_examples:,} solutions per update"
    else:
        text = f"{stage.epochs:,} epochs"
    return f"{stage.stage}: {text}" + (f", from {stage.start}" if stage.start else "")


def _budget(spec: Spec, prompts: int) -> BudgetPlan | None:
    a, epochs = spec.allocator, spec.rl_epochs
    if a is None or not epochs:
        return None
    longest = spec.rollout.max_response_tokens
    rollouts = a.budget if a.currency == "rollouts" else a.budget // longest
    return BudgetPlan(
        rollouts=rollouts,
        epochs=epochs,
        rollouts_per_epoch_mean=rollouts / epochs,
        rollouts_per_epoch_max=min(a.max_rollouts_per_epoch, prompts * a.max_group_rollouts),
        group_rollouts_min=a.unit_rollouts,
        group_rollouts_max=a.max_group_rollouts,
        groups_per_epoch_mean=rollouts / epochs / a.unit_rollouts,
        groups_per_epoch_max=min(a.max_rollouts_per_epoch // a.unit_rollouts, prompts),
        visits_per_prompt=rollouts / a.unit_rollouts / prompts,
        tokens_max=a.budget if a.currency == "tokens" else rollouts * longest,
    )


def _budget_remarks(spec: Spec, budget: BudgetPlan | None) -> list[str]:
    if budget is None:
        return []
    remarks = []
    reachable = budget.epochs * budget.rollouts_per_epoch_max
    if reachable < budget.rollouts:
        remarks.append(
            f"the budget of {budget.rollouts:,} rollouts cannot be spent: {budget.epochs:,} epochs x "
            f"{budget.rollouts_per_epoch_max:,}, the largest group for every prompt, = {reachable:,}"
        )
    if spec.learner.minibatches > budget.groups_per_epoch_mean:
        remarks.append(
            f"learner.minibatches = {spec.learner.minibatches} is more than the "
            f"{budget.groups_per_epoch_mean:.1f} groups of a mean epoch"
        )
    return remarks


def _count_prompts(spec: Spec, model_dir: Path | None) -> tuple[dict[str, dict[str, int]], int, list[str]]:
    """Prompts by family, reference solutions of the training prompts, and remarks on what was not checked.

    Raises BadInput for anything wrong with the task.
    """
    from trainer.solutions import count_solutions
    from trainer.tasks import family_of

    if spec.task.reward is not None:
        check_reward(spec.task.reward)
    task = spec.task.model_copy(deep=True)
    unchecked = {"train": Counter[str](), "heldout": Counter[str]()}
    for source in task.sources:
        if source.kind == "reasoning_gym":
            family = family_of(source)
            unchecked["train"][family] += max(source.train_prompts - MOST_GENERATED, 0)
            unchecked["heldout"][family] += max(source.heldout_prompts - MOST_GENERATED, 0)
            source.train_prompts = min(source.train_prompts, MOST_GENERATED)
            source.heldout_prompts = min(source.heldout_prompts, MOST_GENERATED)
    pools, remarks = _pools(spec, task, model_dir)
    if any(counts.total() for counts in unchecked.values()):
        remarks.append(f"of each pool of a source only the first {MOST_GENERATED:,} prompts were generated and checked")
    train, heldout = (Counter(prompt.family for prompt in pool) for pool in (pools.train, pools.heldout))
    train, heldout = train + unchecked["train"], heldout + unchecked["heldout"]
    counts = {f: {"train": train[f], "heldout": heldout[f]} for f in sorted(train | heldout)}
    return counts, count_solutions(pools.train) + unchecked["train"].total(), remarks


def _pools(spec: Spec, task: TaskSpec, model_dir: Path | None) -> "tuple[Pools, list[str]]":
    """The pools as the run would build them, as far as the model's tokenizer is at hand."""
    from cluster.stages import check_solutions
    from trainer.models import character_tokenizer, load_tokenizer
    from trainer.tasks import build_pools

    room = spec.model.context_tokens - spec.rollout.max_response_tokens
    if spec.model.source == "tiny" or model_dir:
        tokenizer = load_tokenizer(model_dir) if model_dir else character_tokenizer(spec.model.context_tokens)
        pools = build_pools(task, tokenizer, room)
        check_solutions(spec, pools.train, tokenizer)
        return pools, []
    # Any tokenizer will do to read the sources; a template stands in for the chat template that is not here.
    task.template, task.system_prompt = task.template or "{question}", None
    pools = build_pools(task, character_tokenizer(ANY_LENGTH), ANY_LENGTH)
    return pools, [f"prompt lengths are not checked: that takes the tokenizer of {spec.model.source}"]


def _local_model(spec: Spec) -> Path | None:
    """The model's directory if the source is one, checked. Raises BadInput when it does not hold a model."""
    from trainer.models import prepare_model

    source = spec.model.source
    if not (source.startswith((".", "/", "~")) or source.count("/") > 1 or Path(source).is_dir()):
        return None
    return prepare_model(spec.model, spec.run_dir, spec.run.seed, "float32")  # of a directory it only checks the files


def _check_starts(spec: Spec, model_dir: Path | None) -> None:
    """Raises BadInput where a stage starts from weights that are not there or do not fit the model."""

    from cluster.checkpoint import RunDirectory
    from cluster.stages import check_starts
    from trainer.models import load_config, tiny_config

    if model_dir:
        config = load_config(model_dir)
    else:
        config = tiny_config(spec.model.tiny, spec.model.context_tokens) if spec.model.source == "tiny" else None
    check_starts(spec, RunDirectory(spec.run_dir), config)


def _check_drafter(spec: Spec, model_dir: Path | None) -> None:
    """Raises BadInput where the drafter does not fit the model, as far as the model's config is at hand."""
    from cluster.heads import check_drafter
    from trainer.models import tiny_config

    if model_dir:
        check_drafter(spec, json.loads((model_dir / "config.json").read_text()))
    elif spec.model.source == "tiny":
        check_drafter(spec, tiny_config(spec.model.tiny, spec.model.context_tokens).to_dict())


def _parameters(spec: Spec, model_dir: Path | None) -> int | None:
    """Parameters of the model, None when that would take a download."""
    from trainer.models import parameter_count

    if model_dir is None and spec.model.source not in ("tiny", "smollm2"):
        return None
    return parameter_count(model_dir or spec.model)


def _lacks(spec: Spec, memory_bytes: float) -> list[str]:
    try:
        nodes = nodes_of(spec.cluster.address)
    except ConnectionError as error:
        return [f"cluster.address: {error}"]
    return lacks(bundles(spec), memory_bytes, nodes)
