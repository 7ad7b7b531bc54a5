"""The resource bundles that a run asks of its cluster. Pure; `plan` counts with them and placement asks for them."""

from cluster.spec import Spec


def bundles(spec: Spec) -> list[dict[str, float]]:
    """CPU and GPU of each bundle.

    colocated: rollout worker i is in bundle i, learner rank i too where there is one; they take turns, so a bundle is
    as large as the larger of the two. disaggregated: one bundle per worker, then one per rank.
    """
    c, ranks = spec.cluster, spec.learner.ranks
    worker = _bundle(c.cpus_per_rollout_worker, c.gpus_per_rollout_worker)
    rank = _bundle(c.cpus_per_learner_rank, c.gpus_per_learner_rank)
    if c.placement == "disaggregated":
        return [dict(worker) for _ in range(c.rollout_workers)] + [dict(rank) for _ in range(ranks)]
    shared = {name: max(worker[name], rank[name]) for name in worker}
    return [dict(shared if i < ranks else worker) for i in range(c.rollout_workers)]


def _bundle(cpus: int, gpus: int) -> dict[str, float]:
    return {"CPU": float(cpus), "GPU": float(gpus)}
