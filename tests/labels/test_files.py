"""Lists of labels in all their forms, and everything that may be wrong with one, named with its line."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kvq_batch.domain.errors import SpecError
from kvq_batch.labels.files import Labels, Matching, NamedVideo, Scale, dataset_name, match_labels, read_labels
from tests.support.stores import Store

FOUR_FIELDS = "a.mp4, -1, -1, 61.5\nsub/b, c.mp4,-1,-1,7e1\n\nc.mp4, 2, 3, 0\n"


def test_the_four_field_list_is_read_with_its_commas(store: Store) -> None:
    labels = read_labels(store.put("KoNViD/labels.txt", FOUR_FIELDS.encode()), store.options)
    assert labels.names == ("a.mp4", "sub/b, c.mp4", "c.mp4")
    np.testing.assert_array_equal(labels.values, [61.5, 70, 0])
    assert labels.dataset == "KoNViD"
    assert labels.summary == "3 labels; four fields a line (file, -1, -1, mos)"


def make(folder: Path, form: str) -> Path:
    """The same two labels in each form of a table."""
    rows = [{"Name": "007", "MOS": 3.5, "country": "CH"}, {"Name": "b.mp4", "MOS": 4, "country": None}]
    file = folder / f"study.{form}"
    if form == "csv":
        file.write_text('\ufeffName,MOS,country\n007,3.5,CH\n"b.mp4",4,\n')
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        file.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return file


@pytest.mark.parametrize("form", ["csv", "parquet", "jsonl", "ndjson"])
def test_tables_give_the_same_labels_in_every_form(tmp_path: Path, form: str) -> None:
    labels = read_labels(str(make(tmp_path, form)), scale=Scale(1, 5))
    assert (labels.dataset, labels.names) == ("study", ("007", "b.mp4"))
    np.testing.assert_array_equal(labels.values, [3.5, 4])
    assert labels.column("Country") == ["CH", None]
    assert labels.column("nothing") is None
    assert labels.summary == "2 labels; videos by column 'Name', labels by column 'MOS'"


def read(
    tmp_path: Path, text: str, name: str = "study.csv", id_column: str | None = None, label_column: str | None = None
) -> Labels:
    (tmp_path / name).write_text(text)
    return read_labels(str(tmp_path / name), None, id_column, label_column, scale=Scale(0, 100))


def test_columns_are_taken_as_named(tmp_path: Path) -> None:
    text = "name,other,mos,dmos\nx,y,1,2\n"
    assert read(tmp_path, text, id_column="other", label_column="DMOS").names == ("y",)
    assert read(tmp_path, text, id_column="other", label_column="DMOS").values.tolist() == [2]
    assert read(tmp_path, text).values.tolist() == [1]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "name,mos\nx,1\nx,2\n", "'x' is listed twice, at line 2 and line 3"),
        ("a.csv", "name,mos\nx,1\n,2\n", "line 3 has no video name"),
        ("a.csv", "name,mos\nx,\n", r"line 2 \('x'\) has no label"),
        ("a.csv", "name,mos\nx,good\n", r"line 2 \('x'\): 'good' is not a number"),
        ("a.csv", "name,mos\nx,NaN\n", r"line 2 \('x'\): NaN is not a finite number"),
        ("a.csv", "name,mos\nx,1\ny,101\n", r"line 3 \('y'\): 101 is outside the scale 0..100"),
        ("a.csv", "name,mos\nx,1,2\n", "line 2 has 3 fields, the header 2"),
        ("a.csv", "name,mos,mos\nx,1,2\n", "duplicate column name"),
        ("a.csv", "clip,dmos\nx,1\n", "no column called video_id, .*--id-column. Columns: clip, dmos"),
        ("a.csv", "name,dmos\nx,1\n", "no column called mos, .*--mos-column"),
        ("a.csv", "name,mos\n", "the list is empty"),
        ("a.csv", "", "Columns: none"),
        ("a.txt", "x.mp4, -1, -1, 50\nx.mp4 50\n", "line 2 is not `file, -1, -1, mos`: 'x.mp4 50'"),
        ("a.txt", "x.mp4 50\n", "line 1 is not `file, -1, -1, mos`; use the extension .csv for a table with a header"),
        ("a.jsonl", '{"name": "x", "mos": 1}\n{"name"\n', "line 2 is not JSON"),
        ("a.jsonl", "[1]\n", "line 1 is not a JSON object"),
        ("a.jsonl", '{"name": "x", "mos": [1]}\n', r"\[1\] is not a number"),
        ("a.parquet", "no parquet", "cannot be read as Parquet"),
        ("a.xlsx", "", "a list of labels ends in .csv, .txt"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        read(tmp_path, text, name)


def test_a_list_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"missing\.csv: does not exist"):
        read_labels(str(tmp_path / "missing.csv"))
    (tmp_path / "latin.csv").write_bytes(b"name,mos\nz\xfcrich,1\n")
    with pytest.raises(SpecError, match="line 2 is not UTF-8"):
        read_labels(str(tmp_path / "latin.csv"))
    (tmp_path / "four.txt").write_text(FOUR_FIELDS)
    with pytest.raises(SpecError, match="four fields has no column names"):
        read_labels(str(tmp_path / "four.txt"), id_column="file")


@pytest.mark.parametrize("text", ["100", "5..1", "a..b", "0..inf", "1..2..3"])
def test_a_scale_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="scale"):
        Scale.from_text(text)
    assert str(Scale.from_text("1..5")) == "1..5"


def test_a_data_set_is_called_like_its_file_or_its_folder() -> None:
    assert dataset_name("s3://b/LIVE_VQC/labels.txt") == "LIVE_VQC"
    assert dataset_name("lists/labels_1080p.txt") == "labels_1080p"
    assert dataset_name("labels.csv") == "labels"


VIDEOS = (
    NamedVideo("ia-batch14/x1.mp4", "s3://b/ia-batch14/x1.mp4", "k1"),
    NamedVideo("ia-batch15/x2.mp4", "s3://b/ia-batch15/x2.mp4", "k2"),
    NamedVideo("plain", "s3://b/stored/A001.mov", "k3"),
    NamedVideo("one/same.mp4", "s3://b/one/same.mp4", "k4"),
    NamedVideo("two/same.mp4", "s3://b/two/same.mp4", "k4"),
)


def matched(*names: str, by_key: bool = False) -> Matching:
    return match_labels(names, VIDEOS, by_key)


def test_labels_find_their_videos_by_exact_names_in_order() -> None:
    found = matched("ia-batch14/x1.mp4", "elsewhere/x2.mp4", "A001", "one-same.mp4")
    assert found.video_of == ("ia-batch14/x1.mp4", "ia-batch15/x2.mp4", "plain", "one/same.mp4")
    assert found.by_rule == {
        "video id": 1,
        "file name": 1,
        "file name without extension": 1,
        "id with '-' for '/'": 1,
    }
    assert found.unmatched == ()
    assert (found.num_unlabelled, found.unlabelled) == (1, ("two/same.mp4",))


def test_similar_name_is_not_matched() -> None:
    found = matched("x1.mp44", "X1.mp4", "x1_.mp4")
    assert found.video_of == (None, None, None)
    assert {why for _, why in found.unmatched} == {"no such video"}
    assert found.num_unlabelled == len(VIDEOS)


def test_a_name_that_two_bear_is_nobodys() -> None:
    found = matched("same.mp4", "v/x1.mp4", "w/x1.mp4")
    assert found.video_of == (None, None, None)
    assert dict(found.unmatched)["same.mp4"] == (
        "2 videos have this file name, such as 'one/same.mp4' and 'two/same.mp4'"
    )
    assert dict(found.unmatched)["v/x1.mp4"] == "2 labels have this file name"


def test_a_video_has_one_label_and_the_better_rule_gives_it() -> None:
    found = matched("x2", "ia-batch15-x2.mp4", "ia-batch15/x2.mp4")
    assert found.video_of == (None, None, "ia-batch15/x2.mp4")
    assert dict(found.unmatched)["ia-batch15-x2.mp4"] == "video 'ia-batch15/x2.mp4' already has another label"


def test_a_key_of_the_catalog_matches_alone() -> None:
    found = matched("k2", "k4", "plain", by_key=True)
    assert found.video_of == ("ia-batch15/x2.mp4", None, None)
    assert dict(found.unmatched)["k4"].startswith("2 videos have this key")
    assert dict(found.unmatched)["plain"] == "no such video"
    assert found.by_rule == {"key": 1}
