"""Drivers of disjoint catalog shards write the same tables at the same time, and stale ones are fenced."""

import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import pytest

from kvq_batch.catalog.selection import filter_shard
from kvq_batch.catalog.stored_rows import catalog_changes
from kvq_batch.config.job import Select
from kvq_batch.domain.errors import FatalError, SpecError
from kvq_batch.domain.shard import WHOLE, Shard
from kvq_batch.planning.plan import make_plan
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.check import check_tables
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.history import read_history
from kvq_batch.tables.lease import Holder, hold, read_holder
from kvq_batch.tables.schemas import TABLES
from kvq_batch.tables.session import open_session
from kvq_batch.tables.writer import Writer
from tests.support.results import KVQ, make_batch, make_catalog, make_run
from tests.support.stores import Store

FOUR = [Shard(number, 4) for number in range(1, 5)]
HERE = StorageOptions()


def me(run_id: str) -> Holder:
    return Holder.this_process(run_id, "nightly")


def writer_of(place: Path, shard: Shard) -> Writer:
    return Writer(Tables.create(str(place)), f"run-{shard}", shard=shard)


def scored(place: Path) -> list[str]:
    tables = Tables.open(str(place))
    return sorted(tables.dataset("scores").to_table(columns=["video_id"])["video_id"].to_pylist())


def test_each_video_is_in_one_shard() -> None:
    catalog = make_catalog([f"v{number}" for number in range(1000)])
    found = [filter_shard(catalog, shard)["video_id"].to_pylist() for shard in FOUR]
    assert sorted(chain(*found)) == sorted(catalog["video_id"].to_pylist())
    assert all(200 < len(ids) < 300 for ids in found)
    few = filter_shard(catalog.slice(300, 50), FOUR[2])["video_id"].to_pylist()
    assert few == [name for name in found[2] if name in set(catalog.slice(300, 50)["video_id"].to_pylist())]
    assert filter_shard(catalog, WHOLE) is catalog


def test_only_disjoint_shards_are_held_together(store: Store) -> None:
    with (
        hold(store.uri, store.options, me("first"), shard=FOUR[0]),
        hold(store.uri, store.options, me("second"), shard=FOUR[1]),
    ):
        holder = read_holder(store.uri, store.options)
        assert holder is not None
        assert holder.run_id == "first"
        if store.uri.startswith("s3://"):
            # On S3, the test would have to wait for the lease to expire; tests/tables/test_lease.py does.
            return
        for shard in (FOUR[1], Shard(1, 2), WHOLE):
            with (
                pytest.raises(SpecError, match="is running on these tables"),
                hold(store.uri, store.options, me("third"), shard=shard),
            ):
                pass
    for shard in (FOUR[1], WHOLE):
        with hold(store.uri, store.options, me("third"), shard=shard):
            pass


def test_run_without_shards_excludes_shards(tmp_path: Path) -> None:
    with (
        hold(str(tmp_path), HERE, me("whole")),
        pytest.raises(SpecError, match="run whole of job 'nightly'"),
        hold(str(tmp_path), HERE, me("shard"), shard=FOUR[0]),
    ):
        pass


def test_writers_of_disjoint_shards_commit_in_turns(tmp_path: Path) -> None:
    writers = [writer_of(tmp_path, shard) for shard in FOUR]
    assert [writer.epoch for writer in writers] == [1, 2, 3, 4]
    seqs = [writer.commit(make_batch([f"{turn}-{writer.shard}"])) for turn in range(3) for writer in writers]
    assert len(set(seqs)) == len(seqs) == len(scored(tmp_path))
    tables = Tables.open(str(tmp_path))
    assert tables.last_commit_seq() == max(seqs)
    # The log of `runs` has no claims, so the writers that may have written there are known from other tables.
    last = writers[3].write_run(make_run())
    assert Tables.open(str(tmp_path)).last_commit_seq() == last > max(seqs)
    commits = read_history(tables, "scores", 100)
    assert [c.operation for c in commits] == ["append"] * 12 + ["claim"] * 4 + ["create table"]
    assert [c.epoch for c in commits[:4]] == [4, 3, 2, 1]


@pytest.mark.parametrize("successor", [FOUR[1], WHOLE, Shard(1, 2), Shard(3, 3)], ids=str)
def test_every_table_rejects_stale_shard_writer(tmp_path: Path, successor: Shard) -> None:
    neighbour, stale = writer_of(tmp_path, FOUR[0]), writer_of(tmp_path, FOUR[1])
    stale.commit(make_batch(["before"]))
    follower = writer_of(tmp_path, successor)
    with pytest.raises(FatalError, match="another run has taken over"):
        stale.commit(make_batch(["late"]))
    with pytest.raises(FatalError, match="another run has taken over"):
        stale.write_catalog(catalog_changes(None, make_catalog(["late"]), "nightly"))
    follower.commit(make_batch(["after"]))
    if successor.excludes(FOUR[0]):
        with pytest.raises(FatalError, match="another run has taken over"):
            neighbour.commit(make_batch(["late, too"]))
        assert scored(tmp_path) == ["after", "before"]
    else:
        neighbour.commit(make_batch(["beside"]))
        assert scored(tmp_path) == ["after", "before", "beside"]


def test_shard_fences_writer_without_shards(tmp_path: Path) -> None:
    stale = writer_of(tmp_path, WHOLE)
    writer_of(tmp_path, FOUR[3])
    stale.tables.refresh()
    with pytest.raises(FatalError, match="another run has taken over"):
        stale.commit(make_batch(["late"]))


def test_writers_of_older_shard_counts_stay_fenced(tmp_path: Path) -> None:
    """The log keeps only the newest shard count; writers of earlier counts were fenced when it changed."""
    stale = writer_of(tmp_path, FOUR[1])
    for shard in (Shard(1, 2), WHOLE, Shard(1, 3), FOUR[0]):
        writer_of(tmp_path, shard)
    with pytest.raises(FatalError, match="another run has taken over"):
        stale.commit(make_batch(["late"]))


def test_progress_shows_commits_of_older_epochs(tmp_path: Path) -> None:
    older = writer_of(tmp_path, FOUR[0])
    writer_of(tmp_path, FOUR[1])
    known = Tables.open(str(tmp_path)).progress(FOUR[0])
    assert writer_of(tmp_path / "other", FOUR[0]).progress_before == {}
    older.commit(make_batch(["v"]))
    assert Tables.open(str(tmp_path)).progress(FOUR[0]) != known


def test_tables_being_created_count_as_missing(tmp_path: Path) -> None:
    Tables.create(str(tmp_path / "made"))
    for schema in TABLES[:-3]:
        shutil.copytree(tmp_path / "made" / schema.name, tmp_path / "making" / schema.name)
        assert Tables.open_if_any(str(tmp_path / "making")) is None
    tables = Tables.create(str(tmp_path / "making"))
    assert tables.schemas == TABLES
    shutil.rmtree(tmp_path / "made" / "scores")
    with pytest.raises(SpecError, match="'scores' is missing"):
        Tables.open_if_any(str(tmp_path / "made"))


def test_new_catalog_column_stops_no_other_writer(tmp_path: Path) -> None:
    first, second = writer_of(tmp_path, FOUR[0]), writer_of(tmp_path, FOUR[1])
    for writer in (first, second):
        catalog = make_catalog([f"v-{writer.run_id}"], country=["CH"])
        writer.write_catalog(catalog_changes(None, catalog, "nightly", writer.shard))
    first.write_catalog(catalog_changes(None, make_catalog(["w"], views=[7]), "nightly", first.shard))
    second.write_catalog(catalog_changes(None, make_catalog(["x"]), "nightly", second.shard))
    found = Tables.open(str(tmp_path)).dataset("catalog").to_table().sort_by("video_id").to_pylist()
    assert [(row["video_id"], row["country"], row["views"]) for row in found] == [
        ("v-run-1/4", "CH", None), ("v-run-2/4", "CH", None), ("w", None, 7), ("x", None, None),
    ]  # fmt: skip


def test_shard_removes_only_its_own_videos(tmp_path: Path) -> None:
    names = [f"v{number}" for number in range(40)]
    whole = writer_of(tmp_path, WHOLE)
    whole.write_catalog(catalog_changes(whole.tables, make_catalog(names), "nightly"))
    today = filter_shard(make_catalog(names[1:]), FOUR[0])
    first = filter_shard(make_catalog(names), FOUR[0])["video_id"].to_pylist()
    tables = Tables.open(str(tmp_path))
    left = [name for name in names[:1] if name in first]
    assert make_plan(tables, today, "nightly", [KVQ], Select(shard="1/4")).removed == tuple(left)
    assert catalog_changes(tables, today, "nightly", FOUR[0])["video_id"].to_pylist() == left


def test_killed_shard_drivers_lose_and_repeat_nothing(tmp_path: Path) -> None:
    num_videos = 96
    command = [sys.executable, "-m", "tests.support.shard_driver", str(tmp_path)]

    def work(shard: Shard) -> None:
        # Killed in its claim, before the first batch, between the tables of a batch; the last one finishes.
        for killed_at in (shard.number + 2, 8, 9 + shard.number, None):
            arguments = [*command, str(shard), str(num_videos), *([] if killed_at is None else [str(killed_at)])]
            found = subprocess.run(arguments, check=False, capture_output=True, text=True)
            assert found.returncode == (0 if killed_at is None else -signal.SIGKILL), found.stderr

    with ThreadPoolExecutor(len(FOUR)) as drivers:
        list(drivers.map(work, FOUR))

    names = [f"video-{number:03}.mp4" for number in range(num_videos)]
    assert scored(tmp_path) == names
    tables = Tables.open(str(tmp_path))
    assert [finding for finding in check_tables(tables, deep=True) if finding.severity == "error"] == []
    assert make_plan(tables, make_catalog(names), "trial", [KVQ]).num_current == num_videos
    with open_session(str(tmp_path)) as session:
        (row,) = session.sql("SELECT count(*) AS maps, count(DISTINCT video_id) AS videos FROM maps").to_pylist()
        (listed,) = session.sql("SELECT count(*) AS videos, any_value(country) AS country FROM catalog").to_pylist()
    assert (row["maps"], row["videos"]) == (num_videos, num_videos)
    assert (listed["videos"], listed["country"]) == (num_videos, "CH")
