"""What the doctor says of a machine."""

import json
import subprocess
import sys
from typing import Any

import pytest
from test_cli import tailrace

from cluster import doctor
from cluster.doctor import Finding


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stands in for the import of vLLM, which takes seconds: does what a test sets as `answer`."""

    def set_answer(stdout: str = "", stderr: str = "", code: int = 0) -> None:
        answer = subprocess.CompletedProcess([], code, stdout, stderr)
        monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: answer)

    set_answer(json.dumps({"platform": "cpu", "torch": "2.13.0", "gpus": [], "nccl": None}))
    return set_answer


def by_name(findings: Any) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_the_machine_of_the_tests_has_no_fault(probe):
    found = doctor.examine()
    assert [finding for finding in found if finding.level == "fail"] == []
    assert {"python", "cores", "memory", "/dev/shm", "g++", "package ray", "import of vllm", "token"} <= by_name(
        found
    ).keys()


def test_every_fault_comes_with_its_mend(monkeypatch, probe):
    probe(stderr="Traceback\nRuntimeError: operator torchvision::nms does not exist", code=1)
    monkeypatch.setattr(sys, "version_info", (3, 9))
    monkeypatch.setattr(doctor.shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(doctor, "installed", lambda name: "0.0.1")
    monkeypatch.setattr(doctor, "GOOD_DISK_BYTES", 2**80)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    found = by_name(doctor.examine())
    assert all(finding.mend for finding in found.values() if finding.level != "ok")
    for name in ("python", "g++", "ninja", "package ray", "import of vllm"):
        assert found[name].level == "fail", name
    assert found["token"].level == found["disk here"].level == "warn"
    assert "torchvision" in found["import of vllm"].mend


def test_a_gpu_that_torch_does_not_see_is_a_fault(monkeypatch, probe):
    node = type("Node", (), {"cpus": 8, "gpus": 2, "memory_bytes": 2**40})()
    monkeypatch.setattr(doctor, "this_machine", lambda: node)
    assert by_name(doctor.examine())["gpu"].level == "fail"


def test_a_token_that_others_can_read_is_remarked_and_not_shown(monkeypatch, tmp_path):
    token = tmp_path / "token"
    token.write_text("very-secret")
    token.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    [finding] = doctor._token()
    assert finding.level == "warn"
    assert "very-secret" not in str(finding)
    token.chmod(0o600)
    assert [f.level for f in doctor._token()] == ["ok"]


@pytest.mark.parametrize(("level", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_the_command_fails_on_faults_only(level, code, monkeypatch):
    monkeypatch.setattr(doctor, "examine", lambda: [Finding("disk", level, "full", "empty it")])
    result = tailrace("doctor", "--json")
    assert result.exit_code == code
    assert json.loads(result.stdout)["this machine"][0]["mend"] == "empty it"
