"""Generated catalogs through nights of change: each is rejected by `plan`, or shown right by the view afterwards.

Planning, the writer and the views are the real ones; only Ray and the videos are left out. Nothing is compared with an
earlier output: the expected values are those of the generated file.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from kvq_batch.catalog.stored_rows import catalog_changes, stored_name
from kvq_batch.config.load import make_job
from kvq_batch.domain.errors import SpecError
from kvq_batch.planning.job_plan import plan_job
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.check import check_tables
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.schema_changes import drop_catalog_column
from kvq_batch.tables.schemas import CATALOG
from kvq_batch.tables.session import Session
from kvq_batch.tables.writer import Writer
from tests.support.catalog_files import CatalogFile, catalog_files, columns, is_same, names


class Nights(RuleBasedStateMachine):
    """Tables and the catalog of the last night. Every rule is one more night."""

    @initialize(catalog=catalog_files())
    def first_night(self, catalog: CatalogFile) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.first = self.last = catalog
        self.number = 0
        self.run(catalog)

    @rule()
    def as_it_was(self) -> None:
        self.run(self.last)

    @rule()
    def back_to_the_first(self) -> None:
        self.run(self.first)

    @rule(data=st.data())
    def other_values_and_types(self, data: st.DataObject) -> None:
        self.run(data.draw(catalog_files(tuple(self.last.columns))))

    @rule(data=st.data())
    def one_column_changes(self, data: st.DataObject) -> None:
        last = self.last
        if last.columns:
            name = data.draw(st.sampled_from(sorted(last.columns)))
            values = data.draw(columns(last.format, len(last.videos)))
            self.run(CatalogFile(last.format, last.videos, {**last.columns, name: values}))

    @rule(data=st.data())
    def without_a_column(self, data: st.DataObject) -> None:
        last = self.last
        if last.columns:
            gone = data.draw(st.sampled_from(sorted(last.columns)))
            kept = {name: values for name, values in last.columns.items() if name != gone}
            self.run(CatalogFile(last.format, last.videos, kept))

    @rule(data=st.data(), name=names())
    def one_more_column(self, data: st.DataObject, name: str) -> None:
        last = self.last
        values = data.draw(columns(last.format, len(last.videos)))
        self.run(CatalogFile(last.format, last.videos, {**last.columns, name: values}))

    @rule(data=st.data())
    def a_column_is_dropped(self, data: st.DataObject) -> None:
        tables = Tables.open_if_any(str(self.folder / "tables"))
        stored = [] if tables is None else sorted(set(tables.arrow_schema("catalog").names) - set(CATALOG.names))
        if tables is not None and stored:
            drop_catalog_column(tables.uri, StorageOptions(), data.draw(st.sampled_from(stored)))
            self.run(self.last)

    def run(self, catalog: CatalogFile) -> None:
        self.number += 1
        self.last = catalog
        note(f"night {self.number}: {catalog}")
        uri = str(self.folder / "tables")
        values: dict[str, Any] = {
            "name": "nightly",
            "tables": uri,
            "catalog": {"source": str(catalog.write(self.folder)), "columns": {"content_id": "content_id"}},
            "models": [{"name": "luma-sharpness"}],
        }
        before = self.log()
        reason = None
        try:
            planned = plan_job(make_job(values, "test"))
        except SpecError as error:
            reason = str(error)
        # Planning changes nothing.
        assert self.log() == before
        if reason is not None:
            assert catalog.is_rejected_by_name() or catalog.is_rejected_as_text(), reason
            return
        assert not catalog.is_rejected_by_name()
        tables = Tables.create(uri)
        writer = Writer(tables, f"run-{self.number}")
        rows = catalog_changes(tables, planned.catalog, "nightly")
        if rows.num_rows:
            writer.write_catalog(rows)
        assert catalog_changes(tables, planned.catalog, "nightly").num_rows == 0
        self.check_view(catalog)

    def check_view(self, catalog: CatalogFile) -> None:
        tables = Tables.open(str(self.folder / "tables"))
        with Session(tables) as session:
            shown = {row["video_id"]: row for row in session.sql("SELECT * FROM catalog").to_pylist()}
        expected = catalog.rows()
        assert shown.keys() == expected.keys()
        for video, row in expected.items():
            assert shown[video]["uri"] == f"s3://bucket/{video}.mp4"
            by_stored_name = {stored_name(name, list(shown[video])): value for name, value in row.items()}
            for stored, value in by_stored_name.items():
                assert is_same(value, shown[video].get(stored)), (video, stored, value, shown[video].get(stored))
            others = {name for name in shown[video] if name not in by_stored_name} - _OURS
            assert all(shown[video][name] is None for name in others), (video, others, shown[video])

    def log(self) -> list[str]:
        return sorted(str(path) for path in self.folder.glob("tables/*/_delta_log/*"))

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            uri = self.folder / "tables"
            findings = check_tables(Tables.open(str(uri)), deep=True) if uri.exists() else []
            shutil.rmtree(self.folder)
            assert [finding for finding in findings if finding.severity != "info"] == []


_OURS = {
    "video_id", "catalog", "uri", "content_id", "size_bytes", "start_s", "end_s", "run_id", "commit_seq",
    "first_run_id", "last_run_id",
}  # fmt: skip

_COMMON = settings(
    stateful_step_count=3,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


TestThreeNights = Nights.TestCase
TestThreeNights.settings = settings(_COMMON, max_examples=10, derandomize=True)


@pytest.mark.faults
def test_many_nights() -> None:
    run_state_machine_as_test(Nights, settings=settings(_COMMON, max_examples=300))
