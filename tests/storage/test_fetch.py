"""Fetching: only the planned content is returned, and the scratch folder is empty afterwards."""

import http.server
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import fsspec
import pyarrow as pa
import pytest

from kvq_batch.catalog.content_ids import resolve_content_ids
from kvq_batch.domain.errors import FetchError
from kvq_batch.domain.identity import UNKNOWN_CONTENT, cut_content_id
from kvq_batch.storage.errors import RetryPolicy
from kvq_batch.storage.fetch import Fetcher, remove_stale_folders
from kvq_batch.storage.listing import content_id_of, list_files
from kvq_batch.storage.options import StorageOptions
from tests.support.s3 import S3Location, S3Server
from tests.support.stores import LocalStore, Store

DATA = bytes(range(256)) * 40


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A scratch folder that must contain no files at the end of the test."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    yield folder
    assert [path for path in folder.rglob("*") if path.is_file()] == []


def fetcher(store: Store, scratch: Path, max_file_bytes: int = 10**6) -> Fetcher:
    return Fetcher(store.options, scratch, max_file_bytes, RetryPolicy(sleep=lambda _: None))


def listed(store: Store) -> str:
    """Return the content id of the only object of the store, from a listing."""
    (token,) = list_files(store.uri, store.options)["content_id"].to_pylist()
    return str(token)


class TestContract:
    def test_bytes_size_and_token(self, store: Store, scratch: Path) -> None:
        uri = store.put("a.mp4", DATA)
        with fetcher(store, scratch).fetch(uri, listed(store)) as video:
            assert video.path.read_bytes() == DATA
            assert video.path.suffix == ".mp4"
            assert (video.size_bytes, video.content_id) == (len(DATA), listed(store))
            assert video.seconds >= 0
            video.check_unchanged()

    def test_unknown_content_id_is_resolved(self, store: Store, scratch: Path) -> None:
        uri = store.put("a.mp4", DATA)
        with fetcher(store, scratch).fetch(uri, UNKNOWN_CONTENT) as video:
            assert video.content_id == listed(store)

    def test_segment_is_kept_in_content_id(self, store: Store, scratch: Path) -> None:
        uri = store.put("a.mp4", DATA)
        for token in (listed(store), UNKNOWN_CONTENT):
            with fetcher(store, scratch).fetch(uri, cut_content_id(token, 1.0, 2.5)) as video:
                assert video.content_id == listed(store) + "#t=1.0,2.5"
                video.check_unchanged()

    def test_content_id_of_the_catalog_is_kept(self, store: Store, scratch: Path) -> None:
        uri = store.put("a.mp4", DATA)
        with fetcher(store, scratch).fetch(uri, "sha256 of theirs") as video:
            assert video.content_id == "sha256 of theirs"
            video.check_unchanged()

    def test_content_changed_since_the_plan(self, store: Store, scratch: Path) -> None:
        uri = store.put("a.mp4", DATA)
        planned = listed(store)
        store.put("a.mp4", DATA + b"more")
        self.assert_fails(store, scratch, uri, "content_changed", content_id=planned)

    def test_missing(self, store: Store, scratch: Path) -> None:
        uri = store.put("a.mp4", DATA)
        store.remove("a.mp4")
        self.assert_fails(store, scratch, uri, "missing")

    def test_empty(self, store: Store, scratch: Path) -> None:
        self.assert_fails(store, scratch, store.put("a.mp4", b""), "empty_file", permanent=True)

    def test_too_large(self, store: Store, scratch: Path) -> None:
        uri = store.put("a.mp4", DATA)
        self.assert_fails(store, scratch, uri, "file_too_large", permanent=True, max_file_bytes=len(DATA) - 1)
        with fetcher(store, scratch, len(DATA)).fetch(uri) as video:
            assert video.size_bytes == len(DATA)

    def test_folder(self, store: Store, scratch: Path) -> None:
        store.put("folder/a.mp4", DATA)
        self.assert_fails(store, scratch, f"{store.uri}/folder", "not_a_file")

    @pytest.mark.parametrize(
        "name", ["a b.mp4", "é日本.mp4", "#1.mp4", "50%41.mp4", "a+b.mp4", "q'\"u.mp4", "n\nl.mp4", "a?b"]
    )
    def test_unusual_names(self, store: Store, scratch: Path, name: str) -> None:
        uri = store.put(name, DATA)
        with fetcher(store, scratch).fetch(uri, listed(store)) as video:
            assert video.path.read_bytes() == DATA

    def test_copy_is_removed_after_an_exception(self, store: Store, scratch: Path) -> None:
        uri = store.put("a.mp4", DATA)
        with pytest.raises(KeyboardInterrupt), fetcher(store, scratch).fetch(uri):
            raise KeyboardInterrupt
        assert [path for path in scratch.rglob("*") if path.is_file()] == []

    def test_in_several_threads(self, store: Store, scratch: Path) -> None:
        uris = [store.put(f"{i}.mp4", DATA + bytes([i])) for i in range(12)]
        fetching = pickle.loads(pickle.dumps(replace(fetcher(store, scratch), retry_policy=RetryPolicy(sleep=print))))
        seen: list[int] = []

        def take(i: int) -> None:
            with fetching.fetch(uris[i]) as video:
                seen.append(video.path.read_bytes()[-1])

        threads = [threading.Thread(target=take, args=(i,)) for i in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(seen) == list(range(12))

    def assert_fails(
        self, store: Store, scratch: Path, uri: str, code: str, *, permanent: bool = False,
        max_file_bytes: int = 10**6, content_id: str = UNKNOWN_CONTENT,
    ) -> None:  # fmt: skip
        with pytest.raises(FetchError) as caught, fetcher(store, scratch, max_file_bytes).fetch(uri, content_id):
            pytest.fail("the block must not be entered")
        assert (caught.value.code, caught.value.permanent) == (code, permanent)
        assert uri in caught.value.message


class TestLocalFiles:
    def test_local_file_is_read_in_place_and_checked(self, tmp_path: Path, scratch: Path) -> None:
        store = LocalStore(tmp_path)
        uri = store.put("v/a.mp4", DATA)
        with fetcher(store, scratch).fetch(uri) as video:
            assert str(video.path) == uri
            video.path.write_bytes(DATA[:-1])
            with pytest.raises(FetchError, match="changed while it was read"):
                video.check_unchanged()
            video.path.unlink()
            with pytest.raises(FetchError, match="was removed"):
                video.check_unchanged()

    def test_no_permission(self, tmp_path: Path, scratch: Path) -> None:
        uri = LocalStore(tmp_path).put("v/a.mp4", DATA)
        Path(uri).chmod(0)
        # Root can read everything: run as another user, who also needs access to the folder.
        code = (
            "import os, sys; sys.path[:] = eval(sys.argv[3])\n"
            "import botocore.session  # needed later, when the other user may not read the folder of Python\n"
            "from pathlib import Path\n"
            "from kvq_batch.storage.fetch import Fetcher; from kvq_batch.storage.options import StorageOptions\n"
            "from kvq_batch.domain.errors import FetchError\n"
            "os.geteuid() or os.seteuid(65534)\n"
            "try:\n"
            "    with Fetcher(StorageOptions(), Path(sys.argv[2]), 10**6).fetch(sys.argv[1]): pass\n"
            "except FetchError as error: print(error.code, error.permanent)\n"
        )
        for folder in (tmp_path, *tmp_path.parents[:-2]):
            folder.chmod(folder.stat().st_mode | 0o055)
        done = subprocess.run(
            [sys.executable, "-c", code, uri, str(scratch), repr(sys.path)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.stdout == "forbidden False\n", done.stderr


class TestS3:
    def test_denied(self, s3_server: S3Server, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        uri = s3_server.location().put("a.mp4", DATA)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.reader_access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.reader_secret_key)
        asking = Fetcher(StorageOptions(s3_server.endpoint_url, "fetch-denied"), scratch, 10**6)
        with pytest.raises(FetchError) as caught, asking.fetch(uri):
            pass
        assert (caught.value.code, caught.value.permanent) == ("forbidden", False)
        assert s3_server.reader_access_key not in str(caught.value)

    def test_signed_address_is_used_but_not_shown(self, s3_prefix: S3Location, scratch: Path) -> None:
        s3_prefix.put("a b.mp4", DATA)
        signed = s3_prefix.fs.sign(f"{s3_prefix.path}/a b.mp4", expiration=600)
        signature = signed.partition("Signature=")[2].partition("&")[0]
        row = pa.table({"video_id": ["a"], "uri": [signed], "content_id": pa.nulls(1, pa.string())})
        for name, kind in (("size_bytes", pa.int64()), ("start_s", pa.float64()), ("end_s", pa.float64())):
            row = row.append_column(name, pa.nulls(1, kind))
        token = resolve_content_ids(row, s3_prefix.options)["content_id"][0].as_py()
        assert token == listed(s3_prefix)
        with fetcher(s3_prefix, scratch).fetch(signed, token) as video:
            assert video.path.read_bytes() == DATA
        s3_prefix.remove("a b.mp4")
        with pytest.raises(FetchError, match="missing") as caught, fetcher(s3_prefix, scratch).fetch(signed, token):
            pass
        assert len(signature) > 8
        assert signature not in str(caught.value)

    def test_object_larger_than_a_chunk(self, s3_prefix: S3Location, scratch: Path) -> None:
        data = os.urandom(9 * 2**20 + 17)
        uri = s3_prefix.put("a.mp4", data)
        with Fetcher(s3_prefix.options, scratch, 10**8).fetch(uri, listed(s3_prefix)) as video:
            assert video.path.read_bytes() == data

    def test_scratch_folder_without_write_access(self, s3_prefix: S3Location, tmp_path: Path) -> None:
        uri = s3_prefix.put("a.mp4", DATA)
        (tmp_path / "file").write_text("")
        with pytest.raises(FetchError, match="scratch_full"), fetcher(s3_prefix, tmp_path / "file").fetch(uri):
            pass


class Faulty(http.server.BaseHTTPRequestHandler):
    """A server that answers each GET with the next response of `script`, repeating the last, and HEAD correctly."""

    protocol_version = "HTTP/1.1"
    script: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.begin(200, len(DATA))

    def do_GET(self) -> None:
        response = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if response.isdigit():
            self.begin(int(response), 0)
        elif response == "reset":
            self.close_connection = True
            self.connection.shutdown(2)
        elif response == "short":
            self.begin(200, len(DATA))
            self.wfile.write(DATA[:100])
            self.close_connection = True
        elif response == "endless":
            self.begin(200, None)
            self.close_connection = True
            with suppress(ConnectionError):
                while True:
                    self.wfile.write(DATA * 100)
        else:
            self.begin(200, len(DATA))
            self.wfile.write(DATA)

    def begin(self, status: int, length: int | None) -> None:
        self.send_response(status)
        self.send_header("ETag", '"tag"')
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


class FaultyStore(http.server.ThreadingHTTPServer):
    """A server on a free port with its own script."""

    def __init__(self) -> None:
        class Handler(Faulty):
            script: ClassVar[list[str]] = []

        super().__init__(("127.0.0.1", 0), Handler)
        self.script = Handler.script

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def faulty() -> Iterator[FaultyStore]:
    with FaultyStore() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class TestFaults:
    """A store that responds with faults, for S3 and for plain HTTP."""

    @pytest.fixture(params=["s3", "http"])
    def uri(self, request: pytest.FixtureRequest, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "plantedID")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "plantedSECRET")
        if request.param == "http":
            return f"{faulty.endpoint}/a.mp4?token=plantedTOKEN"
        return "s3://bucket/a.mp4"

    @pytest.mark.parametrize("fault", ["503", "500", "short", "reset"])
    def test_transient_fault_is_retried(self, fault: str, uri: str, faulty: FaultyStore, scratch: Path) -> None:
        faulty.script[:] = [fault, fault, "ok"]
        with self.fetcher(faulty, scratch).fetch(uri, "etag:tag") as video:
            assert video.path.read_bytes() == DATA

    @pytest.mark.parametrize(
        ("fault", "code"),
        [("500", "unreachable"), ("short", "unreachable"), ("reset", "unreachable"), ("403", "forbidden")],
    )
    def test_persistent_fault_is_a_failure(
        self, fault: str, code: str, uri: str, faulty: FaultyStore, scratch: Path
    ) -> None:
        faulty.script[:] = [fault]
        with pytest.raises(FetchError) as caught, self.fetcher(faulty, scratch, attempts=1).fetch(uri):
            pass
        assert (caught.value.code, caught.value.permanent) == (code, False)
        assert "planted" not in str(caught.value)

    def test_endless_response_is_cut_off(self, uri: str, faulty: FaultyStore, scratch: Path) -> None:
        faulty.script[:] = ["endless"]
        with pytest.raises(FetchError, match="file_too_large"), self.fetcher(faulty, scratch).fetch(uri):
            pass

    def test_etag_mismatch_is_detected(self, uri: str, faulty: FaultyStore, scratch: Path) -> None:
        # Also detected if the store ignores If-Match.
        faulty.script[:] = ["ok"]
        with pytest.raises(FetchError, match="content_changed"), self.fetcher(faulty, scratch).fetch(uri, "etag:other"):
            pass

    def fetcher(self, faulty: FaultyStore, scratch: Path, attempts: int = 4) -> Fetcher:
        options = StorageOptions(faulty.endpoint, "us-east-1")
        return Fetcher(options, scratch, 10**6, RetryPolicy(attempts, sleep=lambda _: None))


def test_other_fsspec_protocols(scratch: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/kvq/a.mp4", DATA)
    token = content_id_of(memory.info("/kvq/a.mp4"))
    assert token.startswith("ukey:")
    with Fetcher(StorageOptions(), scratch, 10**6).fetch("memory://kvq/a.mp4", token) as video:
        assert video.path.read_bytes() == DATA
    memory.pipe_file("/kvq/a.mp4", DATA)
    with pytest.raises(FetchError, match="content_changed"):
        Fetcher(StorageOptions(), scratch, 10**6).fetch("memory://kvq/a.mp4", token).__enter__()
    memory.rm("/kvq", recursive=True)


def test_stale_folders_are_removed(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    for pid in (child.pid, os.getpid()):
        folder = tmp_path / f"kvq-batch-fetch-{os.getuid()}" / str(pid)
        folder.mkdir(parents=True)
        (folder / "x.mp4").write_bytes(DATA)
    (tmp_path / "12345").mkdir()
    assert remove_stale_folders(tmp_path) == 1
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_dir()) == sorted(
        ["12345", f"kvq-batch-fetch-{os.getuid()}", str(os.getpid())]
    )


@pytest.mark.parametrize(
    ("info", "token"),
    [
        ({"ETag": '"abc-2"', "VersionId": "v1", "size": 3}, "etag:abc-2"),
        ({"ETag": 'W/"abc"'}, "etag:abc"),
        ({"generation": "17", "md5Hash": "x"}, "version:17"),
        ({"VersionId": "null", "size": 3}, UNKNOWN_CONTENT),
        ({"size": 3}, UNKNOWN_CONTENT),
    ],
)
def test_content_ids(info: dict[str, object], token: str) -> None:
    assert content_id_of(info) == token
