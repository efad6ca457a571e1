"""Every row of every table passes the mask of the writer, and a new signature is not a change of the catalog."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kvq_batch.catalog.reader import read_catalog, write_catalog
from kvq_batch.catalog.stored_rows import catalog_changes
from kvq_batch.config.job import Catalog
from kvq_batch.domain.errors import SpecError
from kvq_batch.planning.plan import store_plan
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.schemas import TABLES, TableSchema
from kvq_batch.tables.writer import Writer
from tests.support.results import make_catalog
from tests.support.secrets_search import find_secrets

SECRET = "plantedSECRETvalue0123456789"


@pytest.mark.parametrize("schema", TABLES, ids=lambda schema: schema.name)
def test_rows_of_every_table_are_masked(schema: TableSchema, tmp_path: Path) -> None:
    tables = Tables.create(str(tmp_path))
    rows = pa.table({field.name: planted(field) for field in schema.row_schema()})
    assert SECRET in str(rows.to_pylist())
    assert Writer(tables, "run-1")._commit({schema.name: rows})
    assert tables.dataset(schema.name).count_rows() == 1
    assert find_secrets(tmp_path, [SECRET]) == []


def planted(field: pa.Field) -> pa.Array:
    """Return a column of one value that has the secret wherever its type has text."""
    # The values of a partition are names of folders, which the writer restricts.
    return pa.array(["model@1-0123"] if field.name == "model_id" else [_value(field.type)], field.type)


def _value(kind: pa.DataType) -> Any:
    types = pa.types
    if types.is_string(kind):
        return f"https://me:{SECRET}@h/v.mp4?token={SECRET} aws_secret_access_key={SECRET}"
    if types.is_map(kind):
        return [(_value(kind.key_type), _value(kind.item_type))]
    if types.is_list(kind):
        return [_value(kind.value_type)]
    if types.is_struct(kind):
        return {child.name: _value(child.type) for child in kind}
    if types.is_binary(kind):
        return b""
    if types.is_timestamp(kind):
        return 0
    return True if types.is_boolean(kind) else 1


def test_new_signature_is_not_a_change(tmp_path: Path) -> None:
    tables = Tables.create(str(tmp_path))
    writer = Writer(tables, "run-1")

    def night(signature: str, path: str = "v.mp4") -> pa.Table:
        signed = f"https://b.s3.amazonaws.com/{path}?X-Amz-Date={signature}&X-Amz-Signature={SECRET}{signature}"
        azure = f"https://a.blob.core.windows.net/c/t.jpg?se={signature}&sp=r&sig={SECRET}{signature}"
        catalog = make_catalog(["a"], thumbnail=[azure], title=["A film"])
        return catalog_changes(tables, catalog.set_column(1, "uri", pa.array([signed])), "c")

    writer.write_catalog(night("1"))
    tables.refresh()
    assert night("2").num_rows == 0
    assert night("3", "moved.mp4")["uri"].to_pylist() == ["https://b.s3.amazonaws.com/moved.mp4"]
    assert find_secrets(tmp_path, [SECRET]) == []


class TestIds:
    """Ids are masked when the catalog is read, so that plan and tables agree."""

    def read(self, tmp_path: Path, *rows: dict[str, str]) -> pa.Table:
        (tmp_path / "c.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return read_catalog(Catalog(source=str(tmp_path / "c.jsonl")), StorageOptions())

    def test_signed_id_is_the_same_every_night(self, tmp_path: Path) -> None:
        uris = [f"https://h/v.mp4?Expires={night}&Signature={SECRET}{night}" for night in range(2)]
        tables = [self.read(tmp_path, {"video_id": uri, "uri": uri, "title": f"t {uri}"}) for uri in uris]
        assert [table["video_id"].to_pylist() for table in tables] == [["https://h/v.mp4"]] * 2
        # Fetching needs the signature.
        assert [table["uri"][0].as_py() for table in tables] == uris
        assert SECRET not in tables[0]["title"][0].as_py()

    def test_ids_that_differ_in_their_signature_only(self, tmp_path: Path) -> None:
        rows = [{"video_id": f"https://h/v.mp4?sig={SECRET}{number}", "uri": "x.mp4"} for number in range(2)]
        with pytest.raises(SpecError, match=r"not unique: 'https://h/v.mp4'") as caught:
            self.read(tmp_path, *rows)
        assert SECRET not in str(caught.value)

    def test_written_files_are_masked(self, tmp_path: Path) -> None:
        uri = f"https://h/v.mp4?sig={SECRET}"
        table = self.read(tmp_path, {"video_id": "a", "uri": uri, "thumbnail": uri})
        write_catalog(table, str(tmp_path / "out" / "c.parquet"))
        assert pq.read_table(tmp_path / "out" / "c.parquet")["thumbnail"].to_pylist() == ["https://h/v.mp4"]
        store_plan(Tables.create(str(tmp_path / "out" / "tables")), "run-1", table)
        assert find_secrets(tmp_path / "out", [SECRET]) == []


def test_search_finds_what_is_not_masked(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    table = pa.table({"v": [f"https://h/v.mp4?sig={SECRET}"] * 100})
    pq.write_table(table, tmp_path / "a" / "t.parquet", compression="zstd")
    (tmp_path / "log.json").write_text(json.dumps({"v": "planted%2FSECRET"}))
    assert find_secrets(tmp_path, [SECRET, "planted/SECRET", "absent"]) == [
        f"{tmp_path}/a/t.parquet: {SECRET}",
        f"{tmp_path}/log.json: planted/SECRET",
    ]
