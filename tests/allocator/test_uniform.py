import numpy as np
from allocator_runs import cases, step
from hypothesis import assume, given

from allocator import Allocator, AllocatorSpec


@given(cases(policies=["uniform"]))
def test_pace_is_even_and_the_budget_is_spent_to_the_unit(case):
    allocator, unit = case.allocator(), case.spec.unit_rollouts
    assume(case.spec.currency == "rollouts")
    budget = case.spec.budget // unit
    capacity = min(case.spec.max_rollouts_per_epoch // unit, case.prompts * case.spec.max_units_per_prompt)
    spent = [int(step(allocator, case.seed).rollouts.sum()) // unit for _ in range(case.epochs)]
    assert all(abs(units - min(budget / case.epochs, capacity)) < 1 for units in spent)
    if budget <= case.epochs * capacity:
        assert sum(spent) == budget


@given(cases(policies=["uniform"]))
def test_no_prompt_comes_again_before_all_others_came(case):
    allocator = case.allocator()
    dealt = np.concatenate([step(allocator, case.seed).prompts for _ in range(case.epochs)])
    for start in range(0, len(dealt), case.prompts):
        lap = dealt[start : start + case.prompts]
        assert len(np.unique(lap)) == len(lap)
        np.testing.assert_array_equal(lap, dealt[: len(lap)])


def test_the_cycle_depends_on_the_seed_alone():
    spec = AllocatorSpec(policy="uniform", budget_rollouts=80, max_rollouts_per_epoch=16)
    first, again, other = (Allocator(spec, 50, 5, seed).decide(0).prompts.tolist() for seed in (1, 1, 2))
    assert first == again != other
