"""Folders as catalogs: what is left out is reported in one line, and the rest is listed."""

import gzip
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kvq_batch.catalog.reader import read_catalog
from kvq_batch.config.job import Catalog
from kvq_batch.domain.errors import SpecError
from kvq_batch.storage.listing import LeftOut, split_glob
from kvq_batch.storage.options import StorageOptions
from tests.support.http_server import HttpServer
from tests.support.stores import Store


def listed(source: Path | str) -> list[str]:
    ids: list[str] = read_catalog(Catalog(source=str(source)), StorageOptions())["video_id"].to_pylist()
    return ids


def warning(caplog: pytest.LogCaptureFixture) -> str:
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    return record.getMessage()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.mp4").write_bytes(b"x")
    (folder / "sub" / "b.mkv").write_bytes(b"x")
    return folder


def test_links_and_special_files_are_reported(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "c.mp4").write_bytes(b"x")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "sub" / "back").symlink_to(folder)
    (folder / "gone.mp4").symlink_to(tmp_path / "nothing")
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    (folder / "link.mp4").symlink_to(tmp_path / "elsewhere" / "c.mp4")
    os.mkfifo(folder / "pipe.mp4")
    assert listed(folder) == ["a.mp4", "link.mp4", "sub/b.mkv"]
    message = warning(caplog)
    assert message.startswith(f"{folder}: 3 files; left out: ")
    for part in (
        "2 linked folders (", "sub/back", "1 broken links (gone.mp4)", "Too many levels of symbolic links (loop.mp4)",
        "1 files that are not regular files (pipe.mp4)",
    ):  # fmt: skip
        assert part in message


def test_name_that_is_not_utf8_is_reported(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "bad\udcff.mp4").write_bytes(b"x")
    (folder / "n\udce9").mkdir()
    (folder / "n\udce9" / "c.mp4").write_bytes(b"x")
    assert listed(folder) == ["a.mp4", "sub/b.mkv"]
    message = warning(caplog)
    assert r"2 files whose names are not UTF-8; rename them ('" in message
    assert r"bad\udcff.mp4" in message
    message.encode()


_AS_ANOTHER_USER = """
import logging, os, sys
sys.path[:] = eval(sys.argv[2])
logging.basicConfig(level=logging.WARNING)
import botocore.session  # needed later, when the other user may not read the folder of Python
import pyarrow.parquet
from kvq_batch.catalog.reader import read_catalog
from kvq_batch.config.job import Catalog
from kvq_batch.domain.errors import SpecError
from kvq_batch.storage.options import StorageOptions

os.geteuid() or os.seteuid(65534)
for source in (sys.argv[1], sys.argv[1] + "/locked", sys.argv[1] + "/locked/c.mp4", sys.argv[1] + "/locked/*.mp4"):
    try:
        print(read_catalog(Catalog(source=source), StorageOptions())["video_id"].to_pylist())
    except SpecError as error:
        print(error)
"""


def test_locked_folder_is_reported() -> None:
    # Root can read everything: the folder is listed by another user, who has no access to the folders of pytest.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("locked", "unreadable"):
            (folder / part).mkdir()
            (folder / part / "c.mp4").write_bytes(b"x")
        (folder / "a.mp4").write_bytes(b"x")
        folder.chmod(0o755)
        (folder / "locked").chmod(0)
        (folder / "unreadable").chmod(0o444)
        done = subprocess.run(
            [sys.executable, "-c", _AS_ANOTHER_USER, name, repr(sys.path)], capture_output=True, text=True, check=False
        )
        for part in ("locked", "unreadable"):
            (folder / part).chmod(0o755)
    assert done.returncode == 0, done.stderr
    ids, *errors = done.stdout.splitlines()
    assert ids == "['a.mp4']"
    assert "folders that cannot be read: Permission denied (locked)" in done.stderr
    assert "files that cannot be read: Permission denied (unreadable/c.mp4)" in done.stderr
    for error in errors:
        assert "check the permissions of the file and of its folders" in error
    assert len(errors) == 3
    assert "AWS" not in done.stdout


def test_other_endings_are_counted(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    names = ["a.gif", "b.GIF", "c.txt", "d", "e.mp4", ".hidden.gif", "f.jpeg"]
    for name in names:
        store.put(f"v/{name}", b"x")
    table = read_catalog(Catalog(source=f"{store.uri}/v"), store.options)
    assert table["video_id"].to_pylist() == ["e.mp4"]
    message = warning(caplog)
    assert "left out: 5 files with other endings (.gif: 2, none: 1, .jpeg: 1, .txt: 1)" in message
    assert f"{store.uri}/v/**/*.gif" in message


@pytest.mark.parametrize("ending", ["264", "265", "nut", "dv", "m2t", "qt", "QT", "mts", "divx", "rm"])
def test_endings_of_videos(ending: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / f"a.{ending}").write_bytes(b"x")
    assert listed(tmp_path) == [f"a.{ending}"]
    assert not caplog.records


def test_glob_takes_the_ending_that_it_names(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("c.gif", "sub/d.gif", "e.webp", "f.csv"):
        (folder / name).write_bytes(b"x")
    assert listed(f"{folder}/**/*.gif") == ["c.gif", "sub/d.gif"]
    assert listed(f"{folder}/*.webp") == ["e.webp"]
    assert not caplog.records
    assert listed(f"{folder}/**/*") == ["a.mp4", "sub/b.mkv"]
    assert "4 files with other endings (.gif: 2, .csv: 1, .webp: 1)" in warning(caplog)
    with pytest.raises(SpecError, match="no video files found"):
        listed(f"{folder}/*.csv")


def test_folder_without_videos_names_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "a.gif").write_bytes(b"x")
    (tmp_path / "linked").symlink_to(tmp_path)
    with pytest.raises(SpecError, match=r"left out: 1 linked folders \(linked\); 1 files with other endings"):
        listed(tmp_path)


def test_folder_of_parquet_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pq.write_table(pa.table({"video_id": ["a"], "uri": ["a.mp4"]}), tmp_path / "a.parquet")
    (tmp_path / "_SUCCESS").touch()
    assert listed(tmp_path) == ["a"]
    assert not caplog.records
    (tmp_path / "linked").symlink_to(tmp_path)
    assert listed(tmp_path) == ["a"]
    assert "1 linked folders (linked)" in warning(caplog)


def test_examples_are_few() -> None:
    left_out = LeftOut()
    assert not left_out
    for number in range(5):
        left_out.add("broken links", f"{number}")
    assert str(left_out) == "5 broken links (0, 1, 2, ...)"


def test_signed_address_of_a_catalog(http_server: HttpServer) -> None:
    http_server.files["lists/c.csv"] = b"video_id,uri\na,v/a.mp4\nb,https://h/b.mp4\n"
    source = f"{http_server.address}/lists/c.csv?X-Amz-Signature=a/b.x&part=1"
    http_server.script = [503, None]
    table = read_catalog(Catalog(source=source), StorageOptions())
    assert table["uri"].to_pylist() == [f"{http_server.address}/lists/v/a.mp4", "https://h/b.mp4"]
    http_server.files["lists/c.csv.gz"] = gzip.compress(http_server.files["lists/c.csv"])
    assert listed(f"{http_server.address}/lists/c.csv.gz?sig=x") == ["a", "b"]
    http_server.files["v/a.mp4"] = b"x"
    assert listed(f"{http_server.address}/v/a.mp4?X-Amz-Signature=x/y") == ["a.mp4"]
    assert split_glob("https://h/v/*.mp4?x=[1]").root == "https://h/v"
    assert split_glob("https://h/v/a.mp4?x=[1]").glob is None
