from math import exp, lgamma

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allocator.posterior import Posterior


def test_evidence_is_added_to_sampled_prompts_and_forgotten_by_all():
    posterior = Posterior(3, prior_successes=1.0, prior_failures=2.0, forgetting=0.5)
    posterior.update(np.array([0, 2]), np.array([4.0, 1.0]), np.array([0.0, 3.0]))
    posterior.update(np.array([2]), np.array([2.0]), np.array([2.0]))
    a, b = posterior.parameters()
    np.testing.assert_allclose(a, [1 + 2, 1, 1 + 0.5 + 2])
    np.testing.assert_allclose(b, [2, 2, 2 + 1.5 + 2])
    np.testing.assert_allclose(posterior.mean(), a / (a + b))


def test_uniform_prior_is_worth_two_thirds_of_the_maximum():
    assert Posterior(1, 1.0, 1.0, 1.0).value() == pytest.approx(1 / 6)


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
    assert Posterior(1, a, b, 1.0).value()[0] == pytest.approx(expected, rel=1e-6)
