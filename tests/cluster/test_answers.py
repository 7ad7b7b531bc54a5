"""A group that cannot be what was asked for is found; one that can passes."""

from dataclasses import replace

import numpy as np
import pytest

from actors.requests import GroupRequest, Sampling
from actors.rollout import Collected
from cluster.answers import fault, not_an_answer
from trainer.types import Group

REQUEST, SAMPLING = GroupRequest("4/x", 4, 7, 2, 9), Sampling("train", 3, 1.0)
GOOD = Group(
    "4/x", 4, 7, 9, np.array([5, 6, 1, 98, 1], np.int32), np.array([-1, 0, -2, -0.5, 1e-6], np.float32),
    np.array([3, 2], np.int32), np.array([0.0, 1.0]), np.array([True, False]),
)  # fmt: skip


def test_a_true_answer_has_no_fault():
    assert fault(GOOD, REQUEST, SAMPLING, 99) is None


def test_an_evaluation_may_come_without_logprobs_a_training_group_may_not():
    bare = replace(GOOD, logprobs=np.zeros(0, np.float32))
    assert fault(bare, REQUEST, replace(SAMPLING, pool="heldout"), 99) is None
    assert fault(bare, REQUEST, SAMPLING, 99) == "no log-probabilities"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"weight_version": 8}, "weight version"),
        ({"epoch": 3}, "epoch"),
        ({"prompt": 6}, "prompt"),
        ({"lengths": np.array([3], np.int32)}, "size"),
        ({"lengths": np.array([5, 0], np.int32)}, "0 or 5 tokens"),
        ({"lengths": np.array([4, 1], np.int32)}, "asked were 1 to 3"),
        ({"lengths": np.array([3, 1], np.int32)}, "5 tokens and 5 log-probabilities for lengths of 4"),
        ({"logprobs": np.zeros(4, np.float32)}, "4 log-probabilities"),
        ({"token_ids": np.array([5, 6, 1, 99, 1], np.int32)}, "vocabulary of 99"),
        ({"token_ids": np.array([5, -1, 1, 9, 1], np.int32)}, "vocabulary"),
        ({"logprobs": np.array([-1, 0, np.nan, -1, -1], np.float32)}, "log-probability"),
        ({"logprobs": np.array([-1, 0.5, -1, -1, -1], np.float32)}, "log-probability"),
        ({"rewards": np.array([0.0, np.nan])}, "reward"),
        ({"rewards": np.array([0.0, 1.5])}, "reward"),
        ({"rewards": np.array([0.0])}, "1 rewards for 2"),
        ({"truncated": np.array([True])}, "2 rewards for 2|for 2 responses"),
        ({"token_ids": None}, "token_ids are not a column"),
        ({"token_ids": np.full(5, np.nan)}, "token_ids are not a column"),
        ({"token_ids": np.zeros((5, 1), np.int32)}, "token_ids are not a column"),
        ({"rewards": np.array(["1", "0"])}, "rewards are not a column"),
        ({"logprobs": np.full(5, -1e30, np.float32)}, "log-probability"),
    ],
)
def test_nonsense_is_named(wrong, says):
    import re

    assert re.search(says, fault(replace(GOOD, **wrong), REQUEST, SAMPLING, 99) or "")


def test_an_answer_that_is_none_is_named():
    assert not_an_answer(Collected([GOOD])) is None
    assert not_an_answer(None) == "it gave a NoneType instead of what it has finished"
    assert not_an_answer(Collected([GOOD, "x"])) == "it gave a str instead of a group"
    assert not_an_answer(Collected([replace(GOOD, id=[])])) == "it gave a group without a name"
