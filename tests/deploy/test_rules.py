"""Rules and alerts: Prometheus accepts them, every alert fires when it should and only then."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from queries import DEPLOY, PROMETHEUS, groups, known, metric_names

ALERTS = [rule for group in groups("alerts.yml") for rule in group["rules"]]
RULES = ALERTS + [rule for group in groups("rules.yml") for rule in group["rules"]]
OPERATIONS = (DEPLOY.parent / "docs" / "operations.md").read_text()

needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool: apt-get install prometheus")


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_accepts_the_configuration(tmp_path):
    shutil.copytree(PROMETHEUS, tmp_path, dirs_exist_ok=True)
    (tmp_path / "auth_token").write_text("token")
    promtool("check", "config", tmp_path / "prometheus.yml")


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then():
    promtool("test", "rules", PROMETHEUS / "alerts_test.yml")


def fires(case: dict) -> bool:
    return bool(case.get("exp_alerts"))


def neighbours(test: dict) -> list[str]:
    """Series of a test of which none of the alerts that it expects can be."""
    expected = [alert["exp_labels"] for case in test["alert_rule_test"] for alert in case.get("exp_alerts", [])]

    def is_another(series: str) -> bool:
        labels = dict(re.findall(r'(\w+)="([^"]*)"', series))
        return all(any(alert.get(name, value) != value for name, value in labels.items()) for alert in expected)

    return [one["series"] for one in test["input_series"] if is_another(one["series"])]


TESTED = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]


def test_every_alert_is_tested():
    assert [alert["alert"] for alert in ALERTS] == [test["name"] for test in TESTED]


@pytest.mark.parametrize("test", TESTED, ids=lambda test: test["name"])
def test_every_alert_is_tested_firing_and_silent(test):
    """Silent: at another time, and for a healthy neighbour of the series for which it fires."""
    cases = [case for case in test["alert_rule_test"] if case["alertname"] == test["name"]]
    assert any(fires(case) for case in cases)
    assert any(not fires(case) for case in cases)
    # Of RayUndiscovered there is one series in all: any target at all is its neighbour.
    assert neighbours(test) or test["name"] == "RayUndiscovered"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_rules_name_only_known_metrics(rule):
    assert metric_names(rule["expr"]) <= known()


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_has_a_severity_a_summary_and_a_runbook(alert):
    assert alert["labels"]["severity"] in {"warning", "critical"}
    assert alert["annotations"]["summary"]
    assert alert["annotations"]["runbook_url"] == f"docs/operations.md#{alert['alert'].lower()}"
    assert re.search(rf"^### {alert['alert']}$", OPERATIONS, re.MULTILINE)


def test_metric_names_are_found_in_an_expression():
    assert metric_names('sum by (run) (rate(a_total{x="b_c"}[5m])) / on (run) group_left max(run:d:ratio > 0)') == {
        "a_total",
        "run:d:ratio",
    }
