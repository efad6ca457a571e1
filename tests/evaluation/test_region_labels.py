"""Label files of cells: valid lines are parsed, invalid ones are rejected with file and number."""

from pathlib import Path

import numpy as np
import pytest

from kvq_batch.domain.errors import SpecError
from kvq_batch.evaluation.regions import read_region_set

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


def test_cells_are_read_in_any_order(tmp_path: Path) -> None:
    folder = make(tmp_path, GOOD, "", "1 of 2.png  (0,2):3,(0,0):1 , (0, 1) : 2,", clean="1 of 2.png, c.png\n")
    regions = read_region_set(folder)
    assert regions.name == "SET"
    first, second = regions.items
    np.testing.assert_array_equal(first.cells, [[1.5, 2], [3, -4]])
    np.testing.assert_array_equal(second.cells, [[1, 2, 3]])
    assert (first.path, first.clean) == (folder / "SET" / "0.png", None)
    assert (second.path, second.clean) == (folder / "SET" / "1 of 2.png", folder / "SET" / "c.png")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 of 2.png 3 4 5", "is not `<file>"),
        ("1 of 2.png", "is not `<file>"),
        ("none.png (0,0):1", "no file .*none.png. .* must match exactly"),
        ("0.png (0,0):1", "'0.png' is already in line 1"),
        ("c.png (0,0):1, (0,1):good", r"cell \(0, 1\): 'good' is not a number"),
        ("c.png (0,0):nan", "is not finite"),
        ("c.png (0,0):1, (0,0):2", r"cell \(0, 0\) is listed twice"),
        ("c.png (0,0):1, (1,1):2", r"cell \(0, 1\) of 2 x 2 is missing"),
        ("c.png (0,0):1; (0,1):2", r"'1;' is not a number|is not `\(row,column\):label`"),
        ("c.png (0,0):1, (0,1)", r"'\(0,1\)' is not `\(row,column\):label`"),
    ],
)
def test_invalid_line_is_rejected_with_its_number(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(SpecError, match=rf"SET\.txt: line 3.*(?:{message})"):
        read_region_set(make(tmp_path, GOOD, "", line))


@pytest.mark.parametrize(
    ("clean", "message"),
    [
        ("0.png\n", r"clean\.txt: line 1 is not `<file>, <clean file>`"),
        ("0.png, no.png\n", r"clean\.txt: line 1: no file"),
        ("0.png, c.png\n0.png, c.png\n", r"line 2: '0.png' is listed twice"),
        ("c.png, 0.png\n", r"'c.png' has no labels in SET\.txt"),
    ],
)
def test_list_of_clean_files_is_validated(tmp_path: Path, clean: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_region_set(make(tmp_path, GOOD, clean=clean))


def test_set_is_found_by_folder_or_name(tmp_path: Path) -> None:
    folder = make(tmp_path, GOOD)
    (folder / "labels" / "other.txt").write_text("a.mp4, -1, -1, 3\n")
    assert read_region_set(folder).name == "SET"
    make(tmp_path, GOOD, name="MORE")
    with pytest.raises(SpecError, match="holds several sets, MORE, SET"):
        read_region_set(folder)
    assert read_region_set(folder, "MORE").name == "MORE"
    with pytest.raises(SpecError, match=r"no labels/NOPE\.txt .*Sets: MORE, SET"):
        read_region_set(folder, "NOPE")


def test_missing_set_and_empty_list_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="Sets: none"):
        read_region_set(tmp_path)
    with pytest.raises(SpecError, match="is empty"):
        read_region_set(make(tmp_path, ""))
