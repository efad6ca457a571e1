"""The two scripts of a night, run as its pods run them: against an API server of ours, and a kvq-batch of ours."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kvq_batch.config.load import load_job, with_values
from tests.support.cluster_files import KUBERAY, complaints, nightly

RAYJOBS = "/apis/ray.io/v1/namespaces/kvq/rayjobs"
LISTED = f"{RAYJOBS}?labelSelector=app.kubernetes.io/name=kvq-night"
VERBS = {"GET": "list", "POST": "create", "DELETE": "delete"}


class ApiServer(ThreadingHTTPServer):
    """Holds RayJobs, and writes down what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.nights: list[dict[str, Any]] = []
        self.asked: list[tuple[str, str]] = []
        self.created: list[dict[str, Any]] = []
        self.token = "Bearer a-token"

    def add_night(self, name: str, status: str | None) -> None:
        self.nights.append(
            {"metadata": {"name": name}} | ({"status": {"jobDeploymentStatus": status}} if status else {})
        )


class _Handler(BaseHTTPRequestHandler):
    server: ApiServer

    def do_GET(self) -> None:
        self._answer({"items": self.server.nights})

    def do_DELETE(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.created.append(body)
        self._answer(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: what was asked stands in `asked`."""

    def _answer(self, body: dict[str, Any]) -> None:
        self.server.asked.append((self.command, self.path))
        is_known = self.headers["Authorization"] == self.server.token
        self.send_response(200 if is_known else 403)
        self.end_headers()
        self.wfile.write(json.dumps(body if is_known else {"message": "rayjobs.ray.io is forbidden"}).encode())


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def start(server: ApiServer, tmp_path: Path) -> Callable[[], "subprocess.CompletedProcess[str]"]:
    (tmp_path / "namespace").write_text("kvq\n")
    (tmp_path / "token").write_text("a-token\n")
    environment = {"KUBERNETES_API": f"http://127.0.0.1:{server.server_port}", "SERVICE_ACCOUNT": str(tmp_path)}

    def run() -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(KUBERAY / "start_night.py"), str(KUBERAY / "rayjob.yaml")]
        variables = os.environ | environment | {"NIGHT_HOURS": "5"}
        return subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=120)

    return run


def test_tonight_is_started_with_its_end(server: ApiServer, start: Callable[[], Any]) -> None:
    server.add_night("kvq-night-20260101-0100", "Complete")
    before = datetime.now(UTC).replace(microsecond=0)
    done = start()
    assert done.returncode == 0, done.stderr
    (tonight,) = server.created
    assert complaints(tonight) == []
    assert tonight["metadata"]["name"].startswith(f"kvq-night-{before:%Y%m%d}-")
    entrypoint, _, deadline = tonight["spec"]["entrypoint"].partition(" --deadline ")
    assert entrypoint.endswith("/etc/kvq/job.toml")
    # The job takes it for the moment that it is.
    job = with_values(load_job(KUBERAY / "job.toml"), {"budget": {"deadline": deadline}}, "the night")
    end = job.budget.deadline_after(before)
    assert end is not None
    assert timedelta(hours=5) <= end - before < timedelta(hours=5, minutes=2)
    assert server.asked == [("GET", LISTED), ("POST", RAYJOBS)]


@pytest.mark.parametrize("status", ["Running", "Initializing", "Retrying", None])
def test_a_night_that_is_not_over_is_left_alone(
    server: ApiServer, start: Callable[[], Any], status: str | None
) -> None:
    server.add_night("kvq-night-20260101-0100", status)
    done = start()
    assert done.returncode == 1
    assert "kvq-night-20260101-0100 is not over" in done.stderr
    assert server.asked == [("GET", LISTED)]


def test_old_nights_go_and_seven_stay(server: ApiServer, start: Callable[[], Any]) -> None:
    for day in (9, 3, 1, 2, 5, 4, 8, 7, 6):
        server.add_night(f"kvq-night-2026010{day}-0100", "Failed" if day % 2 else "Complete")
    assert start().returncode == 0
    gone = [path for verb, path in server.asked if verb == "DELETE"]
    assert gone == [f"{RAYJOBS}/kvq-night-2026010{day}-0100" for day in (1, 2, 3)]
    (rule,) = nightly("Role")["rules"]
    assert {VERBS[verb] for verb, _ in server.asked} == set(rule["verbs"])


def test_a_refusal_is_told_in_the_servers_words(server: ApiServer, start: Callable[[], Any]) -> None:
    server.token = "Bearer another"
    done = start()
    assert done.returncode == 1
    assert "403" in done.stderr
    assert "rayjobs.ray.io is forbidden" in done.stderr
    assert "a-token" not in done.stderr


@pytest.mark.parametrize(
    ("code", "told", "is_compacted"),
    [(0, 0, True), (4, 0, True), (3, 3, True), (1, 1, False), (2, 2, False), (130, 130, False)],
)
def test_a_night_ends_as_its_run_did_and_a_budget_is_no_failure(
    tmp_path: Path, code: int, told: int, is_compacted: bool
) -> None:
    command = tmp_path / "kvq-batch"
    log = tmp_path / "log"
    command.write_text(f'#!/bin/bash\necho "$*" >> {log}\n[ "$1" = run ] && exit {code}\nexit 1\n')
    command.chmod(0o755)
    words = [sys.executable, str(KUBERAY / "night.py"), str(KUBERAY / "job.toml"), "--deadline", "2026-01-01T06:00"]
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(words, env=os.environ | {"PATH": path}, capture_output=True, check=False, timeout=120)
    assert done.returncode == told
    run, *rest = log.read_text().splitlines()
    assert run == f"run {KUBERAY / 'job.toml'} --log json --deadline 2026-01-01T06:00"
    assert rest == (["tables compact s3://my-bucket/quality --region=eu-central-1"] if is_compacted else [])
