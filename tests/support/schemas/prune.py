"""Makes kubernetes.json: those definitions of the Kubernetes API that the files of cluster/ can reach.

    pip download --no-deps kubernetes-validate==1.37.0 && unzip kubernetes_validate-*.whl -d there
    python tests/support/schemas/prune.py there/kubernetes_validate/kubernetes-json-schema/v1.33.0-local-strict

The source is the OpenAPI of Kubernetes 1.33 (Apache-2.0), as kubernetes-validate (Apache-2.0) carries it: in its strict
form a field that is not known is an error. Descriptions are left out. The fields of KubeRay's own types are in
rayjob.json, which is written by hand and refers to these definitions.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOTS = (
    "io.k8s.api.batch.v1.CronJob",
    "io.k8s.api.core.v1.PodTemplateSpec",
    "io.k8s.api.core.v1.Service",
    "io.k8s.api.core.v1.ServiceAccount",
    "io.k8s.api.rbac.v1.Role",
    "io.k8s.api.rbac.v1.RoleBinding",
)


def main(source: str) -> None:
    known = json.loads((Path(source) / "_definitions.json").read_text())["$defs"]
    wanted, kept = list(ROOTS), dict[str, Any]()
    while wanted:
        name = wanted.pop()
        if name not in kept:
            kept[name] = bare(known[name])
            wanted += references(kept[name])
    document = {
        "$comment": "Kubernetes 1.33, Apache-2.0, https://github.com/kubernetes/kubernetes; made by prune.py",
        "$id": "kubernetes.json",
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": dict(sorted(kept.items())),
    }
    Path(__file__).with_name("kubernetes.json").write_text(json.dumps(document, separators=(",", ":")) + "\n")


def bare(node: Any) -> Any:
    """The schema without what says nothing of validity; a property that is named `description` stays."""
    if isinstance(node, list):
        return [bare(item) for item in node]
    if not isinstance(node, dict):
        return node
    said = {key: value for key, value in node.items() if not (key == "description" and isinstance(value, str))}
    return {key: bare(value) for key, value in said.items() if not key.startswith("x-kubernetes-")}


def references(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        for item in node:
            yield from references(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield str(value).rsplit("/", maxsplit=1)[-1]
            else:
                yield from references(value)


if __name__ == "__main__":
    main(sys.argv[1])
