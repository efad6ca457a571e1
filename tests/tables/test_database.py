"""DuckDB for internal queries spills to its own folder."""

import tempfile
from pathlib import Path

import pytest

from kvq_batch.tables.database import connect


def test_spill_files_are_not_in_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    with connect() as connection:
        connection.execute("SET memory_limit = '30MB'")
        connection.execute("SET threads = 1")
        query = "SELECT count(*) FROM (SELECT i FROM range(3000000) t(i) ORDER BY hash(i), i DESC OFFSET 1)"
        assert connection.execute(query).fetchall() == [(2_999_999,)]
        (folder,) = connection.execute("SELECT current_setting('temp_directory')").fetchall()[0]
        assert Path(folder).parent == tmp_path / "scratch"
        assert Path(folder).stat().st_mode & 0o777 == 0o700
    assert list((tmp_path / "scratch").iterdir()) == []
    assert not (tmp_path / ".tmp").exists()
