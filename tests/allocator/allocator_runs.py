"""Small synthetic runs that the allocator's tests share."""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from allocator import Allocation, Allocator, AllocatorSpec

LONGEST = 6
"""Tokens of the longest response."""


@dataclass(frozen=True)
class Case:
    """One randomly drawn run."""

    spec: AllocatorSpec
    prompts: int
    epochs: int
    seed: int

    def allocator(self) -> Allocator:
        families = [f"family {prompt % 3}" for prompt in range(self.prompts)]
        return Allocator(
            self.spec, self.prompts, self.epochs, self.seed, families=families, max_response_tokens=LONGEST
        )


@st.composite
def cases(draw, policies=("sluice", "cero", "uniform"), as_published=False) -> Case:
    """Any small valid run, including budgets that no number of epochs can spend and pools smaller than one epoch.

    `as_published`: with the beliefs and the budget of the CERO paper.
    """
    unit, cap = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    budget = unit * draw(st.integers(1, 400 // unit))
    in_tokens = not as_published and draw(st.booleans())
    spec = AllocatorSpec(
        policy=draw(st.sampled_from(policies)),
        unit_rollouts=unit,
        max_units_per_prompt=cap,
        max_rollouts_per_epoch=draw(st.integers(unit * cap, 60)),
        budget_rollouts=None if in_tokens else budget,
        budget_tokens=budget * LONGEST if in_tokens else None,
        prior_successes=draw(st.sampled_from([0.5, 1.0, 2.5])),
        prior_failures=draw(st.sampled_from([0.5, 1.0, 2.5])),
        utility_saturation=draw(st.sampled_from([0.3, 1.0, 4.0])),
        prior="fixed" if as_published else draw(st.sampled_from(["fixed", "learned"])),
        forgetting=draw(st.sampled_from([0.7, 1.0])),
        forgetting_per="epoch" if as_published else draw(st.sampled_from(["epoch", "visit", "share"])),
        coverage_share=draw(st.sampled_from([0.0, 0.2])),
        initial_price=draw(st.sampled_from([0.0, 0.5, 1.0])),
    )
    return Case(spec, draw(st.integers(1, 30)), draw(st.integers(1, 25)), draw(st.integers(0, 2**31)))


def successes(allocation: Allocation, seed: int) -> np.ndarray:
    """Graded rewards summed over each group [n]; a function of prompt and epoch alone, whatever the order of groups."""
    luck = np.random.default_rng([seed, allocation.epoch]).random(10_000)
    return allocation.rollouts * luck[allocation.prompts]


def tokens(allocation: Allocation, seed: int) -> np.ndarray:
    """Response tokens of each group [n]; likewise."""
    length = np.random.default_rng([seed, allocation.epoch, 1]).integers(0, LONGEST + 1, 10_000)
    return allocation.rollouts * length[allocation.prompts]


def step(allocator: Allocator, seed: int) -> Allocation:
    """One epoch: decide, sample, observe."""
    allocation = allocator.decide(allocator.epoch)
    won = successes(allocation, seed)
    spent = tokens(allocation, seed)
    allocator.observe(allocation.epoch, allocation.prompts, won, allocation.rollouts - won, spent)
    return allocation


def same_state(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[key], right[key]) for key in left)
