"""A rollout worker on the real engine: what it accepts, what it refuses, and in which order weights arrive."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import psutil
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
    split = EngineConfig(str(path), "float32", 48, 16, 2**26, 0.5, 2, 2, 0)
    learner = LearnerConfig(str(path), "float32", LearnerSpec(), 1.0, 1, "cpu", 0, 20_000)
    worker = ray.remote(RolloutWorker).options(max_concurrency=8, **options).remote(engine, task, pools, 5)
    rank = ray.remote(LearnerRank).options(**options).remote(learner, 0, task, pools)
    ray.get(rank.start.remote(*ray.get(rank.address.remote())))
    ray.get(worker.ready.remote())
    yield (
        worker,
        rank,
        lambda: ray.remote(RolloutWorker).options(max_concurrency=8, **options).remote(split, task, pools, 5),
    )
    ray.kill(worker)
    ray.kill(rank)


def collect(worker, count: int) -> list:
    import ray

    groups: list = []
    while len(groups) < count:
        groups += ray.get(worker.collect.remote(5)).items
    return groups


def test_groups_are_accepted_at_any_time_and_a_repeated_one_draws_the_same_tokens(stack):
    import ray

    worker, *_ = stack
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

    worker, rank, _ = stack
    sent = ray.get(rank.publish.remote([worker], 1, 60))
    assert sent.bytes > 3 * 20_000  # several buckets, two in flight at a time
    with pytest.raises(ray.exceptions.RayTaskError, match="asks for weight version 0, version 1 is in service"):
        ray.get(worker.submit.remote([GroupRequest("1/a", 1, 0, 2, 0)], SAMPLING))
    assert sent.failed == {}
    late = worker.load.remote([ray.put([])], 1, 2, 30)
    early = worker.load.remote([ray.put([])], 0, None, 30)
    assert ray.get([early, late]) == [0, 0]
    ray.get(worker.submit.remote([GroupRequest("2/a", 2, 0, 2, 2)], SAMPLING))
    assert collect(worker, 1)[0].weight_version == 2


def test_a_publish_reaches_the_others_when_workers_are_dead_deaf_or_lie(stack):
    import ray

    class Liar:
        """Takes every bucket, and says that it was another one."""

        def load(self, refs: list, index: int, last_version: int | None, timeout_s: float) -> int:
            return 1

    class Deaf:
        def load(self, refs: list, index: int, last_version: int | None, timeout_s: float) -> int:
            time.sleep(60)
            return 0

    worker, rank, _ = stack
    liar, deaf, dead = (ray.remote(kind).options(num_cpus=0).remote() for kind in (Liar, Deaf, Liar))
    ray.get(dead.load.remote([], 0, None, 1))
    ray.kill(dead)
    sent = ray.get(rank.publish.remote([dead, worker, deaf, liar], 3, 2))
    assert {0, 2, 3} == sent.failed.keys()
    assert "died" in sent.failed[0]
    assert sent.failed[2] == "no bucket loaded within 2 s"
    assert "checksum 0000000000000001" in sent.failed[3]
    ray.get(worker.submit.remote([GroupRequest("3/a", 3, 0, 2, 3)], SAMPLING))
    assert collect(worker, 1)[0].weight_version == 3
    for actor in (liar, deaf):
        ray.kill(actor)


def test_an_abandoned_group_leaves_nothing_behind(stack):
    import ray

    worker, *_ = stack
    version = 3
    ray.get(worker.submit.remote([GroupRequest(f"4/{i}", 4, 0, 8, version) for i in "ab"], SAMPLING))
    ray.get(worker.abandon.remote(["4/a", "of another worker"]))
    left = collect(worker, 1) + ray.get(worker.collect.remote(0.5)).items
    assert "4/b" in {group.id for group in left}
    ray.get(worker.submit.remote([GroupRequest("5/a", 5, 0, 2, version)], SAMPLING))
    assert "5/a" in {group.id for group in collect(worker, 1)}


def test_an_engine_of_two_processes_samples_what_one_process_does_and_they_end_with_their_worker(stack):
    import ray

    def change(rank) -> None:
        """The learner's weights are others than those that an engine starts with."""
        for parameter in rank._engine.module.parameters():
            parameter.data.mul_(1.3)

    worker, rank, start_split = stack
    split = start_split()
    ray.get(split.ready.remote())
    pid = ray.get(split.__ray_call__.remote(lambda self: os.getpid()))
    processes = [process for process in psutil.Process(pid).children() if "Worker_TP" in " ".join(process.cmdline())]
    assert len(processes) == 2
    ray.get(worker.submit.remote([GroupRequest("6/before", 6, 1, 8, 3)], SAMPLING))
    (before,) = collect(worker, 1)
    ray.get(rank.__ray_call__.remote(change))
    assert ray.get(rank.publish.remote([worker, split], 4, 60)).failed == {}
    request = GroupRequest("6/a", 6, 1, 8, 4)
    for each in (worker, split):
        ray.get(each.submit.remote([request], SAMPLING))
    (ours,), (theirs,) = collect(split, 1), collect(worker, 1)
    assert ours.token_ids.tolist() == theirs.token_ids.tolist()
    assert np.allclose(ours.logprobs, theirs.logprobs, atol=1e-4)
    assert not np.allclose(before.logprobs, theirs.logprobs, atol=1e-2), "other weights"
    processes[1].send_signal(signal.SIGSTOP)  # it cannot see that its parent is gone
    ray.kill(split)
    assert psutil.wait_procs(processes, timeout=30)[1] == []
