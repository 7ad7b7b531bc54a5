"""The setting of the paper's experiments: numbers it prints must come out, whatever the synthetic prompts are."""

from dataclasses import dataclass

import numpy as np
import pytest

from allocator import Allocator, AllocatorSpec

M, K = 8_958, 500
SPEC = AllocatorSpec(policy="cero", budget_rollouts=256_000, max_rollouts_per_epoch=528)
EQUAL_SHARE_UNITS = 64_000 / M
BIN_EDGES = [0.2, 0.4, 0.6, 0.8]


@dataclass
class Record:
    spent: np.ndarray  # [K] rollouts per epoch
    surplus: np.ndarray  # [K] rollouts beyond the uniform pace, after each epoch
    exposure: np.ndarray  # [M] units per prompt
    lift: np.ndarray  # [5] chance of selection by bin of predicted success, relative to the pool's


@pytest.fixture(scope="module")
def record() -> Record:
    """p ~ Beta(.5, .5); every informative group raises its prompt's logit by .15, every update all logits a little."""
    rng = np.random.default_rng(1)
    p = np.clip(rng.beta(0.5, 0.5, M), 1e-6, 1 - 1e-6)
    logit = np.log(p / (1 - p))
    allocator = Allocator(SPEC, M, K, seed=0)
    spent, surplus, exposure = np.zeros(K), np.zeros(K), np.zeros(M)
    chosen, expected = np.zeros(5), np.zeros(5)
    for epoch in range(K):
        group = allocator.decide(epoch)
        bins = np.digitize(allocator.posterior_mean, BIN_EDGES)
        chosen += np.bincount(bins[group.prompts], minlength=5)
        expected += np.bincount(bins, minlength=5) * len(group.prompts) / M
        won = rng.binomial(group.rollouts, 1 / (1 + np.exp(-logit[group.prompts])))
        allocator.observe(epoch, group.prompts, won, group.rollouts - won)
        logit[group.prompts[(won > 0) & (won < group.rollouts)]] += 0.15
        logit += 0.002 * bool(len(won))
        spent[epoch] = group.rollouts.sum()
        surplus[epoch] = allocator.metrics()["surplus_rollouts"]
        exposure[group.prompts] += group.rollouts / 4
    return Record(spent, surplus, exposure, chosen / expected)


def test_the_first_epoch_without_rollouts_is_the_121st(record):
    assert int(np.argmin(record.spent > 0)) + 1 == 121


def test_surplus_over_the_uniform_pace_peaks_at_1920_responses_and_ends_at_none(record):
    assert record.surplus.max() == 1_920
    assert record.surplus[-1] == 0
    assert record.spent.sum() == 256_000


def test_484_to_490_epochs_sample_anything(record):
    assert 484 <= (record.spent > 0).sum() <= 490


@pytest.mark.parametrize(("relative", "share"), [(0.84, 0.575), (1.12, 0.278), (1.40, 0.147)])
def test_terminal_exposures(record, relative, share):
    units = round(relative * EQUAL_SHARE_UNITS)
    assert np.mean(record.exposure == units) == pytest.approx(share, abs=0.02)


def test_prompts_of_even_odds_are_selected_1_72_times_as_often(record):
    assert record.lift[2] == pytest.approx(1.72, abs=0.1)
    assert record.lift[[0, 4]] == pytest.approx(0.65, abs=0.1)


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_the_first_pause_comes_at_the_same_epoch_without_any_signal(reward):
    """While unseen prompts last they tie at 4 q-hat = 2/3; the price climbs there at a rate that no reward touches."""
    allocator = Allocator(SPEC, M, K, seed=0)
    for epoch in range(121):
        group = allocator.decide(epoch)
        assert group.rollouts.sum() == (528 if epoch < 120 else 0)
        allocator.observe(epoch, group.prompts, reward * group.rollouts, (1 - reward) * group.rollouts)
