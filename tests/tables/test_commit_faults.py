"""Store faults during a commit: it lands exactly once, or the run stops with an error."""

import pytest

from kvq_batch.domain.errors import FatalError
from kvq_batch.planning.plan import store_plan
from kvq_batch.storage.errors import RetryPolicy
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.writer import Writer
from tests.support.proxy import BROKEN, EXPIRED, FULL, SLOW_DOWN, Fault, FaultProxy, Lost, Reset, Short, slept
from tests.support.results import make_batch, make_catalog
from tests.support.s3 import S3Location

DATA_FILE = ("PUT", r"/scores/model_id.*\.parquet")
LOG = ("PUT", r"/scores/_delta_log/.*\.json")
LISTING = ("GET", r"list-type.*/scores/_delta_log")
READING = ("GET", r"/scores/_delta_log/.*\.json")


class Place:
    """Tables behind the proxy with one committed video, and a writer with two attempts and no pauses."""

    def __init__(self, location: S3Location, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self.options: StorageOptions = proxy.options(attempts=2)
        self.uri = f"{location.uri}/tables"
        self.writer = self.new_writer("first")
        self.writer.commit(make_batch(["a"]))
        proxy.requests.clear()

    def new_writer(self, run_id: str) -> Writer:
        return Writer(Tables.create(self.uri, self.options), run_id, RetryPolicy(attempts=2, sleep=slept))

    def scored(self) -> list[str]:
        """Return the videos with a score, read from newly opened tables; each score must have its maps."""
        tables = Tables.open(self.uri, self.options)
        videos: list[str] = tables.dataset("scores").to_table()["video_id"].to_pylist()
        assert set(videos) <= set(tables.dataset("maps").to_table()["video_id"].to_pylist())
        return sorted(videos)


@pytest.fixture
def place(s3_prefix: S3Location, fault_proxy: FaultProxy) -> Place:
    return Place(s3_prefix, fault_proxy)


@pytest.mark.parametrize("where", [DATA_FILE, LOG, LISTING, READING], ids=["data file", "log", "listing", "reading"])
@pytest.mark.parametrize("fault", [SLOW_DOWN, BROKEN, Lost(), Reset(), Reset(10), Short(10)], ids=repr)
def test_transient_fault_is_retried(fault: Fault, where: tuple[str, str], place: Place) -> None:
    method, pattern = where
    if where == READING:
        # A writer reads only commits of others.
        place.writer = place.new_writer("second")
    rule = place.proxy.add(fault, method=method, pattern=pattern, times=1)
    if where == READING:
        place.writer.tables.refresh()
        place.new_writer("third").commit(make_batch(["b"]))
    else:
        place.writer.commit(make_batch(["b"]))
    assert rule.num_faults == 1
    assert place.scored() == ["a", "b"]


@pytest.mark.parametrize(
    ("fault", "hint"),
    [
        (SLOW_DOWN, "SlowDown"),
        (FULL, "no space left"),
        (EXPIRED, "credentials have expired"),
        (Lost(), "cannot be reached"),
    ],
    ids=["slow down", "full", "expired", "lost"],
)
@pytest.mark.parametrize("where", [DATA_FILE, LOG], ids=["data file", "log"])
def test_lasting_fault_stops_writer_and_next_one_continues(
    fault: Fault, hint: str, where: tuple[str, str], place: Place
) -> None:
    method, pattern = where
    place.proxy.add(fault, method=method, pattern=pattern)
    with pytest.raises(FatalError, match="'scores' cannot be written") as caught:
        place.writer.commit(make_batch(["b"]))
    assert hint in str(caught.value)
    assert "Earlier commits are kept" in str(caught.value)
    place.proxy.clear()
    assert place.scored() == ["a"]
    place.new_writer("next").commit(make_batch(["b"]))
    assert place.scored() == ["a", "b"]


@pytest.mark.parametrize("fault", [Reset(), Reset(0)], ids=repr)
def test_commit_with_lost_answer_is_found_in_log(fault: Fault, place: Place) -> None:
    rule = place.proxy.add(fault, method=LOG[0], pattern="_delta_log")
    place.writer.commit(make_batch(["b"]))
    assert rule.num_faults == len(("maps", "clips", "scores"))
    assert place.scored() == ["a", "b"]


def test_storing_a_plan_is_retried_and_full_store_is_fatal(place: Place) -> None:
    tasks = make_catalog(["a"])
    rule = place.proxy.add(Lost(), method="PUT", pattern="plans/", times=1)
    store_plan(place.writer.tables, "run", tasks)
    assert rule.num_faults == 1
    place.proxy.add(FULL, method="PUT", pattern="plans/")
    with pytest.raises(FatalError, match="no space left"):
        store_plan(place.writer.tables, "run", tasks)
