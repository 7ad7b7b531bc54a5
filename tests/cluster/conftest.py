"""A whole run, and copies of it to damage."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory) -> Path:
    from hostile_run import write_run

    return write_run(tmp_path_factory.mktemp("hostile"))


@pytest.fixture
def copy(whole_run, tmp_path, monkeypatch) -> Callable:
    """Gives a fresh copy of the whole run, in a directory beside `outside`."""
    from hostile import starts

    import cluster.launch
    from cluster.checkpoint import RunDirectory

    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_text("keep")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(cluster.launch, "Cluster", starts)

    def fresh() -> RunDirectory:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return RunDirectory(shutil.copytree(whole_run, tmp_path / "run", symlinks=True))

    return fresh
