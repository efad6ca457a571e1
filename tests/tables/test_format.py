"""Tables of another format version are rejected by every entry point, before anything is read or written."""

from collections.abc import Callable
from pathlib import Path

import pytest
from deltalake import DeltaTable
from typer.testing import CliRunner

import kvq_batch
from kvq_batch.cli.app import app
from kvq_batch.domain.errors import SpecError
from kvq_batch.labels.files import Scale
from kvq_batch.labels.opinions import OpinionList, import_opinions
from kvq_batch.storage.options import StorageOptions, delta_options, join
from kvq_batch.tables.calibrations import Calibration, add_calibration
from kvq_batch.tables.delta import FORMAT_KEY, Tables, check_format_version
from kvq_batch.tables.retry_requests import request_retries
from kvq_batch.tables.schemas import FORMAT_VERSION, TABLES
from kvq_batch.tables.writer import Writer
from tests.support.results import KVQ
from tests.support.s3 import S3Location

LOCAL = StorageOptions()


def make_tables(uri: str, version: str | None, options: StorageOptions = LOCAL) -> str:
    """Create all tables with this format version; None as before there was one."""
    for schema in TABLES:
        DeltaTable.create(
            join(uri, schema.name),
            schema.arrow(),
            partition_by=list(schema.partition_by),
            configuration=None if version is None else {FORMAT_KEY: version},
            raise_if_key_not_exists=False,
            storage_options=delta_options(uri, options) or None,
        )
    return uri


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def import_list(uri: str) -> None:
    source = Path(uri).parent / "opinions.csv"
    source.write_text("video_id,mos\na,3\n")
    import_opinions(uri, LOCAL, OpinionList(str(source), Scale(1, 5)))


ENTRY_POINTS: dict[str, Callable[[str], object]] = {
    "open": Tables.open,
    "open_if_any": Tables.open_if_any,
    "create": Tables.create,
    "check_format_version": check_format_version,
    "session": kvq_batch.open,
    "calibration": lambda uri: add_calibration(uri, LOCAL, Calibration("ours", KVQ.model_id, (5, 1, 0.25, 0.5))),
    "retry": lambda uri: request_retries(uri, LOCAL, "me"),
    "import": import_list,
}


def test_new_tables_have_the_format_version(tables_location: tuple[str, StorageOptions]) -> None:
    uri, options = tables_location
    tables = Tables.create(uri, options)
    for schema in TABLES:
        assert tables.delta(schema.name).metadata().configuration[FORMAT_KEY] == str(FORMAT_VERSION)
    Writer(tables, "run-1")
    tables.add_columns("catalog", [TABLES[1].arrow().field("codec")])
    assert Tables.open(uri, options).delta("catalog").metadata().configuration[FORMAT_KEY] == str(FORMAT_VERSION)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (None, rf"format version 1 .*supports version {FORMAT_VERSION}\. They were written by an earlier kvq-batch"),
        ("1", r"format version 1 .*Score into an empty folder"),
        ("3", rf"format version 3 .*supports version {FORMAT_VERSION}\. .*by a newer kvq-batch\. Upgrade kvq-batch"),
        ("2b", r"format version 2b .*Upgrade kvq-batch"),
    ],
)
@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_other_format_versions_are_rejected(
    tmp_path: Path, entry_point: str, version: str | None, message: str
) -> None:
    uri = make_tables(str(tmp_path / "tables"), version)
    before = files(tmp_path / "tables")
    with pytest.raises(SpecError, match=message) as caught:
        ENTRY_POINTS[entry_point](uri)
    assert uri in str(caught.value)
    assert files(tmp_path / "tables") == before


def test_old_tables_on_s3_are_rejected(s3_prefix: S3Location) -> None:
    uri, options = f"{s3_prefix.uri}/tables", s3_prefix.options
    make_tables(uri, None, options)
    with pytest.raises(SpecError, match="format version 1"):
        Tables.open(uri, options)


def test_no_table_is_created_beside_old_ones(tmp_path: Path) -> None:
    uri = make_tables(str(tmp_path / "tables"), None)
    (tmp_path / "tables" / "catalog").rename(tmp_path / "elsewhere")
    with pytest.raises(SpecError, match="format version 1"):
        Tables.create(uri)
    assert not (tmp_path / "tables" / "catalog").exists()


def test_writer_rejects_tables_upgraded_after_opening(tmp_path: Path) -> None:
    tables = Tables.create(str(tmp_path))
    DeltaTable(str(tmp_path / "scores")).alter.set_table_properties({FORMAT_KEY: "3"}, raise_if_not_exists=False)
    version = DeltaTable(str(tmp_path / "scores")).version()
    with pytest.raises(SpecError, match=r"format version 3 \(found in table 'scores'\)"):
        Writer(tables, "run-1")
    assert DeltaTable(str(tmp_path / "scores")).version() == version


@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["query", "--views"],
        ["failures", "list"],
        *(["tables", name] for name in ("compact", "vacuum", "history", "check")),
    ],
    ids=" ".join,
)
def test_commands_reject_old_tables(tmp_path: Path, command: list[str]) -> None:
    uri = make_tables(str(tmp_path / "tables"), None)
    head, tail = (command[:2], command[2:]) if command[0] in ("tables", "failures") else (command[:1], command[1:])
    result = CliRunner().invoke(app, [*head, uri, *tail])
    assert result.exit_code == 2
    assert "the tables have format version 1" in result.stderr
