"""Responses that move between two real engines: every group comes back once, whole, with the tokens that were due."""

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.requests import GroupRequest, Sampling
from cluster.bubbles import Bubbles
from cluster.errors import ActorLost
from cluster.lengths import Lengths
from cluster.placement import Actors
from cluster.rollouts import Rollouts
from cluster.spec import parse_spec
from cluster.workers import Workers
from trainer.models import load_tokenizer, prepare_model
from trainer.spec import ModelSpec, ReasoningGymSource, TaskSpec, TinySpec
from trainer.tasks import Pools, build_pools
from trainer.types import Group

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]
ENVIRONMENT = {"env_vars": {"TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"}}
MAX_TOKENS, SLOTS, RESPONSES = 120, 4, 80
GREEDY, SAMPLED = (Sampling("train", MAX_TOKENS, temperature) for temperature in (0.0, 1.0))
LONG = Sampling("train", 600, 0.0)


@pytest.fixture(scope="module")
def stack(ray_cluster, tmp_path_factory) -> SimpleNamespace:
    """Two rollout workers with few slots, their pools, and how to start another one."""
    import ray

    from actors.engine_config import EngineConfig
    from actors.rollout import RolloutWorker

    tiny = TinySpec(layers=2, hidden_size=64, intermediate_size=128, kv_heads=1)
    model = ModelSpec(source="tiny", context_tokens=640, tiny=tiny)
    path = prepare_model(model, tmp_path_factory.mktemp("model"), 1, "float32")
    source = ReasoningGymSource(
        kind="reasoning_gym", generator="chain_sum", train_prompts=4, question_pattern=": (.*) ="
    )
    task = TaskSpec(sources=[source], template="{question}")
    pools = Pools(build_pools(task, load_tokenizer(Path(path)), 42).train, [])
    engine = EngineConfig(str(path), "float32", 640, SLOTS, 2**26, 0.5, 1, 1, 0)
    actor = ray.remote(RolloutWorker).options(num_cpus=0.5, max_concurrency=8, runtime_env=ENVIRONMENT)
    by_name = {"train": pools.train, "heldout": []}

    def start() -> Any:
        return actor.remote(engine, task, by_name, 5)

    handles = {name: start() for name in "ab"}
    ray.get([worker.ready.remote() for worker in handles.values()])
    yield SimpleNamespace(handles=handles, pools=pools, start=start)
    for worker in handles.values():
        ray.kill(worker)


def collect(worker, count: int) -> list:
    import ray

    found: list = []
    while len(found) < count:
        found += ray.get(worker.collect.remote(5)).items
    return found


def requests(epoch: int, rollouts: int) -> list[GroupRequest]:
    return [GroupRequest(f"{epoch}/{p}", epoch, p, rollouts, 0) for p in range(4)]


def equal(one: Group, other: Group) -> bool:
    return (
        one.token_ids.tolist() == other.token_ids.tolist()
        and one.lengths.tolist() == other.lengths.tolist()
        and one.truncated.tolist() == other.truncated.tolist()
        and bool(np.allclose(one.logprobs, other.logprobs, atol=1e-4))
    )


def test_moved_twice_and_back_a_response_has_the_tokens_and_logprobs_that_it_would_have_had(stack):
    import ray

    a, b = stack.handles.values()
    ray.get(a.submit.remote(requests(0, 2), LONG))
    unmoved = {group.id: group for group in collect(a, 4)}

    ray.get(a.submit.remote(requests(0, 2), LONG))
    underway = []
    while sum(r.tokens for r in underway) < 20:
        underway = ray.get(a.progress.remote()).responses
    assert [r.waiting for r in underway] == [False] * 4 + [True] * 4
    ids = [r.id for r in underway[1:6]]
    began = time.perf_counter()
    given = ray.get(a.release.remote([*ids, "of a group that has ended:0"]))
    ray.get(b.adopt.remote(given))
    print(f"{len(given)} responses moved in {1e3 * (time.perf_counter() - began):.1f} ms")
    assert [c.id for c in given] == ids
    assert all(len(c.token_ids) == len(c.logprobs) for c in given)
    assert [len(c.token_ids) > 0 for c in given] == [True] * 3 + [False] * 2

    further = {r.id: r for r in ray.get(b.progress.remote()).responses}
    assert further.keys() <= set(ids)
    back = ray.get(b.release.remote(ids[:2]))
    assert [len(c.token_ids) >= len(g.token_ids) for c, g in zip(back, given[:2], strict=True)] == [True, True]
    ray.get(a.adopt.remote(back))

    ray.get(a.deliver.remote(collect(b, len(ids) - len(back))))
    found: list = []
    while sum(isinstance(item, Group) for item in found) < 4:
        new = collect(a, 1)
        ray.get(a.deliver.remote([item for item in new if not isinstance(item, Group)]))
        found += new
    groups = {item.id: item for item in found if isinstance(item, Group)}
    assert groups.keys() == unmoved.keys()
    assert all(equal(groups[id], unmoved[id]) for id in groups)


def rollouts_of(stack, small: dict, journal: Callable[..., None], crew: Any = None) -> Rollouts:
    small["run"]["deterministic"] = False
    small["rollout"]["max_running_requests"] = SLOTS
    spec = parse_spec(small, "test")
    actors = Actors(dict(stack.handles), {}, [], None, {}, {}, None, crew)
    workers = Workers(spec, actors, journal, print)
    bubbles = Bubbles(spec, actors, workers, journal)
    return Rollouts(spec, workers, 99, Lengths(stack.pools), bubbles, journal, lambda: None, lambda: None)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_an_idle_worker_takes_over_from_the_queue_of_a_straggler(stack, small, sampling):
    """One group fills a worker's queue; the other has nothing to do."""
    import ray

    events: list[tuple[str, dict]] = []
    request = GroupRequest("7/0", 7, 0, RESPONSES, 0)
    ray.get(stack.handles["a"].submit.remote([request], sampling))
    began = time.perf_counter()
    unmoved = collect(stack.handles["a"], 1)[0]
    alone_s = time.perf_counter() - began

    began = time.perf_counter()
    found = rollouts_of(stack, small, lambda event, **fields: events.append((event, fields))).sample(
        [request], sampling
    )
    print(f"alone {alone_s:.2f} s, with the idle worker {time.perf_counter() - began:.2f} s, {events}")
    moves = [fields for event, fields in events if event == "moved"]
    assert moves
    assert all((m["from"], m["to"], m["groups"]) == ("a", "b", ["7/0"]) for m in moves[:1])
    assert [event for event, _ in events].count("completed") == 1
    (group,) = found
    assert len(group) == RESPONSES
    assert len(group.token_ids) == len(group.logprobs) == group.lengths.sum()
    assert group.lengths.max() <= MAX_TOKENS
    if sampling is GREEDY:
        assert equal(group, unmoved)
    else:  # what had not begun has kept its seed
        same = sum(
            ours.token_ids.tolist() == theirs.token_ids.tolist() for ours, theirs in zip(group, unmoved, strict=True)
        )
        assert same >= RESPONSES - SLOTS * len(moves)


class Crew:
    """Starts another worker for a lost one, on the same Ray."""

    replaces = True

    def __init__(self, start: Callable[[], Any]) -> None:
        self.start_worker = lambda name: self.started.append(start()) or self.started[-1]
        self.started: list[Any] = []

    def end(self, handle: Any) -> None:
        import ray

        ray.kill(handle)

    def node_of(self, name: str) -> str:
        return "here"

    def leaving_nodes(self) -> dict[str, float]:
        return {}


@pytest.mark.parametrize("which", ["to", "from"])
def test_what_was_moved_survives_the_loss_of_its_holder_and_of_its_owner(stack, small, which):
    """The group is dropped wherever parts of it are, and sampled again as a whole; others are not touched."""
    import ray

    events: list[tuple[str, dict]] = []

    def journal(event: str, **fields) -> None:
        events.append((event, fields))
        if event == "moved" and not any(name == "worker_lost" for name, _ in events):
            ray.kill(stack.handles[fields[which]])

    crew = Crew(stack.start)
    ray.get([handle.ready.remote() for handle in stack.handles.values()])
    rollouts = rollouts_of(stack, small, journal, crew)
    (group,) = rollouts.sample([GroupRequest("9/0", 9, 0, RESPONSES, 0)], SAMPLED)
    for lost in [fields["worker"] for event, fields in events if event == "worker_lost"]:
        stack.handles[lost] = crew.started.pop()  # for the tests to come
    named = [event for event, _ in events]
    assert "moved" in named
    assert named.count("worker_lost") == 1
    assert [fields["groups"] for event, fields in events if event == "reissued"] == [["9/0"]]
    assert named.count("completed") == 1
    assert len(group) == RESPONSES
    assert len(group.token_ids) == len(group.logprobs) == group.lengths.sum()


def test_a_holder_that_dies_and_cannot_be_replaced_is_named(stack, small):
    import ray

    def kill(event: str, **fields) -> None:
        if event == "moved":
            ray.kill(stack.handles[fields["to"]])

    with pytest.raises(ActorLost, match=r"^b is lost: ActorDiedError"):
        rollouts_of(stack, small, kill).sample([GroupRequest("8/0", 8, 0, RESPONSES, 0)], SAMPLED)
