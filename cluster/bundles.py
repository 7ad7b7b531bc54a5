"""The resource bundles that a run asks of its cluster. Pure; `plan` counts with them and placement asks for them."""

from collections.abc import Mapping

from cluster.spec import Spec


def bundles(spec: Spec) -> list[dict[str, float]]:
    """CPU and GPU of each bundle that a run cannot start without.

    colocated: rollout worker i is in bundle i, learner rank i too where there is one; they take turns, so a bundle is
    as large as the larger of the two. disaggregated: one bundle per worker, then one per rank.
    """
    c, ranks, workers = spec.cluster, spec.learner.ranks, spec.rollout.workers.min
    worker = _bundle(c.cpus_per_rollout_worker, c.gpus_per_rollout_worker)
    rank = _bundle(c.cpus_per_learner_rank, c.gpus_per_learner_rank)
    if c.placement == "disaggregated":
        return [dict(worker) for _ in range(workers)] + [dict(rank) for _ in range(ranks)]
    shared = {name: max(worker[name], rank[name]) for name in worker}
    return [dict(shared if i < ranks else worker) for i in range(workers)]


def labels(spec: Spec) -> list[dict[str, str]]:
    """Labels that the node of each bundle must have, in the order of `bundles`."""
    c, workers, ranks = spec.cluster, spec.rollout.workers.min, spec.learner.ranks
    if c.placement == "disaggregated":
        return [c.worker_labels] * workers + [c.learner_labels] * ranks
    return [c.worker_labels | (c.learner_labels if i < ranks else {}) for i in range(workers)]


def extra_bundle(spec: Spec) -> dict[str, float]:
    """Of a rollout worker beyond rollout.workers.min."""
    return _bundle(spec.cluster.cpus_per_rollout_worker, spec.cluster.gpus_per_rollout_worker)


def listed(resources: Mapping[str, float], labels: Mapping[str, str] | None = None) -> str:
    """As a message names them: `CPU 1, GPU 2`, with the labels that a node must have."""
    amounts = [f"{key} {value:g}" for key, value in sorted(resources.items()) if value]
    return ", ".join(amounts + [f"{key}={value}" for key, value in (labels or {}).items()]) or "nothing"


def _bundle(cpus: int, gpus: int) -> dict[str, float]:
    return {"CPU": float(cpus), "GPU": float(gpus)}
