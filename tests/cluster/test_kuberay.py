"""cluster/kuberay: what the API server and Ray's autoscaler make of it, and whether it fits together."""

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
from kvq_batch.engine.ray_cluster import smallest
from tests.support.cluster_files import (
    KUBERAY,
    ROOT,
    complaints,
    containers,
    documents,
    groups,
    nightly,
    num_bytes,
    pods,
    rayjob,
)

GIB = 2**30

WORKER_BYTES = GIB * 3 // 4
"""A decoding worker beside its child: Python, Ray, Arrow, the rows of a block."""

FRAMES_BYTES = 2 * GIB
"""Frames between children and workers, and Ray's own processes."""

RAYLET_KILLS_AT = 0.95
"""Share of a pod's memory from which Ray ends workers by itself."""


@pytest.fixture(scope="module")
def job() -> Job:
    return load_job(KUBERAY / "job.toml")


@pytest.fixture(scope="module")
def node_types() -> dict[str, dict[str, Any]]:
    """What Ray's own autoscaler takes from the RayJob's cluster."""
    cluster = {"metadata": {"name": "c", "namespace": "kvq"}, "spec": rayjob()["spec"]["rayClusterSpec"]}
    types: dict[str, dict[str, Any]] = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    return types


def test_every_object_is_what_its_schema_asks_for() -> None:
    things = [rayjob(), *documents(KUBERAY / "nightly.yaml")]
    assert [thing["kind"] for thing in things] == [
        "RayJob", "ServiceAccount", "Role", "RoleBinding", "ServiceAccount", "CronJob",
    ]  # fmt: skip
    assert [complaint for thing in things for complaint in complaints(thing)] == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("spec.entrypiont", "x", "'entrypiont' was unexpected"),
        ("spec.rayClusterSpec.authOptions.mode", "on", "'on' is not one of ['disabled', 'token']"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.maxReplicas", "8", "'8' is not of type 'integer'"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.template.spec.tolerationz", [], "'tolerationz' was unexpected"),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.env.0.valu", "x", "'valu' was unexpected"),
        ("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0, "0 is not of type 'string'"),
    ],
)
def test_the_schema_refuses_what_the_api_server_refuses(path: str, value: object, said: str) -> None:
    # Not a deep copy: what YAML's anchors share would be broken in several places.
    broken = json.loads(json.dumps(rayjob()))
    *way, last = path.split(".")
    place: Any = broken
    for step in way:
        place = place[int(step) if step.isdigit() else step]
    place[last] = value
    (complaint,) = complaints(broken)
    assert said in complaint


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text("spec:\n  replicas: 1\n  replicas: 2\n")
    with pytest.raises(AssertionError, match="stands twice"):
        documents(file)


def test_the_config_map_holds_what_the_pods_call(job: Job) -> None:
    (kustomization,) = documents(KUBERAY / "kustomization.yaml")
    (generator,) = kustomization["configMapGenerator"]
    files = set(generator["files"])
    assert all((KUBERAY / name).is_file() for name in [*files, *kustomization["resources"]])
    said = rayjob()["spec"]["entrypoint"] + " " + " ".join(next(containers(pods()["start"]))["command"])
    assert set(re.findall(r"/etc/kvq/(\S+)", said)) == files
    for name, pod in pods().items():
        maps = [volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume]
        assert maps == ([generator["name"]] if name in ("head", "start") else [])
    # The submitter's shell would run what stands behind these by itself, on its own pod.
    assert not set(rayjob()["spec"]["entrypoint"]) & set(";&|<>$`\"'")
    assert job.run.ray_address == "auto"


def test_every_mount_has_its_volume_and_every_volume_its_use() -> None:
    for pod in pods().values():
        mounted = {mount["name"] for container in containers(pod) for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_images_are_of_this_version_and_ray_is_the_one_that_is_pinned() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert rayjob()["spec"]["rayClusterSpec"]["rayVersion"] == pinned["ray"]
    images = {name: {container["image"] for container in containers(pod)} for name, pod in pods().items()}
    cpu, cuda = (f"registry.example.com/kvq-batch:{__version__}-{kind}" for kind in ("cpu", "cuda"))
    assert images == {"head": {cpu}, "decode": {cpu}, "score": {cpu, cuda}, "start": {cpu}}


def test_no_secret_is_written_down_and_the_token_is_asked_for() -> None:
    assert rayjob()["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token", "secretName": "kvq-ray-token"}
    secret = re.compile("KEY|TOKEN|SECRET|PASSWORD")
    for pod in pods().values():
        for container in containers(pod):
            for variable in container.get("env", []):
                assert not secret.search(variable["name"]) or "secretKeyRef" in variable["valueFrom"]


def test_pods_run_as_nobody_in_particular_and_with_limits() -> None:
    for pod in pods().values():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000
        for container in containers(pod):
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            limits, requests = container["resources"]["limits"], container["resources"]["requests"]
            assert num_bytes(limits["memory"]) >= num_bytes(requests["memory"])
            # A pod that may use more than it asked for is the first to go where the machine has no room.
            assert container["name"] in ("weights", "start") or limits["memory"] == requests["memory"]


def test_each_stage_fits_into_its_group_and_no_other(job: Job, node_types: dict[str, dict[str, Any]]) -> None:
    def homes(pool: Workers) -> list[str]:
        asked = smallest([pool.model_copy(update={"min": 1})])
        return [
            name
            for name, node in node_types.items()
            if all(node["resources"].get(resource, 0) >= amount for resource, amount in asked.items() if amount)
        ]

    assert homes(job.decode.workers) == ["decode"]
    assert [homes(model.workers) for model in job.models] == [["score"], ["score"]]
    assert node_types["headgroup"]["resources"]["CPU"] == 0


def test_the_groups_may_grow_to_what_the_pools_may(job: Job, node_types: dict[str, dict[str, Any]]) -> None:
    decode, score = (node_types[name] for name in ("decode", "score"))
    assert (decode["min_workers"], score["min_workers"]) == (0, 0)
    assert job.decode.workers.max == decode["max_workers"] * decode["resources"]["decode"]
    kvq, sharpness = job.models
    assert kvq.workers.max == score["max_workers"] * score["resources"]["GPU"]
    assert sharpness.workers.max <= score["max_workers"] * score["resources"]["score"]
    beside = kvq.workers.num_cpus + sharpness.workers.num_cpus * score["resources"]["score"]
    assert beside <= score["resources"]["CPU"]


def test_decoding_fits_into_its_pod_whatever_the_videos_are(job: Job) -> None:
    group = groups()["decode"]
    (container,) = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    num_workers = int(group["resources"]["decode"])
    store = int(group["rayStartParams"]["object-store-memory"])
    most = num_workers * (job.limits.max_memory_bytes + WORKER_BYTES) + store + FRAMES_BYTES
    assert most <= RAYLET_KILLS_AT * num_bytes(limits["memory"])
    disks = {volume["name"]: volume["emptyDir"]["sizeLimit"] for volume in group["template"]["spec"]["volumes"]}
    assert (
        num_workers * 2 * job.limits.max_file_bytes <= num_bytes(disks["tmp"]) <= num_bytes(limits["ephemeral-storage"])
    )


@pytest.mark.parametrize("name", ["head", "decode", "score"])
def test_the_object_store_fits_into_shared_memory(name: str) -> None:
    group = groups()[name]
    (container,) = group["template"]["spec"]["containers"]
    volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
    (mount,) = [mount for mount in container["volumeMounts"] if mount["mountPath"] == "/dev/shm"]
    shared_memory = volumes[mount["name"]]["emptyDir"]
    store = int(group["rayStartParams"]["object-store-memory"])
    assert shared_memory["medium"] == "Memory"
    assert 1.1 * store <= num_bytes(shared_memory["sizeLimit"]) < num_bytes(container["resources"]["limits"]["memory"])


def test_weights_are_fetched_to_where_the_job_looks_for_them(job: Job) -> None:
    for name in ("head", "score"):
        (fetch,) = pods()[name]["initContainers"]
        assert fetch["command"][-1] == job.models[0].weights
        compile(fetch["command"][2], "weights", "exec")
        mounts = {mount["name"]: mount["mountPath"] for mount in pods()[name]["containers"][0]["volumeMounts"]}
        assert mounts["weights"] == "/weights"


@pytest.mark.parametrize("name", ["decode", "score"])
def test_a_pod_that_ends_drains_its_node_within_its_grace(name: str) -> None:
    pod = pods()[name]
    *shell, script = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert shell == ["/bin/bash", "-c"]
    words = shlex.split(script.split(";")[0])
    assert words[:2] == ["ray", "drain-node"]
    # Ray's own command line reads it.
    options = drain_node.make_context("drain-node", words[2:]).params
    assert options["reason"] == "DRAIN_NODE_REASON_PREEMPTION"
    assert options["deadline_remaining_seconds"] < pod["terminationGracePeriodSeconds"] <= 120


def test_the_night_may_do_what_it_does_and_nothing_else() -> None:
    role, binding, cron = (nightly(kind) for kind in ("Role", "RoleBinding", "CronJob"))
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["list", "create", "delete"]}]
    assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == ("Role", role["metadata"]["name"])
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": pods()["start"]["serviceAccountName"]}]
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    workload = {pods()[name]["serviceAccountName"] for name in ("head", "decode", "score")}
    assert [nightly("ServiceAccount", name)["metadata"]["name"] for name in workload] == ["kvq-ray"]


def test_a_night_ends_before_kuberay_ends_it() -> None:
    (hours,) = [v["value"] for v in pods()["start"]["containers"][0]["env"] if v["name"] == "NIGHT_HOURS"]
    assert float(hours) * 3600 < rayjob()["spec"]["activeDeadlineSeconds"]
    assert rayjob()["spec"]["shutdownAfterJobFinishes"] is True
    assert "deadline" not in tomllib.loads((KUBERAY / "job.toml").read_text()).get("budget", {})
