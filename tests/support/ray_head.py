"""A real Ray cluster of local processes with token authentication, started with `ray start`.

Each machine of the cluster is one `ray start --block` with its child processes. `kill` ends it like a power failure, by
process id; other Ray clusters on this host are not affected.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tests.support.processes import Process, below
from tests.support.s3 import free_ports

ROOT = Path(__file__).parents[2]
CLEANUP_TIMEOUT_S = 900.0
_STARTS = 4
_LOG_TAIL = 4000
_REMOVED_VARIABLES = ("RAY_", "AWS_", "PYTHONPATH")


class Machine:
    """One machine: `ray start --block` and its child processes; its output is in `log`."""

    def __init__(self, command: tuple[list[str], dict[str, str]], log: Path) -> None:
        self.log = log
        arguments, environment = command
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                arguments, stdout=file, stderr=file, env=environment, cwd=log.parent, start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_up(self) -> bool:
        """Wait for the start and return whether it succeeded. Ray gives up after 30 s, too early on a busy host."""
        wait_until(
            lambda: self._process.poll() is not None or "runtime started" in self.log.read_text(),
            "machine did not start",
        )
        return self._process.poll() is None

    def kill(self) -> None:
        """Kill all processes at once; if the machine had already exited, print its log to explain a failed test."""
        if self._process.poll() is not None:
            sys.stderr.write(self.log.read_text()[-_LOG_TAIL:])
        doomed = below(self.pid)
        self._process.kill()
        for process in doomed:
            if process.is_alive:
                kill(process.pid)
        self._process.wait()


class LocalCluster:
    """A head that requires a token, and the machines that joined it."""

    def __init__(self, num_cpus: int) -> None:
        # Paths of Ray's sockets are limited to 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="kvq-ray-"))
        self.token = f"planted-token-{secrets.token_hex(24)}"
        self._num_cpus = num_cpus
        self.port, self.dashboard_port, self._client_port = free_ports(3)
        self.address = f"http://127.0.0.1:{self.dashboard_port}"
        self.machines: list[Machine] = []
        (self.folder / "token").write_text(self.token)

    def __enter__(self) -> Self:
        try:
            self.start_head()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for machine in reversed(self.machines):
            machine.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start_head(self) -> None:
        """Start the head, always at the same address, and wait until its Job API answers."""
        self._start(
            "--head", f"--port={self.port}", f"--dashboard-port={self.dashboard_port}", "--dashboard-host=127.0.0.1",
            f"--ray-client-server-port={self._client_port}", f"--temp-dir={self.folder / 'r'}",
            f"--num-cpus={self._num_cpus}",
        )  # fmt: skip
        wait_until(self._is_ready, "the Job API of the head does not answer")

    def join(self, num_cpus: int, resources: Mapping[str, float]) -> Machine:
        """Add a machine."""
        resources_json = json.dumps(dict(resources))
        return self._start(
            f"--address=127.0.0.1:{self.port}", f"--num-cpus={num_cpus}", f"--resources={resources_json}"
        )

    def get(self, path: str) -> str:
        """Return the dashboard's answer to a request with the token."""
        request = Request(self.address + path, headers={"Authorization": f"Bearer {self.token}"})
        with urlopen(request, timeout=30) as answer:
            text: str = answer.read().decode()
        return text

    def _is_ready(self) -> bool:
        try:
            self.get("/api/jobs/")
        except (HTTPError, URLError, OSError):
            return False
        return True

    def _start(self, *arguments: str) -> Machine:
        for _ in range(_STARTS):
            machine = Machine(self._command(*arguments), self.folder / f"machine-{len(self.machines)}.log")
            if machine.is_up():
                self.machines.append(machine)
                return machine
        raise AssertionError(machine.log.read_text())

    def _command(self, *arguments: str) -> tuple[list[str], dict[str, str]]:
        ray = Path(sys.executable).with_name("ray")
        # Several agents share this host: each takes any free port.
        common = ["--block", "--disable-usage-stats", "--dashboard-agent-listen-port=0"]
        common.append(f"--object-store-memory={150 * 2**20}")
        return [str(ray), "start", *arguments, *common], self._environment()

    def _environment(self) -> dict[str, str]:
        """Return the environment of a separate machine, without this checkout and the Ray of the tests."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_REMOVED_VARIABLES)}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.folder / "token")}
        startup = {"RAY_DASHBOARD_STARTUP_TIMEOUT_S": "240"}
        return {**inherited, **token, **startup, "PATH": path, "HOME": str(self.folder)}


class Submitter:
    """User at a terminal outside the cluster: runs `kvq-batch` in `folder` with a separate environment."""

    def __init__(self, cluster: LocalCluster, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "HOME": str(folder),
            "RAY_API_SERVER_ADDRESS": cluster.address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": cluster.token,
        }

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, str(ROOT / "cli.py"), *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def call(self, *arguments: str, exit_code: int = 0) -> tuple[str, str]:
        """Run a command that must exit with `exit_code`; return its stdout and stderr."""
        process = self.start(*arguments)
        try:
            stdout, stderr = process.communicate(timeout=CLEANUP_TIMEOUT_S)
        finally:
            process.kill()
        assert process.returncode == exit_code, stdout + stderr
        return stdout, stderr


def wait_until(condition: Callable[[], bool], message: str) -> None:
    deadline = time.monotonic() + CLEANUP_TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, message
        time.sleep(0.3)


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        # The process has already exited.
        return


def driver_on(machines: Sequence[Machine]) -> tuple[Machine, Process]:
    """Return the running driver and its machine."""
    found = [
        (machine, process)
        for machine in machines
        for process in below(machine.pid)
        if process.title.startswith("python -m kvq_batch.cli")
    ]
    assert len(found) == 1, found
    return found[0]
