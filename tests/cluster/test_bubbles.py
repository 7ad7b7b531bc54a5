"""Drafters in real actors: they train in a bubble, give it back, and may die or hang without harm to the run."""

import os
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
from small_spec import small

from actors.drafter import DrafterActor, DrafterConfig
from cluster import bubbles as module
from cluster.bubbles import Bubbles
from cluster.heads import prepare_head
from cluster.placement import Actors
from cluster.spec import parse_spec
from cluster.workers import Workers
from drafter.buffer import Blob
from drafter.features import FeatureSequence, to_columns
from drafter.files import load_head
from trainer.models import load_tokenizer, prepare_model
from trainer.tasks import build_pools

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]
ENVIRONMENT = {"env_vars": {"OMP_NUM_THREADS": "1"}}


def features(config, prompts: int = 24) -> Blob:
    """Responses that count upwards, with features that tell where they are."""
    import ray

    rng = np.random.default_rng(0)
    sequences = []
    for i in range(prompts):
        ids = ((np.arange(40) + i) % 90 + 3).astype(np.int32)
        table = np.random.default_rng(1).normal(size=(99, config.hidden_size)).astype(np.float16)
        wide = rng.normal(size=(40, config.feature_size)).astype(np.float16) * 0.1
        wide[:, -config.hidden_size :] = table[ids]
        sequences.append(FeatureSequence(f"{i:016x}", 0, ids, 4, wide, table[ids]))
    columns = to_columns(sequences)
    return Blob(ray.put(columns), 0, True, prompts, 40 * prompts, sum(a.nbytes for a in columns.values()))


@pytest.fixture
def world(ray_cluster, tmp_path):
    """Two drafters without their rollout workers, a buffer with features, and a journal to look at."""
    import ray

    spec = parse_spec(
        {
            **small(),
            "limits": {"worker_restarts": 0},
            "drafter": {"method": "eagle3", "train": {"micro_step_tokens": 128}},
        },
        "run.yaml",
    )
    target = prepare_model(spec.model, tmp_path, 1, "float32")
    tokenizer = load_tokenizer(target)
    head = prepare_head(spec, target, build_pools(spec.task, tokenizer, 48), tokenizer, tmp_path)
    config = DrafterConfig(str(head), str(target), spec.drafter.train, 6, 1.0, 1, 0)
    actor = ray.remote(DrafterActor).options(num_cpus=0, max_concurrency=4, runtime_env=ENVIRONMENT)
    drafters = {name: actor.remote(config) for name in ("rollout-0", "rollout-1")}
    ray.get([drafter.stop.remote(0) for drafter in drafters.values()])  # both have started
    events: list[dict] = []
    actors = Actors({**dict.fromkeys(drafters), "rollout-2": None}, {}, [], None, {}, drafters, head)

    def journal(event, **fields):
        events.append({"event": event, **fields})

    workers = Workers(spec, actors, journal, print)
    bubbles = Bubbles(spec, actors, workers, journal)
    bubbles.buffer.add([features(load_head(head).config)])
    yield SimpleNamespace(bubbles=bubbles, drafters=drafters, events=events, spec=spec, actors=actors, path=tmp_path,
                          workers=workers, journal=journal)  # fmt: skip
    for drafter in drafters.values():
        ray.kill(drafter)


def named(events: list[dict], name: str) -> list[dict]:
    return [event for event in events if event["event"] == name]


def ticked(world, busy: set[str], until, limit_s: float = 30.0) -> None:
    """The rollout phase goes on until something has happened."""
    deadline = time.monotonic() + limit_s
    while not until():
        assert time.monotonic() < deadline, world.events
        world.bubbles.tick(busy)
        time.sleep(0.01)


def test_idle_workers_train_as_replicas_and_give_the_lease_back_at_once(world):
    started = time.monotonic()
    ticked(world, {"rollout-2"}, lambda: time.monotonic() > started + 4)
    world.bubbles.over()
    ticked(world, set(world.actors.workers), lambda: len(named(world.events, "lease_returned")) == 2)
    sessions = named(world.events, "lease_returned")
    assert {s["worker"] for s in sessions} == {"rollout-0", "rollout-1"}
    assert all(s["micro_steps"] > 10 for s in sessions)
    figures = world.bubbles.leases.take_stats()
    assert figures.harvested_s > 0.8 * figures.idle_s
    assert max(figures.give_back_s) < 0.5
    assert len(world.bubbles.drafters._states) == 2, "both replicas are averaged when the next session begins"
    ticked(world, {"rollout-2"}, lambda: len(named(world.events, "leased")) == 4)
    world.bubbles.over()
    ticked(world, set(world.actors.workers), lambda: len(named(world.events, "lease_returned")) == 4)


def test_a_checkpoint_holds_state_and_buffer_and_a_resumed_run_has_both(world):
    ticked(world, {"rollout-2"}, lambda: len(named(world.events, "leased")) == 2)
    time.sleep(1.5)
    world.bubbles.over()
    ticked(world, set(world.actors.workers), lambda: len(named(world.events, "lease_returned")) == 2)
    directory = world.path / "checkpoint"
    directory.mkdir()
    world.bubbles.save(directory).result()
    again = Bubbles(world.spec, world.actors, world.workers, world.journal)
    again.load(directory)
    assert [(b.epoch, b.long, b.tokens) for b in again.buffer.blobs] == [(0, True, 960)]
    resumed = SimpleNamespace(**{**vars(world), "bubbles": again})
    ticked(resumed, {"rollout-2"}, lambda: len(named(world.events, "leased")) == 4)
    again.over()
    ticked(resumed, set(world.actors.workers), lambda: len(named(world.events, "lease_returned")) == 4)


def test_a_drafter_that_dies_in_its_lease_is_journaled_and_the_others_go_on(world):
    import ray

    ticked(world, {"rollout-2"}, lambda: len(named(world.events, "leased")) == 2)
    ray.kill(world.drafters["rollout-0"])
    ticked(world, {"rollout-2"}, lambda: named(world.events, "drafter_lost"))
    assert [event["worker"] for event in named(world.events, "drafter_lost")] == ["rollout-0"]
    assert world.bubbles.training
    ray.kill(world.drafters["rollout-1"])
    ticked(world, {"rollout-2"}, lambda: not world.bubbles.training)
    assert named(world.events, "drafter_training_ended")[0]["why"] == "every drafter is lost"
    world.bubbles.tick({"rollout-2"})  # the run itself goes on


def test_a_drafter_that_hangs_is_given_up(world, monkeypatch):
    import ray

    monkeypatch.setattr(module, "LEASE_TIMEOUT_S", 1.0)
    ticked(world, {"rollout-2"}, lambda: len(named(world.events, "leased")) == 2)
    time.sleep(0.5)
    os.kill(ray.get(world.drafters["rollout-0"].pid.remote()), signal.SIGSTOP)
    world.bubbles.over()
    ticked(world, set(world.actors.workers), lambda: named(world.events, "drafter_lost"))
    lost = named(world.events, "drafter_lost")
    assert [event["worker"] for event in lost] == ["rollout-0"]
    assert "did not stop" in lost[0]["why"]
