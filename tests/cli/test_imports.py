"""Commands over local tables import no heavy library that they do not need, so that an answer takes a second."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.finished_run import fill

UNNEEDED = {"pandas", "aiohttp", "botocore", "s3fs", "torch", "matplotlib", "scipy", "ray", "av"}

# With its own process, as from a shell: the command reads its arguments from `sys.argv`.
_PROGRAM = """
import sys
from kvq_batch.cli.app import app
try:
    app()
finally:
    print("imported:", *{name.partition(".")[0] for name in sys.modules}, file=sys.stderr)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tables and a job for them; its catalog has two files, which no plan opens."""
    folder = tmp_path_factory.mktemp("local")
    fill(str(folder / "tables"))
    (folder / "videos").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (folder / "videos" / name).write_bytes(b"unread")
    lines = ('name = "job"', 'tables = "tables"', "[catalog]", 'source = "videos"', "[[models]]")
    (folder / "job.toml").write_text("\n".join((*lines, 'name = "luma-sharpness"\n')))
    return folder


def imported_by(folder: Path, *arguments: str) -> set[str]:
    """Run the command in `folder` and return the libraries that its process imported."""
    # With keys in the environment, botocore finds out which texts are secret.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    process = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return set(process.stderr.rpartition("imported:")[2].split())


@pytest.mark.parametrize(
    "arguments",
    [
        ("query", "tables", "SELECT video_id, raw_score FROM scores_latest"),
        ("status", "tables"),
        ("plan", "job.toml"),
        ("failures", "list", "tables"),
        ("tables", "check", "tables"),
    ],
    ids=" ".join,
)
def test_local_command_imports_no_unneeded_library(folder: Path, arguments: tuple[str, ...]) -> None:
    imported = imported_by(folder, *arguments)
    assert {"pyarrow", "kvq_batch"} <= imported
    assert not imported & UNNEEDED


@pytest.mark.parametrize("arguments", [("--help",), ("query", "--help"), ("tables", "check", "--help")], ids=" ".join)
def test_help_imports_no_data_library(folder: Path, arguments: tuple[str, ...]) -> None:
    imported = imported_by(folder, *arguments)
    assert "kvq_batch" in imported
    assert not imported & (UNNEEDED | {"pyarrow", "numpy", "duckdb", "deltalake"})


def test_pandas_can_be_imported_after_arrow_without_it() -> None:
    program = """
from kvq_batch.cli.app import import_arrow_without_pandas
import_arrow_without_pandas()
import sys
import pyarrow as pa
assert pa.table({"a": [1, 2]})["a"].to_pylist() == [1, 2]
assert "pandas" not in sys.modules
import pandas
assert list(pandas.Series([1, 2])) == [1, 2]
"""
    subprocess.run([sys.executable, "-c", program], check=True)
