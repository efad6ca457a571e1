"""Opinions come in on their own scale, replace what the data set said, and a bad list changes nothing."""

from pathlib import Path

import pytest

from kvq_batch.domain.errors import SpecError
from kvq_batch.labels.files import Scale
from kvq_batch.labels.opinions import Imported, OpinionList, import_opinions
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.session import open_session

LIST = "video_id,mos,scene_id,std,votes\na.mp4,1.5,s,0.4,20\nb.mp4,4.5,s,,\n"


def bring(folder: Path, text: str, **more: object) -> Imported:
    (folder / "study.csv").write_text(text)
    wanted = OpinionList(str(folder / "study.csv"), Scale(1, 5), **more)  # type: ignore[arg-type]
    return import_opinions(str(folder / "tables"), StorageOptions(), wanted)


def opinions(folder: Path, columns: str = "*") -> list[dict[str, object]]:
    with open_session(str(folder / "tables")) as session:
        rows: list[dict[str, object]] = session.sql(f"SELECT {columns} FROM opinions ORDER BY video_id").to_pylist()
        return rows


def test_a_list_is_taken_in_with_its_scale(tmp_path: Path) -> None:
    done = bring(tmp_path, LIST)
    assert (done.dataset, done.num_opinions, done.num_withdrawn, done.num_in_catalog) == ("study", 2, 0, 0)
    first, second = opinions(tmp_path)
    assert (first["opinion"], first["mos"], first["scale_low"], first["scale_high"]) == (1.5, 12.5, 1.0, 5.0)
    assert (first["spread"], first["num_opinions"], first["scene_id"]) == (0.4, 20, "s")
    assert (second["mos"], second["spread"], second["num_opinions"]) == (87.5, None, None)


def test_where_less_is_better_the_scale_is_turned(tmp_path: Path) -> None:
    bring(tmp_path, LIST, better="low", dataset="dmos")
    assert [row["mos"] for row in opinions(tmp_path)] == [87.5, 12.5]
    assert opinions(tmp_path, "scale_low, scale_high")[0] == {"scale_low": 5.0, "scale_high": 1.0}


def test_the_same_data_set_again_replaces_what_it_said(tmp_path: Path) -> None:
    bring(tmp_path, LIST)
    done = bring(tmp_path, "video_id,mos\nb.mp4,2\nc.mp4,3\n")
    assert (done.num_opinions, done.num_withdrawn) == (2, 1)
    assert opinions(tmp_path, "video_id, opinion") == [
        {"video_id": "b.mp4", "opinion": 2.0},
        {"video_id": "c.mp4", "opinion": 3.0},
    ]
    bring(tmp_path, LIST, dataset="other")
    assert len(opinions(tmp_path)) == 4


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("c.mp4,7,s,,", r"line 4 \('c.mp4'\): 7 is outside the scale 1..5"),
        ("c.mp4,nan,s,,", "not a finite number"),
        ("c.mp4,,s,,", "has no label"),
        ("a.mp4,2,s,,", "'a.mp4' is listed twice"),
        ("c.mp4,2,s,wide,", "spread 'wide' is not a number"),
        ("c.mp4,2,s,,-3", "number of opinions -3"),
    ],
)
def test_a_bad_row_refuses_the_whole_list(tmp_path: Path, row: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        bring(tmp_path, f"{LIST}{row}\n")
    assert not (tmp_path / "tables").exists()
