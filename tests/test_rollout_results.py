"""What the committed rollout benchmark must show beside its speed: speculation leaves the learning as it is."""

import json
from pathlib import Path

import numpy as np

RESULTS = json.loads((Path(__file__).parents[1] / "benchmarks" / "results" / "rollout.json").read_text())


def test_training_with_speculation_gives_statistically_the_same_reward_curve():
    """Paired by seed, the mean reward of runs with and without speculation: no tenth of the run, and not the whole,
    differs by more than chance; chance is what one epoch's reward scatters around its neighbours'."""
    runs = RESULTS["training"]["runs"]
    plain, ours = (np.array([run["rewards"] for run in runs[arm]]) for arm in ("plain", "tailrace"))
    assert plain.shape == ours.shape
    scatter = np.sqrt(np.mean(np.diff(np.concatenate([plain, ours]), axis=1) ** 2) / 2)
    epochs = plain.size
    assert abs((ours - plain).mean()) < 3 * scatter * np.sqrt(2 / epochs)
    tenths = (ours - plain).reshape(len(plain), 10, -1).mean((0, 2))
    assert np.abs(tenths).max() < 4 * scatter * np.sqrt(2 / (epochs / 10))
