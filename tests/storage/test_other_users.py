"""Several users of one machine share a scratch folder and the system's temporary folder."""

import os
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from kvq_batch.domain.errors import FetchError
from kvq_batch.domain.identity import UNKNOWN_CONTENT
from kvq_batch.storage.fetch import Fetcher, remove_stale_folders
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.sandbox import Sandbox

OTHER_UID = 54321
URI = "memory://kvq-users/a.mp4"

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user")


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder like /tmp: everybody may write, and only the owner may delete."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def video() -> Iterator[None]:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/kvq-users/a.mp4", b"video")
    yield
    memory.rm("/kvq-users", recursive=True)


def as_other_user(action: Callable[[], bool]) -> bool:
    """Return what `action` returns in a child process of another user."""
    child = os.fork()
    if child == 0:
        status = 2
        try:
            os.setgroups([])
            os.setgid(OTHER_UID)
            os.setuid(OTHER_UID)
            status = 0 if action() else 1
        finally:
            # pytest would continue in this process.
            traceback.print_exc()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def fetches(scratch: Path) -> bool:
    with Fetcher(StorageOptions(), scratch, 10**6).fetch(URI, UNKNOWN_CONTENT) as video:
        return video.path.read_bytes() == b"video" and video.path.parents[1].stat().st_mode & 0o777 == 0o700


def test_second_user_can_fetch(shared: Path) -> None:
    with Fetcher(StorageOptions(), shared, 10**6).fetch(URI, UNKNOWN_CONTENT):
        assert as_other_user(lambda: fetches(shared))
        assert as_other_user(lambda: remove_stale_folders(shared) == 0)
    assert fetches(shared)


def test_folder_of_another_user_is_not_used(shared: Path) -> None:
    (shared / f"kvq-batch-fetch-{OTHER_UID}").mkdir(mode=0o777)

    def is_rejected() -> bool:
        with pytest.raises(FetchError, match="belongs to another user"):
            fetches(shared)
        return True

    assert as_other_user(is_rejected)


def test_second_user_can_spill(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(shared))

    def spills() -> bool:
        with Sandbox() as sandbox:
            sandbox.lock()
            return len(list(shared.iterdir())) == 2 and sandbox.query("SELECT 1 AS x").num_rows == 1

    with Sandbox():
        assert as_other_user(spills)
    assert list(shared.iterdir()) == []
