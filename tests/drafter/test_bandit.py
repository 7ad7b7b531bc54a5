"""The bandit finds the arm that a known engine would choose, and keeps to what BEG-MAB promises."""

from random import Random

import pytest

from drafter.bandit import BUCKET_EDGES, SPELL_STEPS, StrategyBandit, bucket_of


class Engine:
    """Steps whose seconds are linear in the verified tokens, with drafts accepted independently."""

    def __init__(self, alpha: float, fixed: float, per_token: float, per_draft: float, seed: int = 0) -> None:
        self.alpha, self.fixed, self.per_token, self.per_draft = alpha, fixed, per_token, per_draft
        self.random = Random(seed)

    def seconds(self, running: int, k: int) -> float:
        return self.fixed + self.per_token * running * (k + 1) + self.per_draft * k

    def reward(self, running: int, k: int) -> float:
        return running * sum(self.alpha**i for i in range(k + 1)) / self.seconds(running, k)

    def best(self, running: int, k_max: int) -> float:
        return max(self.reward(running, k) for k in range(k_max + 1))

    def accepted(self, k: int) -> int:
        count = 0
        while count < k and self.random.random() < self.alpha:
            count += 1
        return count

    def run(self, bandit: StrategyBandit, running: int, steps: int) -> list[int]:
        chosen, before = [], None
        for _ in range(steps):
            k = bandit.choose(running)
            if before is not None:
                bandit.observe_acceptance(running, before, [self.accepted(before) for _ in range(running)])
                if before == k:
                    bandit.observe_time(running, k, self.seconds(running, k) * self.random.uniform(0.8, 1.3))
            before = k
            chosen.append(k)
        return chosen


def rewards(engine: Engine, chosen: list[int], running: int) -> float:
    """Mean reward of the choices relative to the best arm."""
    best = engine.best(running, 6)
    return sum(engine.reward(running, k) for k in chosen) / len(chosen) / best


@pytest.mark.parametrize("running", [1, 4, 16, 64])
@pytest.mark.parametrize("alpha", [0.2, 0.6, 0.9])
def test_the_share_of_the_best_arm_is_reached_in_every_bucket(running, alpha):
    engine = Engine(alpha, fixed=5e-3, per_token=6e-5, per_draft=5e-4)
    chosen = engine.run(StrategyBandit(6, seed=1), running, 2000)
    assert rewards(engine, chosen[500:], running) > 0.95


def test_plain_decoding_is_chosen_where_drafts_are_never_accepted():
    chosen = Engine(0.0, 5e-3, 1e-4, 1e-3).run(StrategyBandit(6, seed=1), 8, 1000)
    assert chosen[300:].count(0) > 0.85 * len(chosen[300:])


def test_every_bucket_has_plain_decoding_and_the_deepest_arm_tried():
    """Gap 10: four arms in four buckets leave a bandit nothing to choose."""
    bandit, engine = StrategyBandit(6, seed=0), Engine(0.7, 5e-3, 1e-4, 5e-4)
    for running in (1, 2, 5, 40, 300):
        chosen = engine.run(bandit, running, 200)
        assert {0, 6} <= set(chosen)
        assert len(set(chosen)) > 2


def test_batch_sizes_of_one_bucket_share_what_they_learn():
    """Gap 11: one bandit per batch size pools nothing."""
    bandit, engine = StrategyBandit(6, seed=0), Engine(0.9, 5e-3, 6e-5, 5e-4)
    edge = BUCKET_EDGES[8]
    engine.run(bandit, edge, 400)
    assert bucket_of(edge) == bucket_of(edge + 1)
    chosen = engine.run(bandit, edge + 1, 20)
    assert rewards(engine, chosen, edge + 1) > 0.9


def test_a_choice_is_held_for_a_spell_so_that_verifying_and_drafting_are_timed_alike():
    chosen = Engine(0.8, 5e-3, 6e-5, 5e-4).run(StrategyBandit(6, seed=0), 4, 40 * SPELL_STEPS)
    spells = [chosen[i : i + SPELL_STEPS] for i in range(0, len(chosen), SPELL_STEPS)]
    assert all(len(set(spell)) == 1 for spell in spells)


def test_a_publish_lets_a_better_drafter_be_found_at_once_and_keeps_the_times():
    bandit = StrategyBandit(6, seed=0)
    Engine(0.05, 5e-3, 6e-5, 5e-4).run(bandit, 4, 1000)
    better = Engine(0.9, 5e-3, 6e-5, 5e-4)
    bandit.published([0.9**i for i in range(1, 7)])
    assert rewards(better, better.run(bandit, 4, 100), 4) > 0.9


def test_a_worse_drafter_is_noticed_without_a_publish():
    bandit = StrategyBandit(6, seed=0)
    Engine(0.9, 5e-3, 1e-4, 1e-3).run(bandit, 4, 100)
    worse = Engine(0.05, 5e-3, 1e-4, 1e-3)
    assert rewards(worse, worse.run(bandit, 4, 600)[400:], 4) > 0.9


def test_a_slow_step_now_and_then_does_not_move_the_choice():
    """The median of a window, as in BEG-MAB: a hiccup of the machine is no news."""
    bandit, engine = StrategyBandit(6, seed=0), Engine(0.8, 5e-3, 6e-5, 5e-4)
    engine.run(bandit, 4, 800)
    for k in range(7):
        bandit.observe_time(4, k, 1.0)
    assert rewards(engine, engine.run(bandit, 4, 100), 4) > 0.93


def test_a_bucket_whose_few_steps_were_timed_on_a_busy_machine_chooses_by_what_the_others_know():
    bandit, engine = StrategyBandit(6, seed=0), Engine(0.9, 5e-3, 6e-5, 5e-4)
    for running in (1, 2, 4, 16, 32):
        engine.run(bandit, running, 400)
    for k, slow in ((0, 0.8), (6, 1.6)):
        bandit.observe_time(8, k, slow * engine.seconds(8, k))
    assert rewards(engine, engine.run(bandit, 8, 8), 8) > 0.93
