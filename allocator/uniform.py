"""The baseline: one shuffled cycle over all prompts, at an even pace."""

import numpy as np

from allocator.problem import Floats, Ints, Problem, Proposal, State


class Uniform:
    """Deals N_max units to the next prompts of a fixed permutation, B / K units per epoch, learning nothing.

    After k epochs floor(k B / K) units have been proposed, so the run ends on B to the unit. Where B / K is not a
    multiple of N_max, the last group of an epoch is smaller.
    """

    def __init__(self, problem: Problem, seed: int):
        self._problem = problem
        self._order: Ints = np.random.default_rng(seed).permutation(problem.prompts)
        self._cursor = 0
        self._epoch = 0

    def propose(self) -> Proposal:
        problem = self._problem
        before = self._epoch * problem.budget_units // problem.epochs
        after = (self._epoch + 1) * problem.budget_units // problem.epochs
        # The capacity is at most M N_max, so a cycle never meets a prompt twice in one epoch.
        units = min(after - before, problem.capacity_units)
        groups = -(-units // problem.max_units_per_prompt)
        order = self._order[(self._cursor + np.arange(groups)) % problem.prompts]
        return Proposal.filled(order, units, problem)

    def update(self, proposal: Proposal, values: Floats) -> None:
        self._cursor = (self._cursor + len(proposal.prompts)) % self._problem.prompts
        self._epoch += 1

    def state_dict(self) -> State:
        return {"order": self._order.copy(), "cursor": self._cursor, "epoch": self._epoch}

    def load_state_dict(self, state: State) -> None:
        self._order = np.array(state["order"])
        self._cursor = int(state["cursor"])
        self._epoch = int(state["epoch"])

    def metrics(self) -> dict[str, float]:
        return {}
