"""Folders with Delta tables of others, and damaged logs: one clear sentence, and nothing is written."""

from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from kvq_batch.domain.errors import SpecError
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.writer import Writer
from tests.support.results import make_batch

THEIRS = pa.table({"id": [1], "name": ["x"]})


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["catalog", "scores", "runs"], "is a Delta table that kvq-batch did not write"),
        (["scores"], "is a Delta table that kvq-batch did not write"),
        (["models"], "is a Delta table that kvq-batch did not write"),
        ([""], "is itself a Delta table"),
    ],
)
def test_tables_of_others_are_rejected_in_the_plan(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        write_deltalake(str(tmp_path / name), THEIRS)
    before = files(tmp_path)
    for open_tables in (Tables.open_if_any, Tables.create):
        with pytest.raises(SpecError, match=message):
            open_tables(str(tmp_path))
    assert files(tmp_path) == before


def test_other_tables_beside_ours_do_no_harm(tmp_path: Path) -> None:
    write_deltalake(str(tmp_path / "sales"), THEIRS)
    tables = Tables.create(str(tmp_path))
    assert Tables.open_if_any(str(tmp_path)) is not None
    Writer(tables, "run-1").commit(make_batch(["a"]))


@pytest.mark.parametrize("content", [b'{"add": {"path"', b"\x00\xff\x12", b"{]}"])
def test_torn_log_entry_is_named(tmp_path: Path, content: bytes) -> None:
    Writer(Tables.create(str(tmp_path)), "run-1").commit(make_batch(["a"]))
    newest = max((tmp_path / "scores" / "_delta_log").glob("*.json"))
    newest.write_bytes(content)
    for open_tables in (Tables.open, Tables.open_if_any, Tables.create):
        with pytest.raises(SpecError, match="scores: an entry of the Delta log is damaged") as caught:
            open_tables(str(tmp_path))
        assert "unknown" not in str(caught.value)
