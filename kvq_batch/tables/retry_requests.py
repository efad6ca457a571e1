"""Somebody asks that failures for good are tried again: rows in `failures` that end the quarantine of their identity.

Nothing is taken back: the failures stay where they are, and who asked, and when, stands beside them. What a row like
that means to a plan is the planner's; this module tries nothing.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from kvq_batch.domain.identity import new_run_id
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.lease import Holder, hold
from kvq_batch.tables.questions import select_failures
from kvq_batch.tables.schemas import RETRY_REQUESTED, make_rows
from kvq_batch.tables.session import Session
from kvq_batch.tables.writer import Batch, Writer

_IDENTITY = ("video_id", "uri", "content_id", "model_id", "model_name", "fingerprint", "stage")


def request_retries(
    uri: str,
    storage: StorageOptions,
    asked_by: str,
    error: str | None = None,
    stage: str | None = None,
    where: str | None = None,
) -> int:
    """How many standing failures for good, narrowed as said, the next run tries again.

    Raises:
        SpecError: there are no tables, the condition is none, or a run is at work.
        FatalError: the tables cannot be written.
    """
    tables = Tables.open(uri, storage)
    run_id = f"retry-{new_run_id()}"
    with hold(uri, storage, Holder.this_process(run_id, "failures --retry")):
        tables.refresh()
        with Session(tables) as session:
            wanted = select_failures("unresolved_failures", error, stage, where)
            chosen = session.sql(f"SELECT * FROM ({wanted}) WHERE permanent").to_pylist()
        if chosen:
            Writer(tables, run_id).commit(
                Batch(failures=make_rows("failures", [_request(row, asked_by) for row in chosen]))
            )
    return len(chosen)


def _request(row: Mapping[str, Any], asked_by: str) -> dict[str, Any]:
    return {
        **{name: row[name] for name in _IDENTITY},
        "attempt": 0,
        "error": RETRY_REQUESTED,
        "message": f"{asked_by} asked for another try after {row['error']} of run {row['run_id']}",
        "final": False,
        "permanent": False,
        "failed_at": datetime.now(UTC),
    }
