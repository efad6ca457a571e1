"""Catalog files as other programs write them: encodings, delimiters, compression, partitions, and tables of others."""

import bz2
import gzip
import io
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from kvq_batch.catalog.reader import read_catalog
from kvq_batch.config.job import Catalog
from kvq_batch.domain.column_types import fold_name
from kvq_batch.domain.errors import SpecError
from kvq_batch.storage.options import StorageOptions, delta_options
from tests.support.catalog_files import is_same
from tests.support.stores import LocalStore, Store

CSV = "video_id,uri,title\n007,a.mp4,Zoë\n8,b.mp4,\n"


@pytest.fixture
def local(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def read(store: Store, source: str, **known: pa.DataType) -> pa.Table:
    types = {fold_name(name): kind for name, kind in known.items()}
    return read_catalog(Catalog(source=source), store.options, known=types)


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


class TestText:
    @pytest.mark.parametrize(
        ("name", "data"),
        [
            ("c.csv", CSV.encode("utf-8-sig")),
            ("c.csv", CSV.encode("utf-16")),
            ("c.csv", CSV.replace(",", ";").encode()),
            ("c.csv", CSV.replace(",", "\t").encode()),
            ("c.csv", CSV.replace(",", "|").encode()),
            ("c.csv", CSV.replace("\n", "\r\n").encode()),
            ("c.csv", b"\n" + CSV.encode()),
            ("c.csv.gz", gzip.compress(CSV.encode(), mtime=0)),
            ("C.CSV.GZ", gzip.compress(CSV.encode("utf-16"), mtime=0)),
            ("c.csv.bz2", bz2.compress(CSV.encode())),
            ("c.csv.xz", lzma.compress(CSV.encode())),
        ],
    )
    def test_csv_of_other_programs(self, local: LocalStore, name: str, data: bytes) -> None:
        table = read(local, local.put(name, data))
        assert table["video_id"].to_pylist() == ["007", "8"]
        assert table["title"].to_pylist() == ["Zoë", None]

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
    def test_jsonl_encodings(self, local: LocalStore, encoding: str) -> None:
        line = '{"video_id": "1", "uri": "a.mp4", "title": "Zoë"}\n'
        (row,) = read(local, local.put("c.jsonl", line.encode(encoding))).to_pylist()
        assert row["title"] == "Zoë"

    def test_compressed_jsonl_in_a_store(self, store: Store) -> None:
        source = store.put("c.jsonl.gz", gzip.compress(b'{"video_id": "1", "uri": "a.mp4"}'))
        assert read(store, source)["uri"].to_pylist() == [f"{store.uri}/a.mp4"]

    @pytest.mark.parametrize(
        ("name", "data", "message"),
        [
            ("c.csv", CSV.encode("latin-1"), r"column 'title' is not UTF-8 in row 1 \(Latin-1\?\); save the file as"),
            ("c.csv", "video_id,uri,größe\n1,a,2\n".encode("latin-1"), "name of column 3 is not UTF-8"),
            ("c.csv", CSV.encode("utf-16")[2:], "has NUL bytes, so it is not text in UTF-8"),
            ("c.csv", CSV.encode("utf-16")[:-1], "is not valid UTF-16"),
            ("c.csv", b"video_id,uri,\n1,a,2\n", r"column 3 of 3 has no name .*; name it or remove it"),
            ("c.csv", b",video_id,uri\n0,1,a\n", r"column 1 of 3 has no name \(pandas writes its index like this\)"),
            ("c.csv", b"video_id,uri\n1,a\n2,b,c\n", r"Row #3: Expected 2 columns, got 3"),
            ("c.csv", b"video_id,uri,x,X\n1,a,2,3\n", "columns 'x' and 'X' have the same name"),
            ("c.csv", b"video_id,uri\n", "the catalog has no rows"),
            ("c.csv", b"", "cannot be read as a catalog"),
            ("c.csv.gz", gzip.compress(CSV.encode(), mtime=0)[:-9], "cannot be read as a catalog"),
            ("c.csv.gz", CSV.encode(), "Not a gzipped file"),
            ("c.jsonl", b"", "cannot be read as a catalog"),
            ("c.jsonl", b"null\n", "expected JSON objects, one per line, found 'n'"),
            ("c.jsonl", b'[{"video_id": "1", "uri": "a"}]', r"expected JSON objects, one per line, found '\['"),
            ("c.jsonl", b'{"video_id": "1", "uri": "a", "t": "\xe4"}', "(?i)invalid utf-?8"),
            ("c.jsonl", b'{"video_id": "1", "uri": "a", "t": 1}\n{"t": "x"}', "t.* changed from number to string"),
            ("c.jsonl", b'{"video_id": "1", "uri": "a", "": 1}', "column 3 of 3 has no name"),
        ],
    )
    def test_unreadable_text_is_one_sentence(self, local: LocalStore, name: str, data: bytes, message: str) -> None:
        source = local.put(name, data)
        with pytest.raises(SpecError, match=message) as caught:
            read(local, source)
        assert source in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_known_text_stays_as_written(self, local: LocalStore) -> None:
        source = local.put("c.csv", b"video_id,uri,Code,day\n1,a.mp4,007,2026-01-01\n")
        assert read(local, source)["Code"].to_pylist() == [7]
        table = read(local, source, code=pa.string(), day=pa.string())
        assert (table["Code"].to_pylist(), table["day"].to_pylist()) == (["007"], ["2026-01-01"])
        source = local.put("c.jsonl", b'{"video_id": "1", "uri": "a", "m": {"day": "2026-01-01"}, "day": "2026-01-01"}')
        known = {"m": pa.struct([("day", pa.string())]), "day": pa.string()}
        (row,) = read(local, source, **known).to_pylist()
        assert (row["m"], row["day"]) == ({"day": "2026-01-01"}, "2026-01-01")

    @pytest.mark.parametrize(
        "values",
        [
            [[], [None, None], None],
            [[[]], [None], [[None, None]]],
            [{"a": [None, None]}, None, {"a": []}],
            [[None, {}], [{}], []],
            [[None, 1], [2], None],
            [[None, None, "a"], [None], ["b", None]],
            [[None, {"k": ""}], [None, [1]][:1], [{"k": "x"}]],
            [{"a": [None, [None, 1.5]]}, {"a": None}, {}],
            [{"a": [{}, None], "b": 2**70}, None, {"b": 1.5}],
        ],
    )
    def test_empty_json_values_keep_their_lengths(self, local: LocalStore, values: list[Any]) -> None:
        lines = [json.dumps({"video_id": f"v{i}", "uri": "a.mp4", "x": value}) for i, value in enumerate(values)]
        found = read(local, local.put("c.jsonl", "\n".join(lines).encode()))["x"].to_pylist()
        assert len(found) == len(values)
        assert all(map(is_same, values, found)), found

    def test_time_of_day_is_text(self, local: LocalStore) -> None:
        source = local.put("c.csv", b"video_id,uri,at\n1,a.mp4,10:30\n")
        assert read(local, source)["at"].to_pylist() == ["10:30"]


class TestPartitions:
    def test_folders_name_columns(self, store: Store) -> None:
        for number, folder in enumerate(
            ("country=DE/day=1", "country=C%20H/day=2", "country=__HIVE_DEFAULT_PARTITION__")
        ):
            store.put(f"c/{folder}/part-{number}.parquet", parquet([{"video_id": str(number), "uri": "x.mp4"}]))
        rows = {row["video_id"]: (row["country"], row["day"]) for row in read(store, f"{store.uri}/c").to_pylist()}
        assert rows == {"0": ("DE", 1), "1": ("C H", 2), "2": (None, None)}

    def test_numbers_with_zeros_are_text(self, local: LocalStore) -> None:
        for month in ("01", "12"):
            local.put(f"c/month={month}/x.parquet", parquet([{"video_id": month, "uri": "x.mp4"}]))
        assert sorted(read(local, f"{local.uri}/c")["month"].to_pylist()) == ["01", "12"]

    def test_column_of_the_file_wins(self, local: LocalStore) -> None:
        local.put("c/Year=2026/x.parquet", parquet([{"video_id": "1", "uri": "x.mp4", "year": 2025}]))
        assert read(local, f"{local.uri}/c")["year"].to_pylist() == [2025]


class TestTablesOfOthers:
    def test_delta_table_is_read_through_its_log(self, store: Store) -> None:
        uri, options = f"{store.uri}/delta", delta_options(store.uri, store.options) or None
        rows = pa.table({"video_id": ["1", "2", "3"], "uri": ["a.mp4", "b.mp4", "c.mp4"], "year": [1, 1, 2]})
        write_deltalake(uri, rows, partition_by=["year"], storage_options=options)
        write_deltalake(uri, rows.slice(1), mode="overwrite", storage_options=options)
        DeltaTable(uri, storage_options=options).delete("video_id = '3'")
        (row,) = read(store, uri).to_pylist()
        assert (row["video_id"], row["uri"], row["year"]) == ("2", f"{uri}/b.mp4", 1)
        with pytest.raises(SpecError, match=r"is a table of Delta.*give its folder as the source"):
            read(store, f"{uri}/*/*.parquet")

    @pytest.mark.parametrize(
        ("log", "name"),
        [
            ("metadata/v1.metadata.json", "Iceberg"),
            (".hoodie/hoodie.properties", "Hudi"),
            ("_spark_metadata/0", "Spark Structured Streaming"),
        ],
    )
    def test_other_tables_are_rejected_by_name(self, store: Store, log: str, name: str) -> None:
        store.put(f"t/{log}", b"{}")
        store.put("t/data/x.parquet", parquet([{"video_id": "1", "uri": "x.mp4"}]))
        for source in (f"{store.uri}/t", f"{store.uri}/t/**/*.parquet"):
            with pytest.raises(SpecError, match=f"/t/: is a table of {name}.*export its current rows"):
                read(store, source)

    def test_table_beside_videos_does_not_matter(self, local: LocalStore) -> None:
        local.put("v/a.mp4", b"x")
        local.put("v/tables/_delta_log/0.json", b"{}")
        assert read(local, f"{local.uri}/v")["video_id"].to_pylist() == ["a.mp4"]


def test_unnamed_column_is_rejected_before_tables_exist(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text(",video_id,uri\n0,1,a.mp4\n")
    with pytest.raises(SpecError, match="column 1 of 3 has no name"):
        read_catalog(Catalog(source=str(tmp_path / "c.csv")), StorageOptions())
