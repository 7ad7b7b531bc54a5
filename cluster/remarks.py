"""What is worth knowing of a valid spec: how its objective weighs prompts, and what has no effect. Pure."""

from cluster.spec import Spec
from trainer.advantages import prompt_weight

SOLVED_SHARE = 0.1
"""Success probability of the prompt that an objective's weight is told for."""
WORTH_TELLING = 1.05
"""Smallest ratio of weights that is told."""


def objective_remarks(spec: Spec) -> list[str]:
    """In whole sentences, without a full stop."""
    return [*_reweighting(spec), *_off_policy(spec)] if spec.rl_epochs else []


def _reweighting(spec: Spec) -> list[str]:
    """Groups of unequal size that give their prompts unequal weight (OBJECTIVES.md C2)."""
    a, objective = spec.allocator, spec.learner.objective
    assert a is not None
    small, large = a.unit_rollouts, a.max_group_rollouts
    weights = [prompt_weight(objective, n, SOLVED_SHARE) for n in (small, large)]
    by_advantage = weights[1] / weights[0] if weights[0] > 0 else float("inf")
    by_reduction = large / small if objective.reduction != "prompt_mean" else 1.0
    remarks = []
    if by_advantage > WORTH_TELLING:
        remarks.append(
            f"learner.objective.advantage: {objective.advantage} weighs a prompt that is solved {SOLVED_SHARE:.0%} of "
            f"the time {by_advantage:.2g} times as much in a group of {large} as in one of {small}; leave_one_out "
            "weighs both alike"
        )
    if by_reduction > WORTH_TELLING:
        remarks.append(
            f"learner.objective.reduction: {objective.reduction} weighs a prompt by its responses, "
            f"{by_reduction:.2g} times as much in a group of {large} as in one of {small}; prompt_mean weighs both "
            "alike"
        )
    return remarks


def _off_policy(spec: Spec) -> list[str]:
    learner, objective = spec.learner, spec.learner.objective
    if learner.on_policy and objective.ratio != "none":
        return [
            f"learner.objective.ratio: {objective.ratio} has nothing to clip: with one optimizer step per batch the "
            "ratio is 1, and the gradient that of ratio: none"
        ]
    if not learner.on_policy and objective.ratio == "none" and objective.mismatch == "none":
        steps = learner.minibatches * learner.passes
        return [
            f"{steps} optimizer steps per batch{' of stale rollouts' if learner.stale_epochs else ''} with neither a "
            "ratio nor a mismatch correction: nothing corrects for rollouts of an older policy"
        ]
    return []
