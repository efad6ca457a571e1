"""A compaction that crashes at any step changes no query result, and the next one completes it."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from kvq_batch.tables import compaction
from kvq_batch.tables.compaction import compact
from kvq_batch.tables.delta import LoggedFile, Tables
from tests.support.crashes import crash, upload_half
from tests.support.trial import Trial, check, check_tables_whole, names_of

STEPS = ("inside the upload", "before the commit", "after the commit")


@pytest.mark.faults
def test_crashed_compaction_changes_no_answer(make_trial: Callable[..., Trial]) -> None:
    trial = make_trial(names_of(24, "page"), seconds=0.02)
    trial.finish()

    def answers() -> list[dict[str, Any]]:
        return trial.ask("SELECT * FROM scores_latest ORDER BY video_id") + trial.ask(
            "SELECT * FROM regions ORDER BY ALL"
        )

    before = answers()
    for step in STEPS:
        command = [sys.executable, "-m", "tests.faults.test_compaction", trial.job.tables, step]
        died = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
        assert (died.returncode, died.stdout[:4]) == (-9, "dies"), died.stderr[-1000:]
        assert answers() == before
        check_tables_whole(trial)
    assert [*compact(Tables.open(trial.job.tables))]
    assert answers() == before
    # One data file per partition is left.
    assert check(trial) == 0
    assert len(Tables.open(trial.job.tables).data_files("scores")) == 1


def crash_at(step: str) -> None:
    """Make the compaction of the scores crash at `step`."""
    real_store, real_replace = compaction.store_file, compaction.replace_files

    def store(tables: Tables, name: str, file: Any) -> None:
        if name == "scores" and step == "inside the upload":
            file_system, root = tables.table_filesystem(name)
            upload_half(file_system, f"{root}/{file.path}", file.content.to_pybytes())
            crash()
        real_store(tables, name, file)

    def replace(tables: Tables, name: str, group: list[LoggedFile], file: Any) -> None:
        if name == "scores" and step == "before the commit":
            crash()
        real_replace(tables, name, group, file)
        if name == "scores" and step == "after the commit":
            crash()

    compaction.store_file, compaction.replace_files = store, replace  # type: ignore[assignment]


if __name__ == "__main__":
    crash_at(sys.argv[2])
    for _ in compact(Tables.open(sys.argv[1])):
        pass
