"""Faults of an object store, injected between the client and a real server: retries and resulting failures."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from kvq_batch.catalog.content_ids import MIN_VIDEOS_TO_LIST, resolve_content_ids
from kvq_batch.domain.errors import FetchError, SpecError
from kvq_batch.domain.identity import UNKNOWN_CONTENT
from kvq_batch.storage.errors import RetryPolicy
from kvq_batch.storage.fetch import Fetcher
from kvq_batch.storage.listing import list_files, stat_object
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.table_files import write_table
from tests.support.proxy import (
    BROKEN,
    DENIED,
    EXPIRED,
    SLOW_DOWN,
    Fault,
    FaultProxy,
    Flipped,
    Lost,
    Reset,
    Short,
    Silence,
    Trickle,
    slept,
)
from tests.support.results import make_catalog
from tests.support.s3 import S3Location

DATA = bytes(range(256)) * 400

TRANSIENT: dict[str, tuple[Fault, str]] = {
    "slow down": (SLOW_DOWN, "unreachable"),
    "internal error": (BROKEN, "unreachable"),
    "request lost": (Lost(), "unreachable"),
    "answer lost": (Reset(), "unreachable"),
    "reset in the body": (Reset(1000), "unreachable"),
    "short read": (Short(100), "unreachable"),
    "wrong length": (Short(100, is_announced=True), "wrong_length"),
    "nothing at all": (Short(len(DATA), is_announced=True), "wrong_length"),
}


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A scratch folder that must contain no files at the end of the test."""
    (tmp_path / "scratch").mkdir()
    yield tmp_path / "scratch"
    assert [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()] == []


@pytest.fixture
def store(s3_prefix: S3Location, fault_proxy: FaultProxy) -> S3Location:
    """A prefix, accessed through the proxy."""
    return S3Location(s3_prefix.uri, fault_proxy.options())


def put_plain(store: S3Location, name: str) -> str:
    """Store DATA without a checksum, like older clients do."""
    plain = fsspec.filesystem(
        "s3", endpoint_url=store.options.endpoint_url, config_kwargs={"request_checksum_calculation": "when_required"}
    )
    plain.pipe_file(f"{store.path}/{name}", DATA)
    return f"{store.uri}/{name}"


def fetcher(options: StorageOptions, scratch: Path, attempts: int = 3) -> Fetcher:
    return Fetcher(options, scratch, 10**8, RetryPolicy(attempts, sleep=slept))


@pytest.mark.parametrize("name", TRANSIENT)
class TestFetching:
    """Objects without a checksum: only the length shows that one is incomplete."""

    def test_transient_fault_is_retried(
        self, name: str, store: S3Location, fault_proxy: FaultProxy, scratch: Path
    ) -> None:
        uri = put_plain(store, "a.mp4")
        rule = fault_proxy.add(TRANSIENT[name][0], pattern="a.mp4", times=2)
        with fetcher(store.options, scratch).fetch(uri, *stat_object(uri, store.options)) as video:
            assert video.path.read_bytes() == DATA
            # aiohttp itself retries once if a connection is closed without a response.
            assert 2 <= video.attempts <= 3
        assert rule.num_faults == 2

    def test_persistent_fault_is_a_failure(
        self, name: str, store: S3Location, fault_proxy: FaultProxy, scratch: Path
    ) -> None:
        fault, code = TRANSIENT[name]
        uri = put_plain(store, "a.mp4")
        known = stat_object(uri, store.options)
        fault_proxy.add(fault, pattern="a.mp4")
        with pytest.raises(FetchError) as caught, fetcher(store.options, scratch).fetch(uri, *known):
            pytest.fail("the block was entered")
        assert (caught.value.code, caught.value.permanent) == (code, False)
        assert "3 attempts" in caught.value.message
        assert uri in caught.value.message


def test_silent_store_times_out(s3_prefix: S3Location, fault_proxy: FaultProxy, scratch: Path) -> None:
    uri = s3_prefix.put("a.mp4", DATA)
    rule = fault_proxy.add(Silence(), pattern="a.mp4")
    impatient = fetcher(fault_proxy.options(read_timeout_s=1), scratch, attempts=2)
    with pytest.raises(FetchError, match="timeout") as caught, impatient.fetch(uri):
        pass
    assert rule.num_faults == 2
    assert "2 attempts" in caught.value.message


def test_minimum_transfer_speed(s3_prefix: S3Location, fault_proxy: FaultProxy, scratch: Path) -> None:
    uri = s3_prefix.put("a.mp4", DATA)
    options = fault_proxy.options(read_timeout_s=1)
    fault_proxy.add(Trickle(10_000), pattern="a.mp4", times=2)
    fault_proxy.add(Trickle(60_000), pattern="a.mp4")
    with pytest.raises(FetchError, match="too_slow"), fetcher(options, scratch, attempts=2).fetch(uri):
        pass
    with fetcher(options, scratch).fetch(uri) as video:
        assert video.path.read_bytes() == DATA
        assert video.attempts == 1


@pytest.mark.parametrize("fault", [Flipped(), Short(100, is_announced=True)], ids=["flipped", "cut"])
def test_checksum_mismatch_is_retried(fault: Fault, store: S3Location, fault_proxy: FaultProxy, scratch: Path) -> None:
    uri = store.put("a.mp4", DATA)
    fault_proxy.add(fault, pattern="a.mp4", times=1)
    with fetcher(store.options, scratch).fetch(uri) as video:
        assert video.path.read_bytes() == DATA
        assert video.attempts == 2
    fault_proxy.add(fault, pattern="a.mp4")
    with pytest.raises(FetchError, match="damaged") as caught, fetcher(store.options, scratch).fetch(uri):
        pass
    assert not caught.value.permanent


def test_wrong_size_in_catalog_is_ignored(store: S3Location, scratch: Path) -> None:
    uri = put_plain(store, "a.mp4")
    with fetcher(store.options, scratch).fetch(uri, UNKNOWN_CONTENT, 17) as video:
        assert (video.size_bytes, video.attempts) == (len(DATA), 1)


@pytest.mark.parametrize(("fault", "code"), [(EXPIRED, "credentials_expired"), (DENIED, "forbidden")])
def test_denied_access_is_not_retried(
    fault: Fault, code: str, store: S3Location, fault_proxy: FaultProxy, scratch: Path
) -> None:
    uri = store.put("a.mp4", DATA)
    rule = fault_proxy.add(fault, pattern="a.mp4")
    with pytest.raises(FetchError) as caught, fetcher(store.options, scratch).fetch(uri):
        pass
    assert (caught.value.code, caught.value.permanent, rule.seen) == (code, False, 1)
    assert "credentials" in caught.value.message


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.jsonl"])
def test_written_file_is_retried(name: str, s3_prefix: S3Location, fault_proxy: FaultProxy) -> None:
    rule = fault_proxy.add(SLOW_DOWN, method="PUT", pattern=name, times=2)
    write_table(pa.table({"a": [1]}), f"{s3_prefix.uri}/{name}", fault_proxy.options(attempts=1))
    assert rule.num_faults == 2
    assert s3_prefix.fs.cat_file(f"{s3_prefix.path}/{name}")


class TestPlanning:
    """Listings and HEAD requests, which s3fs retries with the backoff of botocore."""

    @pytest.mark.parametrize("fault", [SLOW_DOWN, BROKEN, Lost(), Reset(), Reset(20), Short(20)], ids=repr)
    def test_listing_is_retried(self, fault: Fault, store: S3Location, fault_proxy: FaultProxy) -> None:
        store.put("v/a.mp4", DATA)
        rule = fault_proxy.add(fault, pattern="list-type", times=1)
        assert list_files(f"{store.uri}/v", store.options).num_rows == 1
        assert rule.num_faults == 1

    def test_unreachable_listing_is_rejected_with_its_address(
        self, s3_prefix: S3Location, fault_proxy: FaultProxy
    ) -> None:
        fault_proxy.add(SLOW_DOWN, pattern="list-type")
        with pytest.raises(SpecError, match="SlowDown") as caught:
            list_files(f"{s3_prefix.uri}/v", fault_proxy.options(attempts=2))
        assert s3_prefix.uri in str(caught.value)

    @pytest.mark.parametrize("fault", [SLOW_DOWN, Lost()], ids=repr)
    def test_head_request_is_retried(self, fault: Fault, store: S3Location, fault_proxy: FaultProxy) -> None:
        uris = [store.put(f"{i}.mp4", DATA) for i in range(3)]
        rule = fault_proxy.add(fault, method="HEAD", times=2)
        assert UNKNOWN_CONTENT not in self.resolved(store, uris, store.options)
        assert rule.num_faults == 2

    def test_failed_head_request_gives_unknown_content(
        self, s3_prefix: S3Location, fault_proxy: FaultProxy, scratch: Path
    ) -> None:
        store = S3Location(s3_prefix.uri, fault_proxy.options(attempts=1))
        uris = [store.put(f"{i}.mp4", DATA) for i in range(3)]
        fault_proxy.add(BROKEN, method="HEAD", pattern="1.mp4")
        tokens = self.resolved(store, uris, store.options)
        assert tokens[1] == UNKNOWN_CONTENT != tokens[0]
        with fetcher(store.options, scratch).fetch(uris[1], tokens[1]) as video:
            assert video.content_id == tokens[0]

    def test_expired_credentials_stop_planning(self, s3_prefix: S3Location, fault_proxy: FaultProxy) -> None:
        fault_proxy.add(EXPIRED)
        uris = [f"{s3_prefix.uri}/{i}.mp4" for i in range(MIN_VIDEOS_TO_LIST)]
        with pytest.raises(SpecError, match="expired"):
            self.resolved(s3_prefix, uris, fault_proxy.options())

    def resolved(self, store: S3Location, uris: list[str], options: StorageOptions) -> list[str]:
        catalog = make_catalog(uris)
        for name, values in (("uri", pa.array(uris)), ("content_id", pa.nulls(len(uris), pa.string()))):
            catalog = catalog.set_column(catalog.column_names.index(name), name, values)
        tokens: list[str] = resolve_content_ids(catalog, options)["content_id"].to_pylist()
        return tokens
