"""What an operator applies is what Ray, KubeRay and Kubernetes accept."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from queries import DEPLOY

from cluster.bundles import bundles
from cluster.spec import Spec, load_spec

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


def pods(name: str) -> list[dict[str, Any]]:
    """Worker groups of a Ray cluster that we ship, with the image and the resources of a pod."""
    manifest = next(m for m in yaml.safe_load_all((DEPLOY / "kuberay" / name).read_text()) if is_ray(m))
    groups = [(group, group["template"]["spec"]["containers"][0]) for group in cluster_of(manifest)["workerGroupSpecs"]]
    return [
        {
            "image": worker["image"],
            "most": group["maxReplicas"],
            "CPU": float(worker["resources"]["requests"]["cpu"]),
            "GPU": float(worker["resources"]["limits"].get("nvidia.com/gpu", 0)),
        }
        for group, worker in groups
    ]


def started(command: str) -> Spec:
    """The spec of a documented command."""
    words = shlex.split(command.replace("\\\n", " "))
    path = next(word for word in words if word.endswith("quickstart.yaml"))
    overrides = [value for option, value in pairwise(words) if option == "--set"]
    return load_spec(DEPLOY.parent / "examples" / Path(path).name, overrides)


WALKTHROUGH = re.search(r"tailrace submit (?:.*\\\n)*.*", (DEPLOY.parent / "docs" / "operations.md").read_text())
RUN_SH = next(yaml.safe_load_all((DEPLOY / "kuberay" / "rayjob.yaml").read_text()))["data"]["run.sh"]
TRAIN = re.search(r"tailrace train (?:.*\\\n)*.*", RUN_SH)


@pytest.mark.parametrize(("command", "name"), [(WALKTHROUGH, "raycluster.yaml"), (TRAIN, "rayjob.yaml")])
def test_the_documented_run_suits_the_cluster_that_it_is_started_on(command, name):
    spec, groups = started(command[0]), pods(name)
    needs_gpu = any(bundle["GPU"] for bundle in bundles(spec))
    for group in groups:
        assert group["image"].endswith(":gpu") == (group["GPU"] > 0) == needs_gpu
    for bundle in bundles(spec):
        assert any(bundle["CPU"] <= group["CPU"] and bundle["GPU"] <= group["GPU"] for group in groups)
    assert sum(bundle["GPU"] for bundle in bundles(spec)) <= sum(group["GPU"] * group["most"] for group in groups)


def test_a_cluster_that_begins_without_workers_is_given_time_for_them():
    """What `submit` does with --queue-s."""
    assert started(TRAIN[0]).limits.queue_timeout_s >= 1800


@pytest.mark.stack
@pytest.mark.parametrize("name", ["aws", "onprem"])
def test_ray_accepts_the_cluster_launchers_files(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((DEPLOY / "ray" / f"{name}.yaml").read_text()))
    validate_config(config)
    workers = [kind for kind in config["available_node_types"].values() if kind["max_workers"]]
    assert all(kind["min_workers"] < kind["max_workers"] for kind in workers)
    started = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    starts = [command for command in started if "ray start" in command]
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    if name == "onprem":  # where the image does not bring it: jobs run the `python` of the PATH that Ray has
        assert all(re.search(r"export PATH=\S+/\.venv/bin:\$PATH; .*ray start", command) for command in starts)
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
