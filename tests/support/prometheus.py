"""A real Prometheus for tests, if installed: on PATH, or in the folder `KVQ_BATCH_PROMETHEUS`."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

from tests.support.s3 import free_ports

CLUSTER = Path(__file__).parents[2] / "cluster"
DASHBOARD = CLUSTER / "grafana" / "kvq-batch.json"
CONFIG = CLUSTER / "prometheus" / "prometheus.yml"
ALERTS = CLUSTER / "prometheus" / "alerts.yml"

NOT_INSTALLED = (
    "prometheus is not installed: install Debian's package `prometheus`, or set KVQ_BATCH_PROMETHEUS to the folder of "
    "prometheus and promtool"
)


def find(program: str) -> str | None:
    folder = os.environ.get("KVQ_BATCH_PROMETHEUS")
    return shutil.which(program, path=folder) if folder else shutil.which(program)


class Prometheus:
    """Client of Prometheus' HTTP API."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.started_at = time.time()

    def get(self, path: str, **parameters: Any) -> Any:
        """Return `data` of the answer. Raises: HTTPError for an invalid query."""
        with urlopen(f"{self._address}/api/v1/{path}?{urlencode(parameters)}", timeout=30) as answer:
            body = json.load(answer)
        assert body["status"] == "success", body
        return body["data"]

    def now(self, query: str) -> list[Any]:
        result: list[Any] = self.get("query", query=query)["result"]
        return result

    def over_time(self, query: str) -> list[float]:
        """Return every value of all series since the start, without NaN."""
        found = self.get("query_range", query=query, start=self.started_at, end=time.time(), step=1)["result"]
        values = [float(value) for series in found for _, value in series["values"]]
        return [value for value in values if value == value]

    def wait_for(self, query: str, timeout_s: float = 120) -> float:
        """Return the value of the first series of the query. Raises: AssertionError if there is none in time."""
        deadline = time.monotonic() + timeout_s
        while not (found := self.now(query)):
            assert time.monotonic() < deadline, f"no answer in {timeout_s:g} s to {query}"
            time.sleep(0.5)
        return float(found[0]["value"][1])


@contextmanager
def prometheus(folder: Path, discovery: Path) -> Iterator[Prometheus]:
    """Start Prometheus with the project's configuration, for the nodes in `discovery`, with intervals of 1 s."""
    config = CONFIG.read_text()
    for original, replacement in (
        ("/tmp/ray/prom_metrics_service_discovery.json", str(discovery)),
        (": 15s", ": 1s"),
    ):
        assert original in config
        config = config.replace(original, replacement)
    (folder / CONFIG.name).write_text(config)
    shutil.copy2(ALERTS, folder / ALERTS.name)
    address = f"127.0.0.1:{free_ports(1)[0]}"
    program = find("prometheus")
    assert program is not None
    arguments = [
        f"--config.file={folder / CONFIG.name}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen([program, *arguments], stdout=log, stderr=log)
    try:
        client = Prometheus(f"http://{address}")
        deadline = time.monotonic() + 60
        while True:
            try:
                client.get("status/runtimeinfo")
                break
            except OSError:
                is_late = process.poll() is not None or time.monotonic() > deadline
                assert not is_late, (folder / "prometheus.log").read_text()
                time.sleep(0.2)
        yield client
    finally:
        process.terminate()
        process.wait(30)
