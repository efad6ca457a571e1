"""The two scripts of a night, run as in their pods, with a local API server and a replacement for kvq-batch."""

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
from tests.support.cluster_files import KUBERAY, nightly, schema_errors

RAYJOBS = "/apis/ray.io/v1/namespaces/kvq/rayjobs"
LIST_PATH = f"{RAYJOBS}?labelSelector=app.kubernetes.io/name=kvq-night"
VERBS = {"GET": "list", "POST": "create", "DELETE": "delete"}


class ApiServer(ThreadingHTTPServer):
    """API server that holds RayJobs and records its requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.nights: list[dict[str, Any]] = []
        self.requests: list[tuple[str, str]] = []
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
        """Print nothing; `requests` has all requests."""

    def _answer(self, body: dict[str, Any]) -> None:
        self.server.requests.append((self.command, self.path))
        is_authorized = self.headers["Authorization"] == self.server.token
        self.send_response(200 if is_authorized else 403)
        self.end_headers()
        self.wfile.write(json.dumps(body if is_authorized else {"message": "rayjobs.ray.io is forbidden"}).encode())


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


def test_night_starts_with_a_deadline(server: ApiServer, start: Callable[[], Any]) -> None:
    server.add_night("kvq-night-20260101-0100", "Complete")
    before = datetime.now(UTC).replace(microsecond=0)
    done = start()
    assert done.returncode == 0, done.stderr
    (tonight,) = server.created
    assert schema_errors(tonight) == []
    assert tonight["metadata"]["name"].startswith(f"kvq-night-{before:%Y%m%d}-")
    entrypoint, _, deadline = tonight["spec"]["entrypoint"].partition(" --deadline ")
    assert entrypoint.endswith("/etc/kvq/job.toml")
    # The job accepts the deadline and keeps its value.
    job = with_values(load_job(KUBERAY / "job.toml"), {"budget": {"deadline": deadline}}, "the night")
    end = job.budget.deadline_after(before)
    assert end is not None
    assert timedelta(hours=5) <= end - before < timedelta(hours=5, minutes=2)
    assert server.requests == [("GET", LIST_PATH), ("POST", RAYJOBS)]


@pytest.mark.parametrize("status", ["Running", "Initializing", "Retrying", None])
def test_active_night_is_not_disturbed(server: ApiServer, start: Callable[[], Any], status: str | None) -> None:
    server.add_night("kvq-night-20260101-0100", status)
    done = start()
    assert done.returncode == 1
    assert "kvq-night-20260101-0100 is not over" in done.stderr
    assert server.requests == [("GET", LIST_PATH)]


def test_seven_newest_nights_are_kept(server: ApiServer, start: Callable[[], Any]) -> None:
    for day in (9, 3, 1, 2, 5, 4, 8, 7, 6):
        server.add_night(f"kvq-night-2026010{day}-0100", "Failed" if day % 2 else "Complete")
    assert start().returncode == 0
    deleted = [path for verb, path in server.requests if verb == "DELETE"]
    assert deleted == [f"{RAYJOBS}/kvq-night-2026010{day}-0100" for day in (1, 2, 3)]
    (rule,) = nightly("Role")["rules"]
    assert {VERBS[verb] for verb, _ in server.requests} == set(rule["verbs"])


def test_rejection_shows_the_message_of_the_server(server: ApiServer, start: Callable[[], Any]) -> None:
    server.token = "Bearer another"
    done = start()
    assert done.returncode == 1
    assert "403" in done.stderr
    assert "rayjobs.ray.io is forbidden" in done.stderr
    assert "a-token" not in done.stderr


@pytest.mark.parametrize(
    ("code", "expected", "is_compacted"),
    [(0, 0, True), (4, 0, True), (5, 0, True), (3, 3, True), (1, 1, False), (2, 2, False), (130, 130, False)],
)
def test_exit_code_of_a_night_with_budget_is_zero(tmp_path: Path, code: int, expected: int, is_compacted: bool) -> None:
    command = tmp_path / "kvq-batch"
    log = tmp_path / "log"
    command.write_text(f'#!/bin/bash\necho "$*" >> {log}\n[ "$1" = run ] && exit {code}\nexit 1\n')
    command.chmod(0o755)
    words = [sys.executable, str(KUBERAY / "night.py"), str(KUBERAY / "job.toml"), "--deadline", "2026-01-01T06:00"]
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(words, env=os.environ | {"PATH": path}, capture_output=True, check=False, timeout=120)
    assert done.returncode == expected
    run, *rest = log.read_text().splitlines()
    assert run == f"run {KUBERAY / 'job.toml'} --log json --deadline 2026-01-01T06:00"
    assert rest == (["tables compact s3://my-bucket/quality --region=eu-central-1"] if is_compacted else [])
