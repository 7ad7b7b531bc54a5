from math import exp, lgamma

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allocator.posterior import Posterior

ONE_FAMILY = np.zeros(3, np.int64)


def update(posterior: Posterior, prompts, successes, failures, shares=1.0, first=False) -> None:
    """Groups on which `shares` equal shares were spent each."""
    n = len(prompts)
    won, lost = np.array(successes, float), np.array(failures, float)
    posterior.update(np.array(prompts), np.full(n, shares), won, lost, np.full(n, first))


def test_evidence_is_added_to_sampled_prompts_and_forgotten_by_all():
    posterior = Posterior(ONE_FAMILY, prior_successes=1.0, prior_failures=2.0, forgetting=0.5)
    update(posterior, [0, 2], [4, 1], [0, 3])
    update(posterior, [2], [2], [2])
    a, b = posterior.parameters()
    np.testing.assert_allclose(a, [1 + 2, 1, 1 + 0.5 + 2])
    np.testing.assert_allclose(b, [2, 2, 2 + 1.5 + 2])
    np.testing.assert_allclose(posterior.mean(), a / (a + b))


def test_forgetting_per_visit_touches_only_the_prompts_visited():
    posterior = Posterior(ONE_FAMILY, 1.0, 1.0, forgetting=0.5, per="visit")
    update(posterior, [0, 2], [4, 1], [0, 3])
    update(posterior, [2], [2], [2])
    a, b = posterior.parameters()
    np.testing.assert_allclose(a, [1 + 4, 1, 1 + 0.5 + 2])
    np.testing.assert_allclose(b, [1 + 0, 1, 1 + 1.5 + 2])


def test_forgetting_per_share_counts_what_was_spent_on_the_prompt():
    posterior = Posterior(ONE_FAMILY, 1.0, 1.0, forgetting=0.5, per="share")
    update(posterior, [0, 1], [4, 4], [0, 0])
    update(posterior, [0], [0], [0], shares=1.0)
    update(posterior, [1], [0], [0], shares=0.5)
    np.testing.assert_allclose(posterior.parameters()[0], [1 + 2, 1 + 4 / 2**0.5, 1])


def test_learned_priors_find_the_families_distributions():
    """Families of known Beta laws: a prompt never seen is believed what its family's other prompts showed."""
    rng = np.random.default_rng(0)
    laws = [(0.4, 3.0), (2.0, 2.0), (6.0, 1.0)]
    families = np.repeat([0, 1, 2], 2_001)
    posterior = Posterior(families, 1.0, 1.0, learned=True)
    seen = np.flatnonzero(np.arange(len(families)) % 2_001 < 2_000)
    rate = np.concatenate([rng.beta(a, b, 2_000) for a, b in laws])
    won = rng.binomial(8, rate)
    update(posterior, seen, won, 8 - won, first=True)
    a, b = posterior.parameters(np.array([2_000, 4_001, 6_002]))
    np.testing.assert_allclose(a / (a + b), [x / (x + y) for x, y in laws], atol=0.02)
    np.testing.assert_allclose(a + b, [x + y for x, y in laws], rtol=0.15)


def test_only_first_groups_teach_the_prior():
    """Later ones are of prompts that were chosen for what they showed before."""
    posterior = Posterior(ONE_FAMILY, 1.0, 1.0, learned=True)
    before = posterior.parameters(np.array([1]))
    update(posterior, [0], [8], [0])
    assert posterior.parameters(np.array([1])) == before
    update(posterior, [2], [8], [0], first=True)
    assert posterior.mean()[1] > 0.5


def test_a_graded_reward_counts_as_that_share_of_a_success():
    posterior = Posterior(ONE_FAMILY, 1.0, 1.0)
    update(posterior, [0], [2.5], [1.5])
    assert posterior.mean()[0] == pytest.approx(3.5 / 6)


def test_uniform_prior_is_worth_two_thirds_of_the_maximum():
    assert Posterior(ONE_FAMILY[:1], 1.0, 1.0).value() == pytest.approx(1 / 6)


@given(st.floats(0.1, 50), st.floats(0.1, 50), st.integers(2, 9))
def test_value_is_the_expected_unbiased_reward_variance_of_the_next_group(a, b, group):
    """Proposition 1, with the beta-binomial distribution of the next group's successes written out."""

    def log_beta(x, y):
        return lgamma(x) + lgamma(y) - lgamma(x + y)

    expected = 0.0
    for wins in range(group + 1):
        losses = group - wins
        log_ways = lgamma(group + 1) - lgamma(wins + 1) - lgamma(losses + 1)
        chance = exp(log_ways + log_beta(a + wins, b + losses) - log_beta(a, b))
        expected += chance * wins * losses / (group * (group - 1))
    assert Posterior(ONE_FAMILY[:1], a, b).value()[0] == pytest.approx(expected, rel=1e-6)
