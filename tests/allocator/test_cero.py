"""CERO against a transcription of the paper's Algorithm 1, its regret bound, and its symmetries."""

import math

import numpy as np
from allocator_runs import Case, cases, step, successes
from hypothesis import given
from hypothesis import strategies as st

from allocator import Allocator, AllocatorSpec
from allocator.cero import Cero
from allocator.order import best_first
from allocator.pool import Pool
from allocator.problem import Outcome, Problem
from allocator.utility import saturation_rate, utility


class Algorithm1:
    """Algorithm 1 as printed, one prompt at a time, from the state that the allocator itself shows.

    One epoch at a time, because rounding may order prompts that are tied on paper but got there on different ways.
    """

    def __init__(self, case: Case, state: dict):
        spec = self.spec = case.spec
        self.M, self.K, self.n_max = case.prompts, case.epochs, spec.max_units_per_prompt
        self.B = spec.budget_rollouts // spec.unit_rollouts
        self.C = min(spec.max_rollouts_per_epoch // spec.unit_rollouts, self.M * self.n_max)
        self.rem = self.B - state["spent_rollouts"] // spec.unit_rollouts
        self.theta, self.nu = state["policy.priority"].tolist(), state["policy.price"]
        self.tie_rank = state["policy.tie_rank"].tolist()
        self.a = [spec.prior_successes + s for s in state["pool.posterior.successes"].tolist()]
        self.b = [spec.prior_failures + f for f in state["pool.posterior.failures"].tolist()]

    def allocate(self) -> dict[int, int]:
        """Executed units by prompt, in order."""
        margin = [theta - self.nu for theta in self.theta]
        self.virtual, capacity, executed = [0] * self.M, self.C, {}
        for i in sorted((i for i in range(self.M) if margin[i] > 0), key=lambda i: (-margin[i], self.tie_rank[i])):
            self.virtual[i] = min(self.n_max, capacity)
            capacity -= self.virtual[i]
            if units := min(self.virtual[i], self.rem):
                executed[i] = units
                self.rem -= units
        return executed

    def learn(self, won: dict[int, float], lost: dict[int, float]) -> None:
        spec, lam, gamma = self.spec, self.spec.utility_saturation, 1 / math.sqrt(self.K)
        R, Z, pace = self.B / self.M, self.K * self.n_max, self.B / self.K
        for i in range(self.M):
            a = self.a[i] = spec.prior_successes + spec.forgetting * (self.a[i] - spec.prior_successes) + won.get(i, 0)
            b = self.b[i] = spec.prior_failures + spec.forgetting * (self.b[i] - spec.prior_failures) + lost.get(i, 0)
            q = a * b / ((a + b) * (a + b + 1))
            c, c_bar, theta = 4 * lam * q / R, lam / R, self.theta[i]
            z = min(max(math.log(c / (c_bar * theta)) / c, 0), Z) if theta > 0 else Z
            self.theta[i] = min(max(theta - gamma * (self.virtual[i] - z / self.K) / self.n_max, 0), 1)
        self.nu = min(max(self.nu - gamma * (pace - sum(self.virtual)) / max(pace, self.C - pace), 0), 1)


@given(cases(policies=["cero"], as_published=True))
def test_every_epoch_is_an_epoch_of_algorithm_1(case):
    allocator = case.allocator()
    for epoch in range(case.epochs):
        reference = Algorithm1(case, allocator.state_dict())
        expected = reference.allocate()
        allocation = allocator.decide(epoch)
        units = allocation.rollouts // case.spec.unit_rollouts
        assert list(zip(allocation.prompts.tolist(), units.tolist(), strict=True)) == list(expected.items())

        won = successes(allocation, case.seed)
        lost = allocation.rollouts - won
        allocator.observe(epoch, allocation.prompts, won, lost)
        reference.learn(dict(zip(expected, won.tolist(), strict=True)), dict(zip(expected, lost.tolist(), strict=True)))
        state = allocator.state_dict()
        np.testing.assert_allclose(state["policy.priority"], reference.theta, atol=1e-12)
        np.testing.assert_allclose(state["policy.price"], reference.nu, atol=1e-12)
        np.testing.assert_allclose(
            case.spec.prior_successes + state["pool.posterior.successes"], reference.a, atol=1e-12
        )
        np.testing.assert_allclose(case.spec.prior_failures + state["pool.posterior.failures"], reference.b, atol=1e-12)


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0]), max_size=40), st.integers(1, 45), st.integers(0, 99))
def test_selection_is_the_head_of_the_full_sort(margins, count, seed):
    margin = np.array(margins)
    rank = np.random.default_rng(seed).permutation(len(margin))
    expected = sorted((i for i in range(len(margin)) if margin[i] > 0), key=lambda i: (-margin[i], rank[i]))
    assert best_first(margin, rank, count).tolist() == expected[:count]


@given(cases(policies=["cero"], as_published=True), st.integers(0, 2**31))
def test_renaming_the_prompts_renames_the_decisions(case, shuffle_seed):
    """With the tie order renamed too, all else is symmetric in the prompts, to the last bit."""
    new_name = np.random.default_rng(shuffle_seed).permutation(case.prompts)
    original, renamed = case.allocator(), case.allocator()
    state = renamed.state_dict()
    state["policy.tie_rank"][new_name] = original.state_dict()["policy.tie_rank"]
    renamed.load_state_dict(state)
    for epoch in range(case.epochs):
        before, after = original.decide(epoch), renamed.decide(epoch)
        np.testing.assert_array_equal(new_name[before.prompts], after.prompts)
        np.testing.assert_array_equal(before.rollouts, after.rollouts)
        won = successes(before, case.seed)
        original.observe(epoch, before.prompts, won, before.rollouts - won)
        renamed.observe(epoch, after.prompts, won, after.rollouts - won)


def test_prompts_never_sampled_stay_exactly_tied():
    """Vectorised arithmetic must not depend on a prompt's place in the array, or the blind first pass has an order."""
    allocator = Allocator(
        AllocatorSpec(policy="cero", budget_rollouts=4_000, max_rollouts_per_epoch=80), 1_001, 60, seed=0
    )
    seen = np.concatenate([step(allocator, 0).prompts for _ in range(30)])
    unseen = np.setdiff1d(np.arange(1_001), seen)
    assert len(unseen) > 500
    assert len(np.unique(allocator.state_dict()["policy.priority"][unseen])) == 1


def best_utility(rate: np.ndarray, problem: Problem) -> float:
    """OPT of eq. (4) per prompt: the B largest unit gains (1 - e^-c) e^(-c l) (App. C.2), with capacity slack."""
    steps = np.arange(problem.epochs * problem.max_units_per_prompt)
    gains = -np.expm1(-rate)[:, None] * np.exp(-rate[:, None] * steps)
    return float(np.sort(gains, axis=None)[-problem.budget_units :].sum()) / problem.prompts


def static_regret(epochs: int) -> float:
    """Regret per prompt of CERO with true, fixed values: M = 64, N_max = 2, half a unit per prompt and epoch, C = M."""
    problem = Problem(prompts=64, epochs=epochs, budget_units=32 * epochs, capacity_units=64, max_units_per_prompt=2)
    p = np.random.default_rng(0).beta(0.5, 0.5, problem.prompts)
    values = p * (1 - p)
    spec = AllocatorSpec(policy="cero", unit_rollouts=1, budget_rollouts=32 * epochs, max_rollouts_per_epoch=64)
    pool = Pool(spec, problem, np.zeros(64, np.int64))
    pool.posterior.value = lambda prompts=slice(None): values[prompts].copy()
    policy = Cero(pool, seed=0)
    exposure, left, nothing = np.zeros(problem.prompts), problem.budget_units, np.zeros(0)
    for _ in range(epochs):
        proposal = policy.propose()
        executed = proposal.clipped(left)
        exposure[executed.prompts] += executed.units
        left -= int(executed.units.sum())
        policy.update(proposal, Outcome(executed.prompts, executed.units, nothing, nothing))
    rate = saturation_rate(values, 1.0, problem.budget_units / problem.prompts)
    return best_utility(rate, problem) - float(utility(rate, exposure).mean())


def test_static_regret_vanishes_as_theorem_1_says():
    """Bound (11) with exact values: (N_max + G_B / M) / N-bar / sqrt(K); the fitted order is about -1/2."""
    horizons = np.array([50, 200, 800, 3200])
    regret = np.array([static_regret(int(epochs)) for epochs in horizons])
    assert (regret >= 0).all()
    assert (regret <= (2 + 0.5) / 0.5 / np.sqrt(horizons)).all()
    assert regret[0] < 0.01
    assert -0.8 < np.polyfit(np.log(horizons), np.log(regret), 1)[0] < -0.3
