"""One small spec, and one Ray cluster for all tests that need the real stack."""

import os
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
def finished(ray_cluster, tmp_path_factory):
    """Directory of a run of the small spec that nothing interrupted."""
    from cluster.checkpoint import RunDirectory
    from cluster.display import Display
    from cluster.launch import train
    from cluster.spec import parse_spec

    data = yaml.safe_load(SMALL.read_text())
    data["cluster"]["address"] = ray_cluster
    run = RunDirectory(tmp_path_factory.mktemp("runs") / "whole")
    train(parse_spec(data, "test"), run.path, Display("whole"))
    return run
