"""One small spec, and one Ray cluster for all tests that need the real stack."""

import contextlib
import os
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import settings

settings.register_profile("tailrace", deadline=None)
settings.load_profile("tailrace")

CANARY = "kept-to-myself-by-every-process"
"""A secret in the environment of the driver and of all actors."""
SMALL = Path(__file__).parent / "small.yaml"


@pytest.fixture
def small() -> dict:
    """The small spec as plain data: tiny model of some 100 k parameters, two workers, two ranks."""
    return yaml.safe_load(SMALL.read_text())


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory):
    """Address of a Ray cluster with two cores, up for the whole session."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # on a machine that does other things too
    os.environ["CANARY_API_KEY"] = CANARY
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    import ray

    context = ray.init(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=2**30, log_to_driver=False
    )
    yield context.address_info["address"]
    ray.shutdown()


@pytest.fixture(scope="session")
def watcher(tmp_path_factory):
    """Prometheus, if there is one, for as long as the session lasts; the runs below are scraped."""
    from scraping import Watcher, prometheus

    folder = tmp_path_factory.mktemp("prometheus")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(prometheus(folder)) if shutil.which("prometheus") else None
        yield Watcher(folder, server)


@pytest.fixture(scope="session")
def carried_out(ray_cluster, watcher, tmp_path_factory):
    """Carries out a spec given as plain data; the directory of the run."""
    from cluster.checkpoint import RunDirectory
    from cluster.launch import train
    from cluster.spec import parse_spec

    def carry_out(name: str, data: dict) -> RunDirectory:
        data["cluster"]["address"] = ray_cluster
        data["run"]["name"] = name
        run = RunDirectory(tmp_path_factory.mktemp("runs") / name)
        with watcher.watching(name) as display:
            train(parse_spec(data, "test"), run.path, display)
        return run

    return carry_out


@pytest.fixture(scope="session")
def finished(carried_out):
    """Directory of a run of the small spec that nothing interrupted."""
    return carried_out("whole", yaml.safe_load(SMALL.read_text()))


@pytest.fixture(scope="session")
def speculating(carried_out):
    """Directory of a run that trains a drafter from random weights and speculates with it."""
    data = yaml.safe_load(SMALL.read_text())
    data["run"]["deterministic"] = False
    train = {"steps": 3, "micro_step_tokens": 128, "cold_start_s": 16}
    data["drafter"] = {"method": "eagle3", "max_draft_tokens": 3, "train": train}
    return carried_out("speculating", data)


@pytest.fixture(scope="session")
def under_tokens(carried_out):
    """Directory of a run whose budget are tokens, and whose batches are filled over several epochs."""
    data = yaml.safe_load(SMALL.read_text())
    del data["recipe"][1], data["recipe"][-1], data["task"]["reward"]
    data["allocator"] = {**data["allocator"], "policy": "dapo", "budget_rollouts": None, "budget_tokens": 1200}
    return carried_out("tokens", data)
