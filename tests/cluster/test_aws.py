"""cluster/aws.yaml: validated by Ray's cluster launcher; its commands are parsed by bash and by Ray."""

import copy
import shlex
import subprocess
from typing import Any

import pytest
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import drain_node
from ray.scripts.scripts import start as ray_start

from kvq_batch import __version__
from kvq_batch.config.load import load_job
from kvq_batch.engine.ray_cluster import minimum_resources
from tests.support.cluster_files import CLUSTER, KUBERAY, documents


@pytest.fixture
def config() -> dict[str, Any]:
    (document,) = documents(CLUSTER / "aws.yaml")
    return document


def test_ray_launcher_accepts_the_file(config: dict[str, Any]) -> None:
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    types = prepared["available_node_types"]
    assert {name: (node["min_workers"], node["max_workers"]) for name, node in types.items()} == {
        "head": (0, 0), "decode": (0, 8), "score": (0, 4),
    }  # fmt: skip
    assert prepared["max_workers"] == sum(node["max_workers"] for node in types.values())
    assert types["decode"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_ray_launcher_rejects_an_unknown_key(config: dict[str, Any]) -> None:
    config["available_node_types"]["decode"]["max_wokers"] = 1
    with pytest.raises(ValidationError, match="max_wokers"):
        validate_config(prepare_config(config))


def test_cluster_has_the_resources_of_the_job(config: dict[str, Any]) -> None:
    job = load_job(KUBERAY / "job.toml")
    types = config["available_node_types"]
    pools = [job.decode.workers, *(model.workers for model in job.models)]
    capacity: dict[str, float] = {}
    for node in types.values():
        for name, amount in node["resources"].items():
            capacity[name] = capacity.get(name, 0) + amount * node.get("max_workers", 0)
    assert all(capacity.get(name, 0) >= amount for name, amount in minimum_resources(pools).items())
    assert types["head"]["resources"] == {"CPU": 0}


def test_groups_have_images_and_files_hold_no_secret(config: dict[str, Any]) -> None:
    assert config["docker"]["image"].endswith(f":{__version__}-cpu")
    assert config["available_node_types"]["score"]["docker"]["worker_image"].endswith(f":{__version__}-cuda")
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    assert all("IamInstanceProfile" in node["node_config"] for node in config["available_node_types"].values())


def test_commands_are_valid_for_bash_and_ray(config: dict[str, Any]) -> None:
    score = config["available_node_types"]["score"]["worker_setup_commands"]
    commands = [
        *config["head_setup_commands"],
        *config["head_start_ray_commands"],
        *config["worker_start_ray_commands"],
    ]
    for command in [*commands, *score]:
        subprocess.run(["bash", "-n", "-c", command], check=True)
    for command in commands:
        if command.startswith("ray start"):
            ray_start.make_context("start", shlex.split(command)[2:])
    *_, spot_watcher = config["worker_start_ray_commands"]
    script = shlex.split(spot_watcher)[3]
    subprocess.run(["bash", "-n", "-c", script], check=True)
    words = shlex.split(script[script.index("ray drain-node") :])
    assert drain_node.make_context("drain-node", words[2:]).params["deadline_remaining_seconds"] < 120
