"""The PromQL expressions of deploy/: where they are, and which metrics they name."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from cluster.metrics import METRICS

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))

RAY_METRICS = {
    "autoscaler_active_nodes", "autoscaler_failed_create_nodes_total", "autoscaler_pending_nodes",
    "ray_component_rss_bytes", "ray_gcs_actors_count",
    "ray_node_cpu_utilization", "ray_node_disk_free", "ray_node_disk_usage", "ray_node_gpus_utilization",
    "ray_node_gram_used", "ray_node_mem_total", "ray_node_mem_used",
    "ray_object_store_available_memory", "ray_object_store_used_memory", "ray_resources",
}  # fmt: skip
"""Of what Ray 2.60.0 was seen to export."""

WORDS = {"and", "or", "unless", "on", "by", "group_left"}


def groups(name: str) -> list[dict[str, Any]]:
    """The rule groups of a file in deploy/prometheus."""
    return yaml.safe_load((PROMETHEUS / name).read_text())["groups"]


def recorded() -> set[str]:
    """Names that the recording rules add."""
    return {rule["record"] for group in groups("rules.yml") for rule in group["rules"]}


def known() -> set[str]:
    """Every metric that an expression may name."""
    return {metric.name for metric in METRICS} | RAY_METRICS | recorded() | {"up"}


def metric_names(expression: str) -> set[str]:
    """Metrics in an expression: what is left without strings, selectors, label lists, windows, functions and words."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", bare)
    bare = re.sub(r"\b(by|on|without|ignoring)\s*\([^)]*\)", r"\1", bare)
    names = set(re.findall(r"[A-Za-z_:][\w:]*(?![\w:]|\s*\()", bare))
    return names - WORDS - {"sum", "avg", "max", "min", "count"}  # aggregations may stand before `by`


def panels(dashboard: Path) -> list[dict[str, Any]]:
    return json.loads(dashboard.read_text())["panels"]


def expressions(panel: dict[str, Any], run: str = ".*") -> list[str]:
    """What a panel asks for, of this run or over all."""
    return [target["expr"].replace("$run", run) for target in panel["targets"]]
