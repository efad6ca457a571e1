"""Reads the files of cluster/ and validates them against the schemas of their consumers.

YAML is read strictly: a duplicate key is an error, where most parsers silently use the last one.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
KUBERAY = CLUSTER / "kuberay"
SCHEMAS = Path(__file__).parent / "schemas"

SCHEMA_OF = {
    "CronJob": "kubernetes.json#/$defs/io.k8s.api.batch.v1.CronJob",
    "RayJob": "rayjob.json",
    "Role": "kubernetes.json#/$defs/io.k8s.api.rbac.v1.Role",
    "RoleBinding": "kubernetes.json#/$defs/io.k8s.api.rbac.v1.RoleBinding",
    "ServiceAccount": "kubernetes.json#/$defs/io.k8s.api.core.v1.ServiceAccount",
}


def documents(path: Path) -> list[dict[str, Any]]:
    """Return the documents of a YAML file."""
    text = path.read_text(encoding="utf-8")
    for node in yaml.compose_all(text, yaml.SafeLoader):
        check_unique_keys(node)
    return list(yaml.safe_load_all(text))


def check_unique_keys(node: Any) -> None:
    """Raises: AssertionError if a mapping at or below this YAML node has a duplicate key."""
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        assert len(set(keys)) == len(keys), f"duplicate key in {sorted(keys)}{node.start_mark}"
        for _, value in node.value:
            check_unique_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            check_unique_keys(item)


def schema_errors(item: dict[str, Any]) -> list[str]:
    """Return the errors that the API server would report for a Kubernetes object, each with its dotted path."""
    resources = [Resource.from_contents(json.loads(path.read_text())) for path in SCHEMAS.glob("*.json")]
    registry: Registry[Any] = resources @ Registry()
    validator = Draft202012Validator({"$ref": SCHEMA_OF[item["kind"]]}, registry=registry)
    return [
        f"{'.'.join(str(key) for key in error.absolute_path)}: {error.message}" for error in validator.iter_errors(item)
    ]


def rayjob() -> dict[str, Any]:
    (document,) = documents(KUBERAY / "rayjob.yaml")
    return document


def nightly(kind: str, name: str | None = None) -> dict[str, Any]:
    """Return the only object of nightly.yaml with this kind and name."""
    (found,) = [
        document
        for document in documents(KUBERAY / "nightly.yaml")
        if document["kind"] == kind and name in (None, document["metadata"]["name"])
    ]
    return found


def groups() -> dict[str, dict[str, Any]]:
    """Return the groups of the RayJob's cluster, with the head as `head`."""
    cluster = rayjob()["spec"]["rayClusterSpec"]
    return {"head": cluster["headGroupSpec"], **{group["groupName"]: group for group in cluster["workerGroupSpecs"]}}


def pods() -> dict[str, dict[str, Any]]:
    """Return the specs of all pods in cluster/kuberay by group; the pod of the CronJob as `start`."""
    specs = {name: group["template"]["spec"] for name, group in groups().items()}
    return specs | {"start": nightly("CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]}


def containers(pod: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the containers of a pod, init containers first."""
    yield from pod.get("initContainers", [])
    yield from pod["containers"]


def num_bytes(quantity: str) -> int:
    """Return the bytes of a Kubernetes quantity in Mi, Gi or plain bytes."""
    for suffix, factor in (("Mi", 2**20), ("Gi", 2**30)):
        if quantity.endswith(suffix):
            return int(quantity.removesuffix(suffix)) * factor
    return int(quantity)
