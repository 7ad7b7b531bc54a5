"""What is remarked on a valid spec: weights that change with the group's size, and choices without effect."""

import pytest
from small_spec import small

from cluster.remarks import objective_remarks
from cluster.spec import parse_spec


def remarks(allocator: dict | None = None, **learner) -> list[str]:
    data = small()
    data["learner"] = {"micro_batch_tokens": 1024, **learner}
    data["allocator"] |= allocator or {}
    return objective_remarks(parse_spec(data, "test"))


def test_the_default_objective_gives_rise_to_none():
    assert remarks(objective={}) == []


def test_a_z_score_under_unequal_groups_is_told_with_its_factor():
    """c(8, 0.1) / c(4, 0.1) = 2.18 / 1.46, groups of 4 and 8."""
    (found,) = remarks(objective={"advantage": "z_score"})
    assert "1.5 times as much in a group of 8 as in one of 4" in found


def test_a_mean_over_responses_is_told_with_its_factor():
    (found,) = remarks(objective={"reduction": "token_mean"})
    assert "2 times as much in a group of 8 as in one of 4" in found


def test_a_weight_that_falls_with_the_size_is_told_too():
    """c(8, 0.1) / c(4, 0.1) of the best response is 0.712 / 0.860 = 0.83, and a mean over responses doubles it."""
    (found,) = remarks(objective={"name": "raft"})
    assert "1.7 times as much" in found
    (found,) = remarks(objective={"advantage": "best"})
    assert "0.83 times as much" in found


def test_groups_that_teach_nothing_are_told():
    (found,) = remarks({"unit_rollouts": 1}, objective={})
    assert "learns nothing from groups of 1" in found


def test_groups_of_one_size_need_no_remark():
    equal = {"max_units_per_prompt": 1}
    assert remarks(equal, objective={"advantage": "z_score", "reduction": "token_mean"}) == []


def test_a_ratio_without_a_second_step_has_nothing_to_clip():
    (found,) = remarks(objective={"ratio": "token_clip"})
    assert "nothing to clip" in found


@pytest.mark.parametrize("steps", [{"minibatches": 2}, {"passes": 2}, {"stale_epochs": 1}])
def test_off_policy_steps_that_nothing_corrects_are_told(steps):
    (found,) = remarks(objective={}, **steps)
    assert "nothing corrects for rollouts of an older policy" in found
    assert remarks(objective={"mismatch": "tis"}, **steps) == []
