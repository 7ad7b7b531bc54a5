"""The simulator: the laws of its worlds, recordings, the command."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from allocator.problem import Problem
from allocator.simulator.experiments import EXPERIMENTS
from allocator.simulator.latents import Beta, LogitNormal, Mixture, difficulty_families, quadrature, sigmoid
from allocator.simulator.league import ARENAS
from allocator.simulator.recordings import BadRecording, Recording
from allocator.simulator.report import Interval
from allocator.simulator.run import merged, open_allocator, run
from allocator.simulator.worlds import Decision, Drift, Groups, Learning, Lengths, Recorded, World, linear_drift
from cluster.cli import app

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
