"""The public API of the package, and what importing it loads."""

import os
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

import kvq_batch
from kvq_batch.domain.errors import SpecError
from kvq_batch.tables.delta import Tables

ROOT = Path(__file__).parents[1]


def test_version_matches_pyproject() -> None:
    assert kvq_batch.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_open_returns_a_session(tmp_path: Path) -> None:
    Tables.create(str(tmp_path / "tables"))
    with kvq_batch.open(str(tmp_path / "tables")) as tables:
        assert tables.sql("SELECT count(*) AS n FROM scores_latest").to_pylist() == [{"n": 0}]


def test_open_rejects_missing_tables(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="there are no tables here"):
        kvq_batch.open(str(tmp_path))


def test_score_returns_a_row_per_video(videos: Path) -> None:
    (videos / "page.mp4").write_bytes(b"<html></html>")
    folder = kvq_batch.score(videos, model="luma-sharpness").to_pylist()
    assert len(folder) == 7
    assert {row["video_id"]: row["error"] for row in folder if row["error"]} == {"page.mp4": "not_a_video"}
    (one,) = kvq_batch.score(str(videos / "none-0.mp4"), model="luma-sharpness").to_pylist()
    assert one["raw_score"] == {row["video_id"]: row["raw_score"] for row in folder}["none-0.mp4"]
    paths = [videos / "blur-1.mp4", videos / "none-0.mp4"]
    two = kvq_batch.score(paths, model="luma-sharpness").to_pylist()
    assert [row["video_id"] for row in two] == [str(path) for path in paths]
    with pytest.raises(SpecError, match="No video given"):
        kvq_batch.score([])


def test_import_loads_no_other_package() -> None:
    code = (
        "import sys; known = {*sys.stdlib_module_names, '__main__'}; import kvq_batch; "
        "print({module.split('.')[0] for module in sys.modules} - known)"
    )
    out = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "{'kvq_batch'}"


def test_idle_openmp_threads_sleep() -> None:
    (library,) = Path(find_spec("torch").submodule_search_locations[0]).glob("lib/libgomp*")  # type: ignore[union-attr,index]
    program = "import ctypes, sys, kvq_batch; ctypes.CDLL(sys.argv[1])"
    environment = {**os.environ, "OMP_DISPLAY_ENV": "TRUE"}
    environment.pop("OMP_WAIT_POLICY", None)
    shown = subprocess.run(
        [sys.executable, "-c", program, library], check=True, capture_output=True, text=True, env=environment
    )
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in shown.stderr
