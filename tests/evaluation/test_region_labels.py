"""Label files of cells: what is read, and every line that is none, by file and number."""

from pathlib import Path

import numpy as np
import pytest

from kvq_batch.domain.errors import SpecError
from kvq_batch.evaluation.region_labels import read_region_set

GOOD = "0.png (0,0):1.5, (0,1):2, (1,0):3e0, (1,1):-4"


def make(folder: Path, *lines: str, clean: str | None = None, name: str = "SET") -> Path:
    (folder / name).mkdir(parents=True)
    for file in ("0.png", "1 of 2.png", "c.png"):
        (folder / name / file).write_bytes(b"")
    (folder / "labels").mkdir(exist_ok=True)
    (folder / "labels" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    if clean is not None:
        (folder / "labels" / f"{name}.clean.txt").write_text(clean)
    return folder


def test_lines_become_grids_whatever_the_order_of_their_cells(tmp_path: Path) -> None:
    folder = make(tmp_path, GOOD, "", "1 of 2.png  (0,2):3,(0,0):1 , (0, 1) : 2,", clean="1 of 2.png, c.png\n")
    regions = read_region_set(folder)
    assert regions.name == "SET"
    first, second = regions.items
    np.testing.assert_array_equal(first.cells, [[1.5, 2], [3, -4]])
    np.testing.assert_array_equal(second.cells, [[1, 2, 3]])
    assert (first.path, first.clean) == (folder / "SET" / "0.png", None)
    assert (second.path, second.clean) == (folder / "SET" / "1 of 2.png", folder / "SET" / "c.png")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1 of 2.png 3 4 5", "is not `<file>"),
        ("1 of 2.png", "is not `<file>"),
        ("none.png (0,0):1", "there is no file .*none.png; .* none like it"),
        ("0.png (0,0):1", "'0.png' stands in line 1 already"),
        ("c.png (0,0):1, (0,1):good", r"cell \(0, 1\): 'good' is no number"),
        ("c.png (0,0):nan", "no finite number"),
        ("c.png (0,0):1, (0,0):2", r"cell \(0, 0\) stands twice"),
        ("c.png (0,0):1, (1,1):2", r"cell \(0, 1\) of 2 x 2 is missing"),
        ("c.png (0,0):1; (0,1):2", r"'1;' is no number|is not `\(row,column\):label`"),
        ("c.png (0,0):1, (0,1)", r"'\(0,1\)' is not `\(row,column\):label`"),
    ],
)
def test_a_line_that_is_no_label_is_refused_by_its_number(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(SpecError, match=rf"SET\.txt: line 3.*(?:{said})"):
        read_region_set(make(tmp_path, GOOD, "", line))


@pytest.mark.parametrize(
    ("clean", "said"),
    [
        ("0.png\n", r"clean\.txt: line 1 is not `<file>, <clean file>`"),
        ("0.png, no.png\n", r"clean\.txt: line 1: there is no file"),
        ("0.png, c.png\n0.png, c.png\n", r"line 2: '0.png' stands twice"),
        ("c.png, 0.png\n", r"'c.png' has no labels in SET\.txt"),
    ],
)
def test_a_list_of_clean_files_is_checked_as_well(tmp_path: Path, clean: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        read_region_set(make(tmp_path, GOOD, clean=clean))


def test_the_set_is_the_one_that_has_files_or_the_one_that_is_named(tmp_path: Path) -> None:
    folder = make(tmp_path, GOOD)
    (folder / "labels" / "other.txt").write_text("a.mp4, -1, -1, 3\n")
    assert read_region_set(folder).name == "SET"
    make(tmp_path, GOOD, name="MORE")
    with pytest.raises(SpecError, match="holds several sets, MORE, SET"):
        read_region_set(folder)
    assert read_region_set(folder, "MORE").name == "MORE"
    with pytest.raises(SpecError, match=r"no labels/NOPE\.txt .*sets there: MORE, SET"):
        read_region_set(folder, "NOPE")


def test_a_folder_without_a_set_and_an_empty_list_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="sets there: none"):
        read_region_set(tmp_path)
    with pytest.raises(SpecError, match="no line"):
        read_region_set(make(tmp_path, ""))
