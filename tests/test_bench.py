"""Runs that share actors each begin as a run with actors of its own."""

from actors.learner import LearnerRank
from benchmarks.bench import _reconfigure, _respecify
from benchmarks.objectives import SPEC
from cluster.checkpoint import RunDirectory
from cluster.placement import Cluster
from cluster.spec import Spec, load_spec
from trainer.batches import minibatches
from trainer.types import Group


def spec_of(seed: int) -> Spec:
    return load_spec(SPEC, [f"run.seed={seed}", "learner.minibatches=4"])


def test_a_learner_that_an_earlier_run_started_draws_minibatches_by_the_new_run_s_seed(tmp_path):
    def cluster_of(seed: int) -> Cluster:
        return Cluster(spec_of(seed), RunDirectory(tmp_path), "model", "float32", None)

    def rank_of(cluster: Cluster, seed: int) -> LearnerRank:
        return LearnerRank(cluster._configs.learner(), 0, spec_of(seed).task, {})

    def drawn(rank: LearnerRank) -> list[list[int]]:
        return minibatches(groups, rank._config.spec.minibatches, [rank._config.seed, 0, 0])

    groups: list[Group] = [None] * 32  # type: ignore[list-item]  # only their number counts
    cluster = cluster_of(0)
    shared, own = rank_of(cluster, 0), rank_of(cluster_of(3), 3)
    before = drawn(shared)
    _reconfigure(shared, _respecify(cluster, spec_of(3)))
    assert drawn(shared) == drawn(own) != before
