"""The simulator: optima and bounds against exhaustive search, the laws of its worlds, recordings, the command."""

import json
from itertools import product
from math import exp

import numpy as np
import pytest
from typer.testing import CliRunner

from allocator.policies import POLICIES
from allocator.problem import Problem
from allocator.simulator.bounds import bayes_bound, stopping_value
from allocator.simulator.dynamic import dynamic_optimum, plan_value
from allocator.simulator.experiments import EXPERIMENTS
from allocator.simulator.latents import Beta, LogitNormal, Mixture, difficulty_families, quadrature, sigmoid
from allocator.simulator.league import ARENAS
from allocator.simulator.oracles import TrueGreedy, spread, static_optimum
from allocator.simulator.recordings import BadRecording, Recording
from allocator.simulator.report import Interval
from allocator.simulator.run import merged, open_allocator, run
from allocator.simulator.static import Contender, StaticJob, static_path
from allocator.simulator.worlds import Decision, Drift, Groups, Learning, Lengths, Recorded, World, linear_drift
from allocator.utility import saturation_rate
from cluster.cli import app

# Optima.


@pytest.mark.parametrize("budget", range(1, 9))
def test_the_static_optimum_is_that_of_exhaustive_search(budget):
    problem = Problem(3, 2, budget, 4, 2, 1)
    value = np.array([0.25, 0.06, 0.11])
    rate = saturation_rate(value, 1.5, problem.equal_share_units)
    plans = [np.array(units) for units in product(range(5), repeat=3) if sum(units) == budget]
    best = max(float(-np.expm1(-rate * units).mean()) for units in plans)
    optimum, units = static_optimum(value, 1.5, problem)
    assert optimum == pytest.approx(best, abs=1e-12)
    plan = spread(units, problem)
    assert plan.sum(axis=0).tolist() == units.tolist()
    assert plan.max() <= 2
    assert plan.sum(axis=1).max() <= 4


@pytest.mark.parametrize("budget", range(1, 9))
@pytest.mark.parametrize(("seed", "capacity"), [(0, 4), (1, 4), (2, 2)])
def test_the_dynamic_optimum_encloses_that_of_exhaustive_search(budget, seed, capacity):
    """2 prompts, 4 rounds. The enclosure cannot be tight for every budget, since units are whole."""
    problem = Problem(2, 4, budget, capacity, 2, 1)
    value = np.random.default_rng(seed).uniform(0, 0.25, (4, 2))
    rate = saturation_rate(value, 1.0, problem.equal_share_units)
    plans = np.array(list(product(range(3), repeat=8))).reshape(-1, 4, 2)
    plans = plans[(plans.sum(axis=(1, 2)) <= budget) & (plans.sum(axis=2).max(axis=1) <= capacity)]
    best = max(plan_value(rate, plan) for plan in plans) / 2
    lower, upper = dynamic_optimum(value, 1.0, problem)
    assert lower <= best + 1e-12
    assert best <= upper + 1e-12
    assert upper - lower < (0.05 if capacity == 4 else 0.15)


def test_with_nothing_scarce_the_dynamic_optimum_is_exact():
    problem = Problem(2, 4, 16, 4, 2, 1)
    value = np.random.default_rng(0).uniform(0, 0.25, (4, 2))
    rate = saturation_rate(value, 1.0, problem.equal_share_units)
    best = max(plan_value(rate, np.array(plan).reshape(4, 2)) for plan in product(range(3), repeat=8)) / 2
    assert dynamic_optimum(value, 1.0, problem) == pytest.approx((best, best), abs=1e-12)


def test_a_path_that_stays_has_the_static_optimum():
    problem = Problem(8, 20, 80, 16, 2, 1)
    value = np.linspace(0.02, 0.25, 8)
    lower, upper = dynamic_optimum(np.tile(value, (20, 1)), 1.0, problem)
    optimum, _ = static_optimum(value, 1.0, problem)
    assert lower <= optimum + 1e-12 <= upper + 2e-12
    assert upper - lower < 2e-3


# The Bayes bound.

CHANCE, WEIGHT = np.array([0.05, 0.4, 0.5]), np.array([0.5, 0.2, 0.3])


def posterior(successes: int, failures: int) -> np.ndarray:
    belief = WEIGHT * CHANCE**successes * (1 - CHANCE) ** failures
    return belief / belief.sum()


@pytest.mark.parametrize("price", [0.02, 0.1, 0.2])
def test_the_priced_prompt_is_exhaustive_expectimax(price):
    """One response a group; after 4 groups p is told, and groups can be bought in parts."""
    problem = Problem(10, 10, 20, 20, 2, 1)
    rate = saturation_rate(CHANCE * (1 - CHANCE), 1.0, 2.0)
    parts = np.arange(0, 40, 1e-3)

    def value(successes: int, failures: int) -> float:
        belief, n = posterior(successes, failures), successes + failures
        if n == 4:
            told = [max(exp(-c * n) * (1 - np.exp(-c * parts)) - price * parts) for c in rate]
            return float(belief @ told)
        won = float(belief @ CHANCE)
        ahead = won * value(successes + 1, failures) + (1 - won) * value(successes, failures + 1)
        return max(0.0, float(belief @ (np.exp(-rate * n) * -np.expm1(-rate))) - price + ahead)

    found = stopping_value(CHANCE, WEIGHT, np.array([price]), problem, 1.0, 1, depth=4)
    assert found == pytest.approx([value(0, 0)], abs=1e-6)


def test_the_bayes_bound_exceeds_expectimax_over_a_pool():
    """Two prompts, three units one after the other: the best joint plan, by search over all histories."""
    problem = Problem(2, 3, 3, 1, 1, 1)
    rate = saturation_rate(CHANCE * (1 - CHANCE), 1.0, 1.5)

    def value(left: int, first: tuple[int, int], second: tuple[int, int]) -> float:
        if not left:
            return 0.0
        return max(step(left, first, lambda new: (new, second)), step(left, second, lambda new: (first, new)))

    def step(left, prompt, placed) -> float:
        won, lost = prompt
        belief = posterior(won, lost)
        chance = float(belief @ CHANCE)
        now = float(belief @ (np.exp(-rate * (won + lost)) * -np.expm1(-rate)))
        return (
            now
            + chance * value(left - 1, *placed((won + 1, lost)))
            + (1 - chance) * value(left - 1, *placed((won, lost + 1)))
        )

    best = value(3, (0, 0), (0, 0)) / 2
    assert best <= bayes_bound(CHANCE, WEIGHT, problem) <= 1.2 * best


def test_no_policy_exceeds_the_bayes_bound():
    problem = Problem(400, 40, 2_800, 90, 2, 4)
    p = np.random.default_rng(0).permutation(np.repeat([0.02, 0.5, 0.98], [160, 80, 160]))
    bound = bayes_bound(np.array([0.02, 0.5, 0.98]), np.array([0.4, 0.2, 0.4]), problem)
    reached = {
        name: np.mean([surrogate(name, problem, World(p, seed), seed) for seed in range(2)]) for name in POLICIES
    }
    assert max(reached.values()) <= bound
    assert bound <= run(TrueGreedy(World(p, 0), problem), World(p, 0), problem).surrogate


def surrogate(policy: str, problem: Problem, world: World, seed: int) -> float:
    return run(open_allocator(policy, problem, world, seed), world, problem).surrogate


# The paper's bound.


@pytest.mark.parametrize("policy", [name for name in ("cero", "sluice") if name in POLICIES])
def test_regret_keeps_to_bound_11(policy):
    for seed in range(3):
        path = static_path(StaticJob(Contender(policy, policy), 100, seed))
        assert 0 <= path.regret <= path.bound <= 1
        assert 0 < path.error < 0.25


# Worlds.


def test_latent_laws_have_the_moments_of_their_quadrature():
    laws = (Beta(0.35, 0.6), LogitNormal(-1.5, 2), Mixture(((0.3, Beta(2, 1)), (0.7, LogitNormal(3, 0.5)))))
    for law in laws:
        drawn = sigmoid(law.draw(np.random.default_rng(0), 200_000))
        chance, weight = quadrature(law)
        assert drawn.mean() == pytest.approx(weight @ chance, abs=3e-3)
        assert np.mean(drawn * (1 - drawn)) == pytest.approx(weight @ (chance * (1 - chance)), abs=1e-3)
    chance, weight = quadrature(Beta(0.35, 0.6))
    assert weight @ chance == pytest.approx(0.35 / 0.95, abs=1e-6)


def test_families_are_quantiles_of_a_noisy_difficulty():
    logit = np.linspace(-3, 3, 64)
    families = difficulty_families(logit, 16, 0.0, np.random.default_rng(0))
    assert families == [f"difficulty {i // 4}" for i in range(64)]


def test_drift_follows_its_path():
    world = Drift(linear_drift(np.array([0.0, 1.0]), np.array([4.0, -4.0]), 4), seed=0)
    world.finish_round(0.0)
    assert world.probability == pytest.approx(sigmoid(np.array([1.0, 0.0])))


def test_effective_groups_teach_in_proportion_to_their_units():
    world = Learning(np.zeros(4), seed=0, max_units=2, own=0.2, shared=0.01)
    world.learn(Groups(np.array([0, 1, 2]), np.array([2, 1, 2]), np.array([8, 4, 8]), np.array([3, 1, 8])))
    world.finish_round(0.1)
    assert world.probability == pytest.approx(sigmoid(np.array([0.21, 0.11, 0.01, 0.01])))


def test_answers_follow_chance_and_length():
    lengths = Lengths(np.array([100.0, 400.0]), longest_tokens=500)
    world = World(np.array([0.2, 0.9]), seed=0, lengths=lengths)
    groups = [world.answer(np.array([0, 1]), np.array([8, 8])) for _ in range(2_000)]
    successes, tokens = (np.mean(column, axis=0) / 8 for column in zip(*groups, strict=True))
    assert successes == pytest.approx([0.2, 0.9], abs=0.01)
    assert tokens == pytest.approx([100, 400], rel=0.05)
    assert max(max(group[1]) for group in groups) <= 8 * 500


class Held:
    """Samples prompt 0 in every round; updates only after every second one."""

    def __init__(self):
        self._observed = 0

    @property
    def holds_update(self) -> bool:
        return self._observed % 2 == 1

    def decide(self, epoch: int) -> Decision:
        return Decision(np.array([0]), np.array([1]))

    def observe(self, epoch, prompts, successes, failures, tokens=None) -> None:
        self._observed += 1


class Alternating(World):
    """Right, wrong, right, ...: no single response is an effective group, two together are."""

    def __init__(self):
        super().__init__(np.array([0.5]), seed=0)
        self.learned: list[tuple[int, Groups]] = []
        self._rounds = 0

    def answer(self, prompts, rollouts):
        return np.array([self._rounds % 2]), np.array([0])

    def learn(self, groups: Groups) -> None:
        self.learned.append((self._rounds, groups))

    def finish_round(self, spent_share: float) -> None:
        self._rounds += 1


def test_a_held_update_delays_learning_and_merges_groups():
    world = Alternating()
    trace = run(Held(), world, Problem(1, 4, 4, 1, 1, 1))
    assert [when for when, _ in world.learned] == [1, 3]
    assert [groups.rollouts.tolist() for _, groups in world.learned] == [[2], [2]]
    assert (trace.updates, trace.groups, trace.effective_groups, trace.effective_rate) == (2, 2, 2, 1.0)
    assert trace.effective_rollout_share == 1.0


def test_held_groups_of_different_prompts_stay_apart():
    first = Groups(np.array([3, 1]), np.array([1, 2]), np.array([4, 8]), np.array([0, 5]))
    second = Groups(np.array([3]), np.array([1]), np.array([4]), np.array([4]))
    prompts, units, rollouts, successes = merged([first, second])
    assert (prompts.tolist(), units.tolist()) == ([1, 3], [2, 2])
    assert (rollouts.tolist(), successes.tolist()) == ([8, 8], [5, 4])


def test_a_run_spends_its_budget_and_counts_it():
    arena = next(iter(ARENAS.values()))
    problem = Problem(60, 20, 300, 16, 2, 4)
    world = arena.world(problem, seed=1)
    trace = run(open_allocator("uniform", problem, world, 0), world, problem)
    assert trace.spent_units.sum() == trace.exposure.sum() == 300
    assert trace.rollouts == 1_200
    assert trace.surplus_rollouts[-1] == 0
    assert 0 < trace.surrogate < 1


# Recordings.


def journal(run_dir, rate: dict[str, float], epochs: int = 40) -> None:
    """Every second prompt in turn, a group of 8 with exactly its success rate."""
    lines = []
    for epoch in range(epochs):
        prompts = list(rate)[epoch % 2 :: 2]
        event = {"event": "decided", "epoch": epoch, "prompts": prompts, "rollouts": [8] * len(prompts)}
        sums = [8 * rate[prompt] for prompt in prompts]
        lines += [event, {"event": "rolled_out", "epoch": epoch, "rollouts": 8 * len(prompts), "reward_sums": sums}]
    run_dir.mkdir()
    text = "\n".join(json.dumps(line) for line in [{"event": "stage_started"}, *lines])
    (run_dir / "journal.jsonl").write_text(text + '\n{"event": "torn')


def test_a_run_becomes_a_recording_and_a_world(tmp_path):
    rate = {"a": 0.0, "b": 1.0, "c": 0.5}  # in the order in which the journal names them first: a, c, b
    journal(tmp_path / "run", rate)
    recording = Recording.load(tmp_path / "run")
    assert recording.success_rate.shape == (11, 3)
    assert recording.success_rate == pytest.approx(np.tile([0, 0.5, 1], (11, 1)), abs=0.03)
    recording.save(tmp_path / "run.npz")
    loaded = Recording.load(tmp_path / "run.npz")
    assert loaded.success_rate == pytest.approx(recording.success_rate, abs=1e-6)
    assert (loaded.epochs, loaded.budget_rollouts, loaded.group_rollouts) == (40, 480, 8)
    problem = loaded.problem()
    assert (problem.prompts, problem.epochs, problem.budget_units, problem.unit_rollouts) == (3, 40, 120, 4)


def test_a_recorded_world_is_linear_in_the_budget():
    world = Recorded(Recording(np.array([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])), seed=0)
    assert world.probability.tolist() == [0, 1]
    for spent, expected in ((0.25, [0.5, 1]), (0.5, [1, 1]), (0.75, [1, 0.5]), (1.0, [1, 0])):
        world.finish_round(spent)
        assert world.probability.tolist() == expected


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ({}, "no floats success_rate"),
        ({"success_rate": np.ones(3)}, "no floats success_rate"),
        ({"success_rate": np.full((2, 2), 1.5)}, "not within 0..1"),
        ({"success_rate": np.ones((2, 2)), "families": np.array(["a"])}, "families"),
        ({"success_rate": np.ones((2, 2)), "epochs": np.array([3, 4])}, "epochs must be a count"),
        ({"success_rate": np.ones((2, 2)), "epochs": np.array(-3)}, "epochs must be a count"),
    ],
)
def test_bad_recordings_are_refused(tmp_path, entries, complaint):
    np.savez(tmp_path / "bad.npz", **entries)
    with pytest.raises(BadRecording, match=complaint):
        Recording.load(tmp_path / "bad.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"\x93NUMPY"])
def test_a_file_that_is_no_recording_is_refused(tmp_path, content):
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(BadRecording, match=r"no \.npz file"):
        Recording.load(tmp_path / "bad.npz")


# What comes out.


def test_intervals_are_students():
    assert Interval.of([1.0, 3.0]) == pytest.approx((2.0, 12.706))
    wide = Interval.of(np.tile([-1.0, 1.0], 10))
    assert wide.half_width == pytest.approx(2.093 * np.sqrt(20 / 19) / np.sqrt(20), rel=1e-3)
    assert np.isnan(Interval.of([1.0]).half_width)


def tailrace(*arguments):
    return CliRunner().invoke(app, ["simulate", *map(str, arguments)])


def test_the_command_prints_json_and_draws(tmp_path):
    result = tailrace("static", "--quick", "--seeds", 1, "--policies", "cero,uniform", "--json", "--plots", tmp_path)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["static"]["tables"][0]["rows"]
    assert [row["policy"] for row in rows] == ["cero", "uniform", "cero, lambda 3"]
    assert 0 < rows[0]["K=50"]["mean"] < 0.2
    assert rows[0]["K=50"]["half_width"] is None
    assert (tmp_path / "static.svg").read_text().startswith("<?xml")


def test_the_command_replays_a_run_for_people(tmp_path):
    journal(tmp_path / "run", {f"prompt {i}": i / 12 for i in range(13)})
    result = tailrace("--replay", tmp_path / "run", "--policies", "cero", "--seeds", 2, "--plots", tmp_path)
    assert result.exit_code == 0, result.output
    assert "gap closed" in result.stdout
    assert "100.0%" in result.stdout
    assert (tmp_path / "replay.svg").is_file()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["weather"], "unknown experiment 'weather'"),
        (["static", "--policies", "cero,fate"], "unknown policy 'fate'"),
        (["--replay", "nowhere.npz"], "nowhere.npz"),
        (["static", "--seeds", "0"], "--seeds"),
    ],
)
def test_bad_input_exits_2(arguments, complaint):
    result = tailrace(*arguments)
    assert result.exit_code == 2
    assert complaint in result.output


def test_every_experiment_has_its_plots(tmp_path):
    """All of them, small, through the processes of the command."""
    result = tailrace(*EXPERIMENTS, "--quick", "--seeds", 1, "--policies", "cero", "--plots", tmp_path)
    assert result.exit_code == 0, result.output
    names = {path.stem for path in tmp_path.iterdir()}
    assert names == {"paper-exposure", "paper-pace", "league", "league-worlds", "static", "drift", "tokens"}
