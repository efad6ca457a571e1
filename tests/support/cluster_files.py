"""The files of cluster/, read and held against the schemas of those who will read them.

YAML is read as strictly as can be: a key that stands twice is an error, where most readers take the last one silently.
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
    """The documents of a YAML file."""
    text = path.read_text(encoding="utf-8")
    for node in yaml.compose_all(text, yaml.SafeLoader):
        refuse_twice(node)
    return list(yaml.safe_load_all(text))


def refuse_twice(node: Any) -> None:
    """Raises: AssertionError where a mapping of this YAML node, or one below it, has a key twice."""
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        assert len(set(keys)) == len(keys), f"{sorted(keys)}: one stands twice{node.start_mark}"
        for _, value in node.value:
            refuse_twice(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            refuse_twice(item)


def complaints(thing: dict[str, Any]) -> list[str]:
    """What the API server would refuse of a Kubernetes object: each with its dotted path."""
    resources = [Resource.from_contents(json.loads(path.read_text())) for path in SCHEMAS.glob("*.json")]
    registry: Registry[Any] = resources @ Registry()
    validator = Draft202012Validator({"$ref": SCHEMA_OF[thing["kind"]]}, registry=registry)
    return [
        f"{'.'.join(str(part) for part in error.absolute_path)}: {error.message}"
        for error in validator.iter_errors(thing)
    ]


def rayjob() -> dict[str, Any]:
    (document,) = documents(KUBERAY / "rayjob.yaml")
    return document


def nightly(kind: str, name: str | None = None) -> dict[str, Any]:
    """The one object of nightly.yaml of that kind, and name."""
    (found,) = [
        document
        for document in documents(KUBERAY / "nightly.yaml")
        if document["kind"] == kind and name in (None, document["metadata"]["name"])
    ]
    return found


def groups() -> dict[str, dict[str, Any]]:
    """The groups of the RayJob's cluster, `head` among them."""
    cluster = rayjob()["spec"]["rayClusterSpec"]
    return {"head": cluster["headGroupSpec"], **{group["groupName"]: group for group in cluster["workerGroupSpecs"]}}


def pods() -> dict[str, dict[str, Any]]:
    """The specs of all pods in cluster/kuberay, by group; the one that starts the night as `start`."""
    specs = {name: group["template"]["spec"] for name, group in groups().items()}
    return specs | {"start": nightly("CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]}


def containers(pod: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The containers of a pod, those of its start first."""
    yield from pod.get("initContainers", [])
    yield from pod["containers"]


def num_bytes(quantity: str) -> int:
    """Bytes of a Kubernetes quantity in Mi, Gi or plain."""
    for suffix, factor in (("Mi", 2**20), ("Gi", 2**30)):
        if quantity.endswith(suffix):
            return int(quantity.removesuffix(suffix)) * factor
    return int(quantity)
