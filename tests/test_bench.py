"""Runs that share actors each begin as a run with actors of its own."""

from pathlib import Path

from actors.learner import LearnerRank
from actors.learner_config import LearnerConfig
from benchmarks.bench import _reconfigure
from benchmarks.objectives import SPEC
from cluster.checkpoint import RunDirectory
from cluster.placement import Cluster
from cluster.spec import Spec, load_spec
from trainer.batches import minibatches
from trainer.types import Group


def spec_of(seed: int) -> Spec:
    return load_spec(SPEC, [f"run.seed={seed}", "learner.minibatches=4"])


def config_of(seed: int, path: Path) -> LearnerConfig:
    return Cluster(spec_of(seed), RunDirectory(path), "model", "float32", None)._learner_config()


def test_a_learner_that_an_earlier_run_started_draws_minibatches_by_the_new_run_s_seed(tmp_path):
    def drawn(rank: LearnerRank) -> list[list[int]]:
        return minibatches(groups, rank._config.spec.minibatches, [rank._config.seed, 0, 0])

    groups: list[Group] = [None] * 32  # type: ignore[list-item]  # only their number counts
    shared, own = (LearnerRank(config_of(seed, tmp_path), 0, spec_of(seed).task, {}) for seed in (0, 3))
    before = drawn(shared)
    _reconfigure(shared, config_of(3, tmp_path))
    assert drawn(shared) == drawn(own) != before
