"""Crash points of a driver, and the writer that kills its process there.

The product does not know them: the driver of the tests replaces the real writer with a subclass. Points inside a batch
wait for the second batch that touches all tables but `features`.
"""

import os
import signal
import socket
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pyarrow as pa
from fsspec.asyn import sync
from fsspec.implementations.local import LocalFileSystem

from kvq_batch.engine import run, run_recorder
from kvq_batch.planning.plan import PLANS_FOLDER, store_plan
from kvq_batch.storage.options import filesystem, join
from kvq_batch.tables.data_files import DataFile
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.schemas import DATA_TABLES
from kvq_batch.tables.writer import Batch, Writer
from tests.support.driver import say
from tests.support.processes import below

BEFORE_WORK = (
    "before the plan",
    "inside the plan",
    "after the plan",
    "inside the upload of runs",
    "before the log of runs",
)
IN_A_BATCH = (
    "inside the upload of maps",
    "inside the upload of scores",
    "before the log of maps",
    "before the log of clips",
    "before the log of failures",
    "before the log of scores",
    "after the log of scores",
)
AT_THE_END = ("before the last row", "after the last row")
POINTS = (*BEFORE_WORK, *IN_A_BATCH, *AT_THE_END)
"""In the order in which a run passes them."""


def crash() -> None:
    """Print the processes below this one and kill it with SIGKILL."""
    say(f"dies {' '.join(map(str, below(os.getpid())))}")
    os.kill(os.getpid(), signal.SIGKILL)


def crash_at(point: str) -> None:
    """Make runs in this process crash at `point`."""
    assert point in POINTS, point
    CrashingWriter.point = point
    vars(run)["Writer"] = CrashingWriter
    vars(run_recorder)["store_plan"] = _crashing_store_plan


class CrashingWriter(Writer):
    """The real writer, until it reaches `point`."""

    point: ClassVar[str]
    _counts = True
    _num_full = 0

    def commit(self, batch: Batch) -> int:
        tables = (getattr(batch, name) for name in DATA_TABLES if name != "features")
        self._counts = all(rows is not None and rows.num_rows for rows in tables)
        self._num_full += self._counts
        self._counts = self._counts and self._num_full > 1
        commit_seq = super().commit(batch)
        self._counts = True
        return commit_seq

    def write_run(self, rows: Any, run_id: str | None = None) -> int:
        is_last = run_id is None and rows.column("state")[0].as_py() != "running"
        # The row of an earlier crashed run does not count.
        self._counts = run_id is None
        if is_last:
            self._reach("before the last row")
        elif self._counts:
            self._reach("after the plan")
        commit_seq = super().write_run(rows, run_id)
        if is_last:
            self._reach("after the last row")
        self._counts = True
        return commit_seq

    def _store(self, name: str, files: list[DataFile]) -> None:
        if self._counts and self.point == f"inside the upload of {name}":
            file_system, root = self.tables.table_filesystem(name)
            upload_half(file_system, f"{root}/{files[0].path}", files[0].content.to_pybytes())
            crash()
        super()._store(name, files)

    def _append(self, name: str, files: list[DataFile], commit_seq: int) -> None:
        self._reach(f"before the log of {name}")
        super()._append(name, files, commit_seq)
        self._reach(f"after the log of {name}")

    def _reach(self, point: str) -> None:
        if self._counts and point == self.point:
            crash()


def _crashing_store_plan(tables: Tables, run_id: str, tasks: pa.Table) -> str:
    if CrashingWriter.point == "before the plan":
        crash()
    uri = store_plan(tables, run_id, tasks)
    if CrashingWriter.point == "inside the plan":
        file_system, path = filesystem(join(join(tables.uri, PLANS_FOLDER), f"{run_id}.parquet"), tables.options)
        content = file_system.cat_file(path)
        file_system.rm_file(path)
        upload_half(file_system, path, content)
        crash()
    return uri


def upload_half(file_system: Any, path: str, content: bytes) -> None:
    """Leave what an unfinished upload of a killed process leaves."""
    half = content[: len(content) // 2]
    if isinstance(file_system, LocalFileSystem):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(half)
        return
    bucket, _, key = path.partition("/")
    file_system.connect()
    index = {"Bucket": bucket, "Key": key}
    url = urlsplit(sync(file_system.loop, file_system.s3.generate_presigned_url, "put_object", Params=index))
    head = f"PUT {url.path}?{url.query} HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Length: {len(content)}\r\n\r\n"
    connection = socket.create_connection((url.hostname, url.port))
    connection.sendall(head.encode() + half)
    # Keep the connection open until the process is gone, as the kernel does.
    connection.detach()
