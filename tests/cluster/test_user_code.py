"""The user's reward module runs where a run asks for it, and nowhere else."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hostile import STARTS, answered, starts
from small_spec import small

from cluster.packing import pack
from cluster.spec import dump_spec, load_spec
from cluster.user_code import check_reward
from trainer.types import BadInput

LOUD = "from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\ndef judge(**_):\n    return 0.5\n"


@pytest.fixture
def spec_path(tmp_path, monkeypatch) -> Path:
    """A spec whose reward module leaves a mark when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("loud_reward.py").write_text(LOUD)
    data = small()
    data["run"]["directory"] = str(tmp_path / "runs")
    data["task"]["reward"] = "loud_reward:judge"
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(data))
    yield path
    sys.modules.pop("loud_reward", None)


def test_only_a_run_imports_the_reward(spec_path, tmp_path, monkeypatch):
    import cluster.launch

    ran = tmp_path / "loud_reward.ran"
    run_dir = tmp_path / "runs" / "small"
    run_dir.mkdir(parents=True)
    (tmp_path / "package").mkdir()
    assert answered("plan", spec_path).exit_code == 0
    pack(load_spec(spec_path), 60.0, [], tmp_path / "package")
    assert (tmp_path / "package" / "loud_reward.py").is_file()
    (run_dir / "spec.yaml").write_text(dump_spec(load_spec(spec_path)))
    assert answered("report", run_dir).exit_code == 0
    for command in ("submit", "status", "logs", "stop", "list"):
        words = {"submit": [spec_path], "list": []}.get(command, ["small"])
        assert answered(command, *words, "--address", "http://127.0.0.1:1").exit_code == 1
    assert not ran.exists()
    monkeypatch.setattr(cluster.launch, "Cluster", starts)
    result = answered("train", spec_path, "--run-dir", tmp_path / "runs" / "new")
    assert STARTS in result.stderr
    assert ran.exists()


def test_plan_in_a_process_of_its_own_does_not_import_the_reward_either(spec_path, tmp_path):
    command = [sys.executable, "-m", "cluster.cli", "plan", str(spec_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "loud_reward.ran").exists()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("def other(): pass", "has no function judge"),
        ("def judge(:", "cannot import loud_reward: SyntaxError"),
        ("\0", "cannot import loud_reward"),
        ("(" * 3000, "cannot import loud_reward"),
        ("from elsewhere import judge", None),
        ("from elsewhere import x as judge", None),
        ("from elsewhere import *", None),
        ("judge = lambda **_: 1", None),
        ("globals()['judge'] = print", None),
        ("class judge: pass", None),
    ],
)
def test_a_reward_that_cannot_work_is_found_without_running_it(spec_path, text, found):
    Path("loud_reward.py").write_text(text)
    if found is None:
        check_reward("loud_reward:judge")
        return
    with pytest.raises(BadInput, match=found):
        check_reward("loud_reward:judge")
