"""A compaction dies at each of its steps: every answer stays the same, and the next one does the rest."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from kvq_batch.tables import compaction
from kvq_batch.tables.compaction import compact
from kvq_batch.tables.delta import LoggedFile, Tables
from tests.support.crashes import die, upload_half
from tests.support.trial import Trial, check, check_tables_whole, names_of

STEPS = ("inside the upload", "before the commit", "after the commit")


@pytest.mark.faults
def test_a_compaction_dies_at_each_step_and_no_answer_changes(make_trial: Callable[..., Trial]) -> None:
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
    # Every answer and every sum, and one part of each partition.
    assert check(trial) == 0
    assert len(Tables.open(trial.job.tables).parts("scores")) == 1


def doomed(step: str) -> None:
    """From now on the merge of the scores dies at `step`."""
    real_store, real_replace = compaction.store, compaction.replace

    def store(tables: Tables, name: str, part: Any) -> None:
        if name == "scores" and step == "inside the upload":
            file_system, root = tables.part_filesystem(name)
            upload_half(file_system, f"{root}/{part.path}", part.content.to_pybytes())
            die()
        real_store(tables, name, part)

    def replace(tables: Tables, name: str, group: list[LoggedFile], part: Any) -> None:
        if name == "scores" and step == "before the commit":
            die()
        real_replace(tables, name, group, part)
        if name == "scores" and step == "after the commit":
            die()

    compaction.store, compaction.replace = store, replace  # type: ignore[assignment]


if __name__ == "__main__":
    doomed(sys.argv[2])
    for _ in compact(Tables.open(sys.argv[1])):
        pass
