"""One run of a scheduler through a world, and what is kept of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from allocator import Allocator, AllocatorSpec
from allocator.problem import Floats, Ints, Problem
from allocator.simulator.watchers import Watcher
from allocator.simulator.worlds import Groups, Sampled, World
from allocator.utility import saturation_rate


class Scheduler(Protocol):
    """What a run needs of an `Allocator`; the oracle is another one."""

    @property
    def holds_update(self) -> bool: ...

    def decide(self, epoch: int) -> Sampled: ...

    def observe(
        self, epoch: int, prompts: ArrayLike, successes: ArrayLike, failures: ArrayLike, tokens: ArrayLike | None = None
    ) -> None: ...


@dataclass
class Trace:
    """What a run came to. A group counts once for the learner: held groups of one prompt are one, merged.

    `surrogate`: mean over prompts of the sum of U(q_k, z_k) - U(q_k, z_{k-1}) at the true q_k = p(1-p) of each round.
    """

    problem: Problem
    surrogate: float = 0.0
    groups: int = 0
    effective_groups: int = 0
    effective_rollouts: int = 0
    updates: int = 0
    exposure: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    """Units [M] spent on each prompt."""
    spent_units: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    """[K]"""
    tokens: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    """[K], of responses."""

    @property
    def rollouts(self) -> int:
        return int(self.spent_units.sum()) * self.problem.unit_rollouts

    @property
    def effective_rate(self) -> float:
        """Share of groups with both outcomes."""
        return self.effective_groups / max(self.groups, 1)

    @property
    def effective_rollout_share(self) -> float:
        return self.effective_rollouts / max(self.rollouts, 1)

    @property
    def surplus_rollouts(self) -> Floats:
        """[K], responses beyond an even pace after each round."""
        pace = self.problem.pace_units * np.arange(1, self.problem.epochs + 1)
        return (np.cumsum(self.spent_units) - pace) * self.problem.unit_rollouts


def open_allocator(
    policy: str, problem: Problem, world: World, seed: int, budget_tokens: int | None = None, **options: float | str
) -> Allocator:
    """An allocator for `problem` in `world`; its spec's beliefs and the rest are its defaults but for `options`.

    There is no coverage floor unless asked for: it is against forgetting what is not sampled, and no world does that.
    """
    longest = world.lengths.longest_tokens if world.lengths else 0
    budget = {"budget_rollouts": problem.budget_units * problem.unit_rollouts}
    spec = AllocatorSpec.model_validate(
        {
            **({"budget_tokens": budget_tokens} if budget_tokens else budget), "policy": policy,
            "unit_rollouts": problem.unit_rollouts, "max_units_per_prompt": problem.max_units_per_prompt,
            "max_rollouts_per_epoch": problem.capacity_units * problem.unit_rollouts, "coverage_share": 0.0, **options,
        }
    )  # fmt: skip
    return Allocator(spec, problem.prompts, problem.epochs, seed, families=world.families, max_response_tokens=longest)


def run(
    scheduler: Scheduler, world: World, problem: Problem, saturation: float = 1.0, watchers: Sequence[Watcher] = ()
) -> Trace:
    """All K rounds. `problem` also sets the surrogate's scale R = B / M, `saturation` its lambda."""
    trace = Trace(
        problem, exposure=np.zeros(problem.prompts, np.int64), spent_units=np.zeros(problem.epochs, np.int64),
        tokens=np.zeros(problem.epochs, np.int64),
    )  # fmt: skip
    held: list[Groups] = []
    spent = 0
    for epoch in range(problem.epochs):
        allocation = scheduler.decide(epoch)
        for watcher in watchers:
            watcher.decided(allocation)
        prompts, rollouts = allocation.prompts, allocation.rollouts
        if len(prompts):
            units = rollouts // problem.unit_rollouts
            spent += _book(trace, world, epoch, prompts, units, saturation)
            successes, tokens = world.answer(prompts, rollouts)
            trace.tokens[epoch] = tokens.sum()
            held.append(Groups(prompts, units, rollouts, successes))
            scheduler.observe(epoch, prompts, successes, rollouts - successes, tokens)
        else:
            scheduler.observe(epoch, prompts, rollouts, rollouts, rollouts)
        if held and not scheduler.holds_update:
            _update(trace, world, merged(held))
            held = []
        for watcher in watchers:
            watcher.observed(world)
        world.finish_round(spent / problem.budget_units)
    return trace


def _book(trace: Trace, world: World, epoch: int, prompts: Ints, units: Ints, saturation: float) -> int:
    """Add a round's groups to the trace; returns their units."""
    p, exposure = world.probability[prompts], trace.exposure[prompts]
    rate = saturation_rate(p * (1 - p), saturation, trace.problem.equal_share_units)
    trace.surrogate += float(np.exp(-rate * exposure) @ -np.expm1(-rate * units)) / trace.problem.prompts
    trace.exposure[prompts] = exposure + units
    spent = int(units.sum())
    trace.spent_units[epoch] = spent
    return spent


def _update(trace: Trace, world: World, groups: Groups) -> None:
    effective = groups.effective
    trace.updates += 1
    trace.groups += len(effective)
    trace.effective_groups += int(np.count_nonzero(effective))
    trace.effective_rollouts += int(groups.rollouts @ effective)
    world.learn(groups)


def merged(held: Sequence[Groups]) -> Groups:
    """Groups of several rounds as the learner gets them in one batch: one per prompt."""
    if len(held) == 1:
        return held[0]
    prompts, place = np.unique(np.concatenate([groups.prompts for groups in held]), return_inverse=True)
    columns = [np.concatenate([getattr(groups, name) for groups in held]) for name in Groups._fields[1:]]
    return Groups(prompts, *(np.bincount(place, column).astype(np.int64) for column in columns))
