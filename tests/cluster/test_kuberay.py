"""cluster/kuberay: valid for the API server and Ray's autoscaler, and consistent with the job."""

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.scripts.scripts import drain_node

from kvq_batch import __version__
from kvq_batch.config.job import Job, Workers
from kvq_batch.config.load import load_job
from kvq_batch.engine.ray_cluster import minimum_resources
from tests.support.cluster_files import (
    KUBERAY,
    ROOT,
    containers,
    documents,
    groups,
    nightly,
    num_bytes,
    pods,
    rayjob,
    schema_errors,
)

GIB = 2**30

WORKER_BYTES = GIB * 3 // 4
"""Memory of a decoding worker without its child process: Python, Ray, Arrow, the rows of a block."""

FRAMES_BYTES = 2 * GIB
"""Frames in transit between child processes and workers, and Ray's own processes."""

RAYLET_KILLS_AT = 0.95
"""Share of a pod's memory above which Ray kills workers."""


@pytest.fixture(scope="module")
def job() -> Job:
    return load_job(KUBERAY / "job.toml")


@pytest.fixture(scope="module")
def node_types() -> dict[str, dict[str, Any]]:
    """Node types that Ray's autoscaler derives from the cluster of the RayJob."""
    cluster = {"metadata": {"name": "c", "namespace": "kvq"}, "spec": rayjob()["spec"]["rayClusterSpec"]}
    types: dict[str, dict[str, Any]] = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    return types


def test_objects_match_their_schemas() -> None:
    objects = [rayjob(), *documents(KUBERAY / "nightly.yaml")]
    assert [item["kind"] for item in objects] == [
        "RayJob", "ServiceAccount", "Role", "RoleBinding", "ServiceAccount", "CronJob",
    ]  # fmt: skip
    assert [error for item in objects for error in schema_errors(item)] == []


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("spec.entrypiont", "x", "'entrypiont' was unexpected"),
        ("spec.rayClusterSpec.authOptions.mode", "on", "'on' is not one of ['disabled', 'token']"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.maxReplicas", "8", "'8' is not of type 'integer'"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.template.spec.tolerationz", [], "'tolerationz' was unexpected"),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.env.0.valu", "x", "'valu' was unexpected"),
        ("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0, "0 is not of type 'string'"),
    ],
)
def test_schema_rejects_what_the_api_server_rejects(path: str, value: object, message: str) -> None:
    # Not a deep copy, which would keep YAML anchors shared and break several places at once.
    broken = json.loads(json.dumps(rayjob()))
    *parents, last = path.split(".")
    holder: Any = broken
    for key in parents:
        holder = holder[int(key) if key.isdigit() else key]
    holder[last] = value
    (error,) = schema_errors(broken)
    assert message in error


def test_duplicate_key_is_rejected(tmp_path: Path) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text("spec:\n  replicas: 1\n  replicas: 2\n")
    with pytest.raises(AssertionError, match="duplicate key"):
        documents(file)


def test_config_map_has_the_files_that_pods_use(job: Job) -> None:
    (kustomization,) = documents(KUBERAY / "kustomization.yaml")
    (generator,) = kustomization["configMapGenerator"]
    files = set(generator["files"])
    assert all((KUBERAY / name).is_file() for name in [*files, *kustomization["resources"]])
    commands = rayjob()["spec"]["entrypoint"] + " " + " ".join(next(containers(pods()["start"]))["command"])
    assert set(re.findall(r"/etc/kvq/(\S+)", commands)) == files
    for name, pod in pods().items():
        maps = [volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume]
        assert maps == ([generator["name"]] if name in ("head", "start") else [])
    # The submitter's shell would interpret these characters on its own pod.
    assert not set(rayjob()["spec"]["entrypoint"]) & set(";&|<>$`\"'")
    assert job.run.ray_address == "auto"


def test_mounts_and_volumes_match() -> None:
    for pod in pods().values():
        mounted = {mount["name"] for container in containers(pod) for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_images_and_ray_have_the_versions_of_the_project() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert rayjob()["spec"]["rayClusterSpec"]["rayVersion"] == pinned["ray"]
    images = {name: {container["image"] for container in containers(pod)} for name, pod in pods().items()}
    cpu, cuda = (f"registry.example.com/kvq-batch:{__version__}-{kind}" for kind in ("cpu", "cuda"))
    assert images == {"head": {cpu}, "decode": {cpu}, "score": {cpu, cuda}, "start": {cpu}}


def test_token_is_required_and_files_hold_no_secret() -> None:
    assert rayjob()["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token", "secretName": "kvq-ray-token"}
    secret = re.compile("KEY|TOKEN|SECRET|PASSWORD")
    for pod in pods().values():
        for container in containers(pod):
            for variable in container.get("env", []):
                assert not secret.search(variable["name"]) or "secretKeyRef" in variable["valueFrom"]


def test_pods_run_unprivileged_with_limits() -> None:
    for pod in pods().values():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000
        for container in containers(pod):
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            limits, requests = container["resources"]["limits"], container["resources"]["requests"]
            assert num_bytes(limits["memory"]) >= num_bytes(requests["memory"])
            # Kubernetes evicts pods first that use more memory than they requested.
            assert container["name"] in ("weights", "start") or limits["memory"] == requests["memory"]


def test_stages_fit_into_their_group_only(job: Job, node_types: dict[str, dict[str, Any]]) -> None:
    def fitting_groups(pool: Workers) -> list[str]:
        needed = minimum_resources([pool.model_copy(update={"min": 1})])
        return [
            name
            for name, node in node_types.items()
            if all(node["resources"].get(resource, 0) >= amount for resource, amount in needed.items() if amount)
        ]

    assert fitting_groups(job.decode.workers) == ["decode"]
    assert [fitting_groups(model.workers) for model in job.models] == [["score"], ["score"]]
    assert node_types["headgroup"]["resources"]["CPU"] == 0


def test_groups_scale_to_the_largest_pools(job: Job, node_types: dict[str, dict[str, Any]]) -> None:
    decode, score = (node_types[name] for name in ("decode", "score"))
    assert (decode["min_workers"], score["min_workers"]) == (0, 0)
    assert job.decode.workers.max == decode["max_workers"] * decode["resources"]["decode"]
    kvq, sharpness = job.models
    assert kvq.workers.max == score["max_workers"] * score["resources"]["GPU"]
    assert sharpness.workers.max <= score["max_workers"] * score["resources"]["score"]
    used_cpus = kvq.workers.num_cpus + sharpness.workers.num_cpus * score["resources"]["score"]
    assert used_cpus <= score["resources"]["CPU"]


def test_decode_pod_has_room_for_the_largest_videos(job: Job) -> None:
    group = groups()["decode"]
    (container,) = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    num_workers = int(group["resources"]["decode"])
    store = int(group["rayStartParams"]["object-store-memory"])
    needed_bytes = num_workers * (job.limits.max_memory_bytes + WORKER_BYTES) + store + FRAMES_BYTES
    assert needed_bytes <= RAYLET_KILLS_AT * num_bytes(limits["memory"])
    disks = {volume["name"]: volume["emptyDir"]["sizeLimit"] for volume in group["template"]["spec"]["volumes"]}
    assert (
        num_workers * 2 * job.limits.max_file_bytes <= num_bytes(disks["tmp"]) <= num_bytes(limits["ephemeral-storage"])
    )


@pytest.mark.parametrize("name", ["head", "decode", "score"])
def test_object_store_fits_into_shared_memory(name: str) -> None:
    group = groups()[name]
    (container,) = group["template"]["spec"]["containers"]
    volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
    (mount,) = [mount for mount in container["volumeMounts"] if mount["mountPath"] == "/dev/shm"]
    shared_memory = volumes[mount["name"]]["emptyDir"]
    store = int(group["rayStartParams"]["object-store-memory"])
    assert shared_memory["medium"] == "Memory"
    assert 1.1 * store <= num_bytes(shared_memory["sizeLimit"]) < num_bytes(container["resources"]["limits"]["memory"])


def test_weights_are_fetched_to_the_path_of_the_job(job: Job) -> None:
    for name in ("head", "score"):
        (fetch,) = pods()[name]["initContainers"]
        assert fetch["command"][-1] == job.models[0].weights
        compile(fetch["command"][2], "weights", "exec")
        mounts = {mount["name"]: mount["mountPath"] for mount in pods()[name]["containers"][0]["volumeMounts"]}
        assert mounts["weights"] == "/weights"


@pytest.mark.parametrize("name", ["decode", "score"])
def test_pod_drains_its_node_within_the_grace_period(name: str) -> None:
    pod = pods()[name]
    *shell, script = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert shell == ["/bin/bash", "-c"]
    words = shlex.split(script.split(";")[0])
    assert words[:2] == ["ray", "drain-node"]
    # Parsed by Ray's own command line.
    options = drain_node.make_context("drain-node", words[2:]).params
    assert options["reason"] == "DRAIN_NODE_REASON_PREEMPTION"
    assert options["deadline_remaining_seconds"] < pod["terminationGracePeriodSeconds"] <= 120


def test_cron_job_has_only_the_rights_it_needs() -> None:
    role, binding, cron = (nightly(kind) for kind in ("Role", "RoleBinding", "CronJob"))
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["list", "create", "delete"]}]
    assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == ("Role", role["metadata"]["name"])
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": pods()["start"]["serviceAccountName"]}]
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    workload = {pods()[name]["serviceAccountName"] for name in ("head", "decode", "score")}
    assert [nightly("ServiceAccount", name)["metadata"]["name"] for name in workload] == ["kvq-ray"]


def test_night_ends_before_the_kuberay_deadline() -> None:
    (hours,) = [v["value"] for v in pods()["start"]["containers"][0]["env"] if v["name"] == "NIGHT_HOURS"]
    assert float(hours) * 3600 < rayjob()["spec"]["activeDeadlineSeconds"]
    assert rayjob()["spec"]["shutdownAfterJobFinishes"] is True
    assert "deadline" not in tomllib.loads((KUBERAY / "job.toml").read_text()).get("budget", {})
