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
    """Groups of unequal size that give their prompts unequal weight: by the advantage, c(n, p), and by a mean over
    anything but prompts, which counts a prompt as often as it has responses."""
    a, objective = spec.allocator, spec.learner.objective
    assert a is not None
    small, large = a.unit_rollouts, a.max_group_rollouts
    weights = [prompt_weight(objective, n, SOLVED_SHARE) for n in (small, large)]
    if objective.reduction != "prompt_mean":
        weights = [weight * n for weight, n in zip(weights, (small, large), strict=True)]
    fields = f"learner.objective.advantage: {objective.advantage} with reduction: {objective.reduction}"
    if weights[0] <= 0:
        return [f"{fields} learns nothing from groups of {small}, only from larger ones"] if weights[1] > 0 else []
    ratio = weights[1] / weights[0]
    if 1 / WORTH_TELLING <= ratio <= WORTH_TELLING:
        return []
    return [
        f"{fields} weighs a prompt that is solved {SOLVED_SHARE:.0%} of the time {ratio:.2g} times as much in a group "
        f"of {large} as in one of {small}; leave_one_out with prompt_mean weighs both alike"
    ]


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
