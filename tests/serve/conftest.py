"""A running server over tables with hostile texts, and requests to it."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

import pyarrow as pa
import pytest
import uvicorn
from starlette.applications import Starlette

from kvq_batch.cli.analysis.serve import listen
from kvq_batch.serve.pages import create_app
from kvq_batch.storage.options import StorageOptions
from tests.support.results import KVQ, make_batch, make_catalog, make_failures
from tests.support.scored import Scored, make_scored

HOSTILE = "<script>alert('id')</script>&\"x\".mp4"
MARKUP = "<img src=x onerror=alert(1)>"
FAILED = "<b>failed</b>.mp4"
REMOVED = "removed.mp4"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Message
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass(frozen=True)
class Running:
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, target: str, method: str = "GET", **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, target, headers={name.replace("_", "-"): text for name, text in headers.items()})
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())
        finally:
            connection.close()


@contextmanager
def running(app: Starlette) -> Iterator[Running]:
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    with listen(0) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield Running(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(30)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """Real videos, and 60 more rows with markup in every text."""
    made = make_scored(tmp_path_factory.mktemp("served"))
    ids = [HOSTILE, *(f"many/{i:02}.mp4" for i in range(60))]
    catalog = make_catalog([*ids, FAILED], uri=[f"/nowhere/{i}" for i in range(62)], country=[MARKUP] * 62)
    catalog = catalog.append_column("catalog", pa.array(["nightly"] * 62))
    made.writer.write_catalog(catalog.append_column("in_catalog", pa.array([True] * 62)))
    made.writer.commit(make_batch(ids, KVQ))
    made.writer.commit(make_failures([FAILED], KVQ))
    made.writer.commit(make_batch([REMOVED], KVQ))
    return made


@pytest.fixture(scope="module")
def server(scored: Scored) -> Iterator[Running]:
    with running(create_app(scored.tables, StorageOptions())) as found:
        yield found


@pytest.fixture
def video_file(scored: Scored) -> Path:
    return scored.videos / "landscape" / "none-0.mp4"
