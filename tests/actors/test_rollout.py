"""A rollout worker on the real engine: what it accepts, what it refuses, and in which order weights arrive."""

from pathlib import Path

import pytest

from actors.requests import GroupRequest, Sampling
from trainer.models import load_tokenizer, prepare_model
from trainer.spec import LearnerSpec, ModelSpec, ReasoningGymSource, TaskSpec, TinySpec
from trainer.tasks import build_pools

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]
SAMPLING = Sampling("train", 6, 1.0)
ENVIRONMENT = {"env_vars": {"TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"}}


@pytest.fixture(scope="module")
def stack(ray_cluster, tmp_path_factory):
    """A rollout worker and a learner rank on the same small model, version 0, cut into many small buckets."""
    import ray

    from actors.engine_config import EngineConfig
    from actors.learner import LearnerRank
    from actors.learner_config import LearnerConfig
    from actors.rollout import RolloutWorker

    tiny = TinySpec(layers=2, hidden_size=64, intermediate_size=128, kv_heads=1)
    model = ModelSpec(source="tiny", context_tokens=48, tiny=tiny)
    path = prepare_model(model, tmp_path_factory.mktemp("model"), 1, "float32")
    source = ReasoningGymSource(
        kind="reasoning_gym", generator="chain_sum", train_prompts=4, question_pattern=": (.*) ="
    )
    task = TaskSpec(sources=[source], template="{question}")
    pools = {"train": build_pools(task, load_tokenizer(Path(path)), 42).train, "heldout": []}
    options = {"num_cpus": 0.5, "runtime_env": ENVIRONMENT}
    engine = EngineConfig(str(path), "float32", 48, 16, 2**26, 0.5, 1, 1, 0)
    learner = LearnerConfig(str(path), "float32", LearnerSpec(), 1.0, 1, "cpu", 0, 20_000)
    worker = ray.remote(RolloutWorker).options(max_concurrency=8, **options).remote(engine, task, pools, 5)
    rank = ray.remote(LearnerRank).options(**options).remote(learner, 0, task, pools)
    ray.get(rank.start.remote(*ray.get(rank.address.remote())))
    ray.get(worker.ready.remote())
    yield worker, rank
    ray.kill(worker)
    ray.kill(rank)


def collect(worker, count: int) -> list:
    import ray

    groups: list = []
    while len(groups) < count:
        groups += ray.get(worker.collect.remote(5))
    return groups


def test_groups_are_accepted_at_any_time_and_a_repeated_one_draws_the_same_tokens(stack):
    import ray

    worker, _ = stack
    request = GroupRequest("0/a", 0, 0, 4, 0)
    ray.get(worker.submit.remote([request], SAMPLING))
    ray.get(worker.submit.remote([GroupRequest("0/b", 0, 1, 3, 0)], SAMPLING))
    first = {group.id: group for group in collect(worker, 2)}
    assert {id: len(group) for id, group in first.items()} == {"0/a": 4, "0/b": 3}
    ray.get(worker.submit.remote([request], SAMPLING))
    again = collect(worker, 1)[0]
    assert again.token_ids.tolist() == first["0/a"].token_ids.tolist()
    assert len({tuple(rollout.token_ids) for rollout in again}) > 1


def test_buckets_that_arrive_in_the_wrong_order_load_in_the_right_one_and_stale_requests_are_refused(stack):
    import ray

    worker, rank = stack
    sent = ray.get(rank.publish.remote([worker], 1, 60))
    assert sent > 3 * 20_000  # several buckets, two in flight at a time
    with pytest.raises(ray.exceptions.RayTaskError, match="asks for weight version 0, version 1 is in service"):
        ray.get(worker.submit.remote([GroupRequest("1/a", 1, 0, 2, 0)], SAMPLING))
    late = worker.load.remote([ray.put([])], 1, 2, 30)
    early = worker.load.remote([ray.put([])], 0, None, 30)
    assert ray.get([early, late]) == [0, 0]
    ray.get(worker.submit.remote([GroupRequest("2/a", 2, 0, 2, 2)], SAMPLING))
    assert collect(worker, 1)[0].weight_version == 2
