"""Rival allocation policies, to be measured against under the same budget, capacity and group cap.

Each is its paper's allocation rule and nothing else; a docstring names the paper and what was left out. What is not in
a rule is the same for all: units as the smallest step, an even pace over the epochs, the pool's beliefs.
"""

from allocator.rivals.ablations import CeroFixed, CeroGreedy, RandomMatched
from allocator.rivals.mopps import Mopps
from allocator.rivals.split import Gvm, Knapsack, Vip
from allocator.rivals.staged import Dapo, PilotCommit, ReinforceAda

__all__ = [
    "CeroFixed", "CeroGreedy", "Dapo", "Gvm", "Knapsack", "Mopps", "PilotCommit", "RandomMatched", "ReinforceAda",
    "Vip",
]  # fmt: skip
