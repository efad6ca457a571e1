"""Retry requests (`failures retry`): rows in `failures` that end the quarantine of permanent failures.

No failure is deleted: the request is stored beside them, with who made it and when. The planner reads it.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from kvq_batch.domain.identity import new_run_id
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.lease import Holder, hold
from kvq_batch.tables.questions import select_failures
from kvq_batch.tables.row_types import FailureRow
from kvq_batch.tables.schemas import RETRY_REQUESTED, make_rows
from kvq_batch.tables.session import Session
from kvq_batch.tables.writer import Batch, Writer


def request_retries(
    uri: str,
    storage: StorageOptions,
    requested_by: str,
    error: str | None = None,
    stage: str | None = None,
    where: str | None = None,
) -> int:
    """Ask the next run to retry unresolved permanent failures that match all filters. Return their number.

    Raises:
        SpecError: there are no tables, `where` is invalid, or another run is using the tables.
        FatalError: the tables cannot be written.
    """
    tables = Tables.open(uri, storage)
    run_id = f"retry-{new_run_id()}"
    with hold(uri, storage, Holder.this_process(run_id, "failures retry")):
        tables.refresh()
        with Session(tables) as session:
            selected = select_failures("unresolved_failures", error, stage, where)
            rows = session.sql(f"SELECT * FROM ({selected}) WHERE permanent").to_pylist()
        if rows:
            requests = [_request(row, requested_by) for row in rows]
            Writer(tables, run_id).commit(Batch(failures=make_rows("failures", requests)))
    return len(rows)


def _request(row: Mapping[str, Any], requested_by: str) -> FailureRow:
    return {
        "video_id": row["video_id"],
        "content_id": row["content_id"],
        "model_id": row["model_id"],
        "fingerprint": row["fingerprint"],
        "uri": row["uri"],
        "model_name": row["model_name"],
        "attempt": 0,
        "stage": row["stage"],
        "error": RETRY_REQUESTED,
        "message": f"{requested_by} requested a retry after {row['error']} in run {row['run_id']}",
        "final": False,
        "permanent": False,
        "failed_at": datetime.now(UTC),
    }
