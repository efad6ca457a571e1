"""Reading catalogs from a local folder and from S3: files, listings, content ids, and errors."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from kvq_batch.catalog.content_ids import resolve_content_ids
from kvq_batch.catalog.reader import CANONICAL, catalog_root, read_catalog, write_catalog
from kvq_batch.config.job import Catalog, CatalogColumns
from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.identity import UNKNOWN_CONTENT
from kvq_batch.storage.listing import glob_to_regex, list_files, split_glob
from kvq_batch.storage.options import StorageOptions
from tests.support.s3 import BUCKET, S3Location, S3Server
from tests.support.stores import LocalStore, Store

ROWS: list[dict[str, Any]] = [
    {"video_id": "007", "uri": "a/x.mp4", "country": "DE", "n": 1, "day": "2026-01-01"},
    {"video_id": "8", "uri": "s3://elsewhere/y.mp4", "country": "NA", "n": 2, "day": "2026-01-02"},
    {"video_id": "2026-01-03", "uri": "/abs/z.mp4", "country": None, "n": None, "day": "2026-01-03"},
]
ODD_NAMES = [
    "a b.mp4",
    "é日本.mp4",
    "#1.mp4",
    "50%41.mp4",
    "a+b.mp4",
    "q'\"u,.mp4",
    "n\nl.mp4",
    "a?b.MP4",
    "x;y=z@2.mov",
]


def as_bytes(rows: list[dict[str, Any]], extension: str) -> bytes:
    table = pa.Table.from_pylist(rows)
    if extension == "parquet":
        sink = io.BytesIO()
        pq.write_table(table, sink)
        return sink.getvalue()
    if extension == "csv":
        sink = io.BytesIO()
        pyarrow.csv.write_csv(table, sink)
        return sink.getvalue()
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def read(store: Store, source: str, **settings: Any) -> pa.Table:
    return read_catalog(Catalog(source=source, **settings), store.options)


@pytest.fixture
def local(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


class TestFiles:
    @pytest.mark.parametrize("extension", ["parquet", "csv", "jsonl", "ndjson"])
    def test_all_rows_and_columns(self, store: Store, extension: str) -> None:
        table = read(store, store.put(f"lists/c.{extension}", as_bytes(ROWS, extension)))
        assert table.schema.names == [*CANONICAL.names, "country", "n", "day"]
        assert [table.schema.field(name) for name in CANONICAL.names] == list(CANONICAL)
        assert table["video_id"].to_pylist() == ["007", "8", "2026-01-03"]
        assert table["uri"].to_pylist() == [f"{store.uri}/lists/a/x.mp4", "s3://elsewhere/y.mp4", "/abs/z.mp4"]
        assert table["country"].to_pylist() == ["DE", "NA", None]
        assert table["n"].to_pylist() == [1, 2, None]
        assert table["content_id"].null_count == table.num_rows

    def test_a_folder_or_glob_of_parquet(self, store: Store) -> None:
        store.put("c.parquet/part-0.parquet", as_bytes(ROWS[:2], "parquet"))
        store.put("c.parquet/part-1.parquet", as_bytes([{**ROWS[2], "more": 1.5}], "parquet"))
        store.put("c.parquet/_SUCCESS", b"x")
        store.put("c.parquet/_temporary/part-1.parquet", b"half of a file")
        for source in (f"{store.uri}/c.parquet", f"{store.uri}/c.parquet/part-*.parquet"):
            table = read(store, source)
            assert table["video_id"].to_pylist() == ["007", "8", "2026-01-03"]
            assert table["more"].to_pylist() == [None, None, 1.5]
            assert table["uri"][0].as_py() == f"{store.uri}/c.parquet/a/x.mp4"

    def test_relative_addresses_with_dots(self, store: Store) -> None:
        rows = [{"video_id": str(i), "uri": uri} for i, uri in enumerate(["../v/a.mp4", "./b.mp4", "c..mp4"])]
        table = read(store, store.put("lists/c.jsonl", as_bytes(rows, "jsonl")))
        assert table["uri"].to_pylist() == [
            f"{store.uri}/v/a.mp4", f"{store.uri}/lists/b.mp4", f"{store.uri}/lists/c..mp4"
        ]  # fmt: skip

    def test_mapped_columns(self, local: LocalStore) -> None:
        rows = [{"asset": 7, "url": "x.mp4", "md5": "ab", "len": 5, "from": 1, "to": 2.5}]
        columns = CatalogColumns(
            video_id="asset", uri="url", content_id="md5", size_bytes="len", start_s="from", end_s="to"
        )
        for extension in ("parquet", "csv", "jsonl"):
            source = local.put(f"c.{extension}", as_bytes(rows, extension))
            (row,) = read(local, source, columns=columns, id_prefix="nl/").to_pylist()
            assert row["video_id"] == "nl/7"
            assert (row["content_id"], row["size_bytes"], row["start_s"], row["end_s"]) == ("ab", 5, 1.0, 2.5)
            assert str(row["asset"]) == "7"

    def test_one_column_mapped_twice_and_other_case(self, local: LocalStore) -> None:
        for extension in ("parquet", "csv", "jsonl"):
            source = local.put(f"c.{extension}", as_bytes([{"URI": "s3://b/x.mp4", "n": 1}], extension))
            table = read(local, source, columns=CatalogColumns(video_id="URI", uri="URI"), where="uri LIKE 's3:%'")
            assert table.column_names == [*CANONICAL.names, "n"]
            assert table["video_id"].to_pylist() == table["uri"].to_pylist() == ["s3://b/x.mp4"]

    def test_where(self, local: LocalStore) -> None:
        source = local.put("c.parquet", as_bytes(ROWS, "parquet"))
        assert read(local, source, where="n >= 1 AND country LIKE 'N%'")["video_id"].to_pylist() == ["8"]
        assert read(local, source, where="n IS NULL OR n = 1 -- why not")["video_id"].to_pylist() == [
            "007",
            "2026-01-03",
        ]

    @pytest.mark.parametrize(
        ("where", "reason"),
        [
            ("1=1; COPY catalog TO '{out}'", "is not a valid condition"),
            ("n = 1) OR (n = 2", "is not a valid condition"),
            ("video_id IN (SELECT column0 FROM read_csv('/etc/passwd'))", "is not a valid condition"),
            ("(SELECT count(*) FROM '/etc/passwd') > 0", "is not a valid condition"),
            ("true) UNION ALL (SELECT 1", "is not a valid condition"),
            ("true ORDER BY 1", "is not a valid condition"),
            ("nope = 1", "nope"),
            ("n >", "is not a valid condition"),
            ("country", "is not a valid condition"),
            ("", "is not a valid condition"),
            ("n = 99", "no row matches"),
        ],
    )
    def test_invalid_where_is_rejected(self, local: LocalStore, where: str, reason: str) -> None:
        source = local.put("c.parquet", as_bytes(ROWS, "parquet"))
        with pytest.raises(SpecError, match=reason):
            read(local, source, where=where.format(out=f"{local.uri}/out.csv"))
        assert not (Path(local.uri) / "out.csv").exists()

    def test_where_cannot_access_python_variables(self, local: LocalStore) -> None:
        source = local.put("c.parquet", as_bytes(ROWS, "parquet"))
        with pytest.raises(SpecError, match="is not a valid condition"):
            read(local, source, where="(SELECT count(*) FROM table) > 0")
        with pytest.raises(SpecError, match="is not a valid condition"):
            read(local, source, where="(SELECT count(*) FROM places) > 0")

    @pytest.mark.parametrize(
        ("rows", "settings", "message"),
        [
            ([{"id": "1", "uri": "x"}], {}, "no column 'video_id'.*the columns are: id, uri"),
            (
                [{"video_id": "1", "uri": "x"}],
                {"columns": {"size_bytes": "len"}},
                "no column 'len'.*columns.size_bytes",
            ),
            (
                [{"video_id": "1", "uri": "x", "a": "y"}],
                {"columns": {"uri": "a"}},
                "column 'uri' has the reserved name",
            ),
            ([{"video_id": "1", "uri": "x", "N": 1, "n": 2}], {}, "'N' and 'n'"),
            ([{"video_id": "1", "uri": "x", "Size_Bytes": 1}], {}, "'Size_Bytes' has the reserved name 'size_bytes'"),
            (
                [{"video_id": i % 7, "uri": "x"} for i in range(14)],
                {},
                "7 video ids .*: '0', '1', '2', '3', '4' and 2 more;",
            ),
            ([{"video_id": v, "uri": "x"} for v in ("a", None, " ")], {}, "no video_id in row 2, 3"),
            ([{"video_id": "a", "uri": u} for u in ("a", "", None)], {}, "no uri in row 2, 3"),
            ([{"video_id": 1.5, "uri": "x"}], {}, "store video ids as text"),
            ([{"video_id": "a", "uri": "x", "start_s": 2.0, "end_s": 2.0}], {}, "0 <= start < end.*row 1"),
            ([{"video_id": "a", "uri": "x", "start_s": -1.0}], {}, "0 <= start < end"),
            ([{"video_id": "a", "uri": "x", "end_s": float("nan")}], {}, "0 <= start < end"),
            ([{"video_id": "a", "uri": "x", "end_s": "soon"}], {}, "column 'end_s' cannot be read as double"),
        ],
    )
    def test_invalid_catalogs_are_rejected(
        self, local: LocalStore, rows: list[dict[str, Any]], settings: dict[str, Any], message: str
    ) -> None:
        source = local.put("c.parquet", as_bytes(rows, "parquet"))
        with pytest.raises(SpecError, match=message) as caught:
            read(local, source, **settings)
        assert source in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "data", "message"),
        [
            ("c.parquet", b"PAR1 no", "cannot be read as a catalog"),
            ("c.csv", b"a,b\n1\n", "cannot be read as a catalog"),
            ("c.csv", b"", "cannot be read as a catalog"),
            ("c.csv", b"video_id,uri\n", "no row"),
            ("c.jsonl", b"{no", "cannot be read as a catalog"),
            ("c.csv", b"video_id,uri\na,\xff\xfe\n", "cannot be read"),
        ],
    )
    def test_unreadable_files(self, store: Store, name: str, data: bytes, message: str) -> None:
        source = store.put(name, data)
        with pytest.raises(SpecError, match=message) as caught:
            read(store, source)
        assert source in str(caught.value)

    def test_missing_and_unknown_sources(self, store: Store, local: LocalStore) -> None:
        for name in ("no.csv", "no.parquet", "no.mp4", "no/folder", "no/*.mp4"):
            with pytest.raises(SpecError, match="no"):
                read(store, f"{store.uri}/{name}")
        with pytest.raises(SpecError, match="unknown catalog format"):
            read(local, local.put("c.xlsx", b"x"))


class TestListings:
    def test_ids_are_paths_below_the_folder(self, store: Store) -> None:
        for name in ("a.mp4", "b/c.MKV", "b/note.txt", ".hidden.mp4", "b/.trash/d.mp4", "b/mp4"):
            store.put(f"v/{name}", name.encode())
        table = read(store, f"{store.uri}/v/")
        assert table["video_id"].to_pylist() == ["a.mp4", "b/c.MKV"]
        assert table["uri"].to_pylist() == [f"{store.uri}/v/a.mp4", f"{store.uri}/v/b/c.MKV"]
        assert table["size_bytes"].to_pylist() == [5, 7]
        assert resolve_content_ids(table, store.options).equals(table)
        bare = table.set_column(2, CANONICAL.field("content_id"), pa.nulls(2, pa.string()))
        assert resolve_content_ids(bare, store.options).equals(table)

    def test_globs(self, store: Store) -> None:
        for name in ("v/a.mp4", "v/2/b.mp4", "v/2/3/c.mp4", "w/d.mp4"):
            store.put(name, b"x")
        found = {glob: read(store, f"{store.uri}/{glob}") for glob in ("v/*.mp4", "v/**/*.mp4", "*/?.mp4", "v/[!3]/*")}
        assert {glob: table["video_id"].to_pylist() for glob, table in found.items()} == {
            "v/*.mp4": ["a.mp4"],
            "v/**/*.mp4": ["2/3/c.mp4", "2/b.mp4", "a.mp4"],
            "*/?.mp4": ["v/a.mp4", "w/d.mp4"],
            "v/[!3]/*": ["2/b.mp4"],
        }

    def test_one_file(self, store: Store) -> None:
        uri = store.put("v/a.mp4", b"12345")
        (row,) = read(store, uri).to_pylist()
        assert (row["video_id"], row["uri"], row["size_bytes"]) == ("a.mp4", uri, 5)
        assert row["content_id"] == list_files(f"{store.uri}/v", store.options)["content_id"][0].as_py()

    def test_odd_names_survive_listing_and_files(self, store: Store) -> None:
        for name in ODD_NAMES:
            store.put(f"v/{name}", name.encode())
        table = read(store, f"{store.uri}/v")
        assert sorted(table["video_id"].to_pylist()) == sorted(ODD_NAMES)
        assert table["size_bytes"].to_pylist() == [len(name.encode()) for name in table["video_id"].to_pylist()]
        for extension in ("parquet", "csv", "jsonl"):
            out = f"{store.uri}/out/c.{extension}"
            write_catalog(table, out, store.options)
            assert read(store, out).equals(table)
        bare = table.set_column(2, CANONICAL.field("content_id"), pa.nulls(len(ODD_NAMES), pa.string()))
        assert resolve_content_ids(bare, store.options).equals(table)

    def test_no_videos_and_mixed_files(self, store: Store) -> None:
        store.put("v/a.txt", b"x")
        with pytest.raises(SpecError, match="no video files found"):
            read(store, f"{store.uri}/v")
        store.put("v/a.mp4", b"x")
        store.put("v/a.parquet", b"x")
        with pytest.raises(SpecError, match="both videos and Parquet"):
            read(store, f"{store.uri}/v")

    def test_more_than_one_page(self, s3_prefix: S3Location) -> None:
        fs = s3_prefix.fs
        fs.pipe({f"{s3_prefix.path}/v/{i:04}.mp4": b"x" * (i % 3 + 1) for i in range(1100)}, batch_size=32)
        table = read(s3_prefix, f"{s3_prefix.uri}/v")
        assert table["video_id"].to_pylist() == [f"{i:04}.mp4" for i in range(1100)]
        bare = table.set_column(2, CANONICAL.field("content_id"), pa.nulls(1100, pa.string()))
        assert resolve_content_ids(bare, s3_prefix.options).equals(table)
        # A twentieth of the objects: too few for a listing, so HEAD requests are used.
        few = bare.take(list(range(0, 1100, 20)))
        assert resolve_content_ids(few, s3_prefix.options).equals(table.take(list(range(0, 1100, 20))))

    def test_file_name_that_is_not_utf8(self, tmp_path: Path) -> None:
        (tmp_path / "a\udcff.mp4").write_bytes(b"x")
        with pytest.raises(SpecError, match="not UTF-8"):
            read_catalog(Catalog(source=str(tmp_path)), StorageOptions())


class TestContentIds:
    def test_known_ids_need_no_request(self, store: Store) -> None:
        rows = [{"video_id": "1", "uri": "s3://nowhere/x.mp4", "content_id": "theirs", "start_s": 1, "end_s": None}]
        table = read(store, store.put("c.jsonl", as_bytes(rows, "jsonl")))
        unreachable = StorageOptions("http://127.0.0.1:1", "us-east-1")
        assert resolve_content_ids(table, unreachable)["content_id"].to_pylist() == ["theirs#t=1.0"]

    def test_missing_objects_are_unknown_and_segments_share_a_request(self, store: Store) -> None:
        store.put("v/a.mp4", b"123")
        rows: list[dict[str, Any]] = [
            {"video_id": "1", "uri": "v/a.mp4", "start_s": 0.0, "end_s": 2.5},
            {"video_id": "2", "uri": "v/a.mp4", "start_s": 2.5},
            {"video_id": "3", "uri": "v/gone.mp4"},
            {"video_id": "4", "uri": "v/a.mp4"},
        ]
        calls: list[tuple[int, int]] = []
        table = read(store, store.put("c.jsonl", as_bytes(rows, "jsonl")))
        table = resolve_content_ids(table, store.options, progress=lambda done, total: calls.append((done, total)))
        token = list_files(f"{store.uri}/v", store.options)["content_id"][0].as_py()
        assert table["content_id"].to_pylist() == [f"{token}#t=0.0,2.5", f"{token}#t=2.5", UNKNOWN_CONTENT, token]
        assert table["size_bytes"].to_pylist() == [3, 3, None, 3]
        assert calls[-1] == (2, 2)

    @pytest.mark.parametrize("count", [3, 60])
    def test_access_denied(self, s3_server: S3Server, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.reader_access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.reader_secret_key)
        options = StorageOptions(s3_server.endpoint_url, f"look-{count}")
        table = self.bare([f"s3://{BUCKET}/secret/{i}.mp4" for i in range(count)])
        assert resolve_content_ids(table, options)["content_id"].to_pylist() == [UNKNOWN_CONTENT] * count

    @pytest.mark.parametrize("count", [3, 60])
    def test_unreachable_store_is_rejected(self, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "plantedID")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "plantedSECRET")
        options = StorageOptions("http://127.0.0.1:1", "us-east-1")
        with pytest.raises(SpecError, match="cannot be reached") as caught:
            resolve_content_ids(self.bare([f"s3://b/{i}.mp4" for i in range(count)]), options)
        assert "planted" not in str(caught.value)

    def bare(self, uris: list[str]) -> pa.Table:
        table = pa.table({"video_id": uris, "uri": uris})
        for field in list(CANONICAL)[2:]:
            table = table.append_column(field, pa.nulls(len(uris), field.type))
        return table


@pytest.mark.parametrize(
    ("source", "root"),
    [
        ("s3://b/v/", "s3://b/v"),
        ("s3://b/v/*/x?.mp4", "s3://b/v"),
        ("s3://b/*.mp4", "s3://b"),
        ("s3://key:secret@b/v", "s3://b/v"),
        ("/data/v/../w/*.mp4", "/data/w"),
        ("/*.mp4", "/"),
        ("/data/c.parquet", "/data/c.parquet"),
    ],
)
def test_root(source: str, root: str) -> None:
    assert catalog_root(Catalog(source=source)) == root


def test_root_of_a_relative_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert catalog_root(Catalog(source="*.mp4")) == catalog_root(Catalog(source=".")) == str(tmp_path)
    (tmp_path / "[odd]").mkdir()
    assert split_glob(str(tmp_path / "[odd]")).glob is None


def test_glob_to_regex() -> None:
    assert glob_to_regex("**/*.mp4") == r"(?s)^(?:(?:.*/)?[^/]*\.mp4)$"
    assert glob_to_regex("[a-c]?[!x]**") == r"(?s)^(?:[a-c][^/][^x].*)$"


def test_unsupported_output_is_rejected(tmp_path: Path) -> None:
    table = pa.table({"video_id": ["a"], "uri": ["x"], "tags": [["a", "b"]]})
    with pytest.raises(SpecError, match="Invalid file name"):
        write_catalog(table, str(tmp_path / "c.txt"))
    with pytest.raises(SpecError, match="column 'tags'"):
        write_catalog(table, str(tmp_path / "c.csv"))
    write_catalog(table, str(tmp_path / "new" / "c.jsonl"))
    assert json.loads((tmp_path / "new" / "c.jsonl").read_text())["tags"] == ["a", "b"]
