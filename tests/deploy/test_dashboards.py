"""Dashboards load, explain themselves, and ask for nothing that nobody exports."""

import json

import pytest
import yaml
from queries import DASHBOARDS, DEPLOY, expressions, groups, known, metric_names, panels, recorded

from cluster.metrics import METRICS

PANELS = [
    pytest.param(panel, id=f"{path.stem}-{panel['title']}") for path in DASHBOARDS for panel in panels(path)
]  # fmt: skip


@pytest.mark.parametrize("panel", PANELS)
def test_every_panel_explains_itself(panel):
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert all(target["legendFormat"] for target in panel["targets"])


@pytest.mark.parametrize("panel", PANELS)
def test_panels_name_only_known_metrics(panel):
    for expression in expressions(panel):
        assert metric_names(expression) <= known()


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_have_ids_of_their_own_and_do_not_overlap(path):
    taken = [
        (x, y)
        for panel in panels(path)
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24
    ids = [panel["id"] for panel in panels(path)]
    assert len(ids) == len(set(ids))


def test_every_metric_of_a_run_is_on_a_dashboard():
    asked = [e for path in DASHBOARDS for panel in panels(path) for e in expressions(panel)]
    rules = [rule["expr"] for group in groups("rules.yml") for rule in group["rules"]]
    shown = {name for expression in asked + rules for name in metric_names(expression)}
    assert {metric.name for metric in METRICS} <= shown


def test_every_recorded_rule_is_used():
    rules = [rule["expr"] for file in ("rules.yml", "alerts.yml") for group in groups(file) for rule in group["rules"]]
    asked = [e for path in DASHBOARDS for panel in panels(path) for e in expressions(panel)]
    assert recorded() <= {name for expression in asked + rules for name in metric_names(expression)}


def test_dashboards_and_provisioning_agree():
    uids = [json.loads(path.read_text())["uid"] for path in DASHBOARDS]
    assert len(uids) == len(set(uids)) == 5
    files = [
        file
        for generator in yaml.safe_load((DEPLOY / "grafana" / "kustomization.yaml").read_text())["configMapGenerator"]
        for file in generator["files"]
    ]
    assert all((DEPLOY / "grafana" / file).is_file() for file in files)
    assert {f"dashboards/{path.name}" for path in DASHBOARDS} <= set(files)
