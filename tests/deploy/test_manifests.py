"""What an operator applies is what Ray, KubeRay and Kubernetes accept."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from queries import DEPLOY

KUBERNETES = "1.35"
KUBERAY = json.loads((Path(__file__).parent / "kuberay.json").read_text())
MANIFESTS = [
    pytest.param(manifest, id=f"{path.stem}-{manifest['kind']}-{manifest['metadata']['name']}")
    for path in sorted((DEPLOY / "kuberay").glob("*.yaml"))
    if path.name != "kustomization.yaml"
    for manifest in yaml.safe_load_all(path.read_text())
]


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """The RayCluster spec of a RayCluster or a RayJob."""
    return manifest["spec"].get("rayClusterSpec", manifest["spec"])


def is_ray(manifest: dict[str, Any]) -> bool:
    return manifest["apiVersion"] == "ray.io/v1"


def built_in(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The manifest, or, of KubeRay's kinds, the pods in it."""
    if not is_ray(manifest):
        yield manifest
        return
    cluster = cluster_of(manifest)
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        template = {"metadata": {}, **group["template"]}
        yield {"apiVersion": "v1", "kind": "Pod", **template}


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_kubernetes_accepts_the_built_in_kinds(manifest):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for part in built_in(manifest):
        kubernetes_validate.validate(part, KUBERNETES, strict=True)


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_kuberay_accepts_its_kinds(manifest):
    if is_ray(manifest):
        jsonschema.validate(manifest["spec"], {**KUBERAY, "$ref": f"#/$defs/{manifest['kind']}"})


@pytest.mark.parametrize("manifest", [m for m in MANIFESTS if is_ray(m.values[0])])
def test_ray_clusters_scale_ask_for_a_token_and_match_the_pinned_ray(manifest):
    cluster = cluster_of(manifest)
    assert cluster["rayVersion"] == version("ray")
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["enableInTreeAutoscaling"]
    assert all(group["maxReplicas"] > group["minReplicas"] for group in cluster["workerGroupSpecs"])


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_every_volume_is_mounted_and_every_mount_has_a_volume(manifest):
    for part in built_in(manifest):
        if part["kind"] == "Pod":
            volumes = {volume["name"] for volume in part["spec"]["volumes"]}
            mounts = {m["name"] for container in part["spec"]["containers"] for m in container["volumeMounts"]}
            assert volumes == mounts


@pytest.mark.stack
@pytest.mark.parametrize("name", ["aws", "onprem"])
def test_ray_accepts_the_cluster_launchers_files(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((DEPLOY / "ray" / f"{name}.yaml").read_text()))
    validate_config(config)
    workers = [kind for kind in config["available_node_types"].values() if kind["max_workers"]]
    assert all(kind["min_workers"] < kind["max_workers"] for kind in workers)
    started = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    assert all("RAY_AUTH_MODE=token" in command for command in started if "ray start" in command)
    assert any(path.endswith(".ray/auth_token") for path in config["file_mounts"])


@pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl")
def test_the_kustomization_renders_what_the_head_pod_mounts():
    command = ["kubectl", "kustomize", DEPLOY / "kuberay"]
    rendered = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    manifests = list(yaml.safe_load_all(rendered))
    made = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests}
    head = next(m for m in manifests if m["kind"] == "RayCluster")["spec"]["headGroupSpec"]
    for volume in head["template"]["spec"]["volumes"]:
        for source in volume.get("projected", {}).get("sources", [volume]):
            if "configMap" in source:
                assert ("ConfigMap", source["configMap"]["name"]) in made
            if "persistentVolumeClaim" in source:
                assert ("PersistentVolumeClaim", source["persistentVolumeClaim"]["claimName"]) in made
