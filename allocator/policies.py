"""The policies by the names that a spec uses."""

from allocator.cero import Cero
from allocator.problem import PolicyType
from allocator.rivals import (
    CeroFixed,
    CeroGreedy,
    Dapo,
    Gvm,
    Knapsack,
    Mopps,
    PilotCommit,
    RandomMatched,
    ReinforceAda,
    Vip,
)
from allocator.sluice import Sluice
from allocator.uniform import Uniform

POLICIES: dict[str, PolicyType] = {
    "sluice": Sluice,
    "cero": Cero,
    "uniform": Uniform,
    "random_matched": RandomMatched,
    "cero_fixed": CeroFixed,
    "cero_greedy": CeroGreedy,
    "knapsack": Knapsack,
    "dapo": Dapo,
    "gvm": Gvm,
    "vip": Vip,
    "reinforce_ada": ReinforceAda,
    "mopps": Mopps,
    "pilot_commit": PilotCommit,
}
