"""Commit history of a table, read from its log.

The history of delta-rs lacks the number of data files and rows of a commit, and the run that made it; the log has them.
Commits older than the retention of the log are not listed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kvq_batch.domain.errors import SpecError
from kvq_batch.storage.options import display_uri, join, translate_storage_errors
from kvq_batch.tables.compaction import COMMIT_INFO_KEY
from kvq_batch.tables.database import translate_read_errors
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.schemas import COUNTER_BITS
from kvq_batch.tables.transactions import commit_seq_of


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """One commit of one table.

    `operation` is append, claim (a writer starts), compact, or the name that delta-rs gives it. `epoch` and `counter`
    are None if no kvq-batch writer made the commit. `rows_removed` is None if the log has no number.
    """

    table: str
    version: int
    committed_at: datetime
    operation: str
    files_added: int
    rows_added: int
    files_removed: int
    rows_removed: int | None
    epoch: int | None
    counter: int | None
    run_id: str | None


def read_history(tables: Tables, name: str, limit: int) -> list[CommitRecord]:
    """Return the last `limit` commits of a table, newest first. Raises: SpecError if the log is out of reach."""
    newest = tables.delta(name).version()
    with translate_storage_errors(join(tables.uri, name)):
        file_system, root = tables.table_filesystem(name)
        paths = {f"{root}/_delta_log/{v:020d}.json": v for v in range(newest, max(-1, newest - limit), -1)}
        texts = file_system.cat(list(paths), on_error="omit")
    runs = _runs_by_epoch(tables)
    found = {path.removeprefix("file://"): text for path, text in texts.items()}
    return [_commit(tables, name, version, found[path], runs) for path, version in paths.items() if path in found]


def _commit(tables: Tables, name: str, version: int, text: bytes, runs: Mapping[int, str]) -> CommitRecord:
    try:
        actions = [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise SpecError(
            f"{display_uri(tables.uri)}: the log entry of version {version} of table {name!r} is not JSON: {error}"
        ) from error
    info: Mapping[str, Any] = next((action["commitInfo"] for action in actions if "commitInfo" in action), {})
    added = [action["add"] for action in actions if "add" in action]
    num_removed = sum("remove" in action for action in actions)
    transactions = (commit_seq_of(a["txn"]["appId"], a["txn"]["version"]) for a in actions if "txn" in a)
    seqs = [commit_seq for commit_seq in transactions if commit_seq is not None]
    compaction = info.get(COMMIT_INFO_KEY) or {}
    epoch = seqs[0] >> COUNTER_BITS if seqs else None
    return CommitRecord(
        table=name,
        version=version,
        committed_at=datetime.fromtimestamp(info.get("timestamp", 0) / 1000, UTC),
        operation=_operation(info, compaction, bool(added), bool(seqs)),
        files_added=len(added),
        rows_added=sum(json.loads(add.get("stats") or "{}").get("numRecords", 0) for add in added),
        files_removed=num_removed,
        rows_removed=compaction.get("rows") if num_removed else 0,
        epoch=epoch,
        counter=seqs[0] & ((1 << COUNTER_BITS) - 1) if seqs else None,
        run_id=None if epoch is None else runs.get(epoch),
    )


def _operation(info: Mapping[str, Any], compaction: Mapping[str, Any], has_files: bool, is_ours: bool) -> str:
    if compaction:
        return str(compaction["operation"])
    if is_ours:
        return "append" if has_files else "claim"
    return str(info.get("operation", "unknown")).lower()


def _runs_by_epoch(tables: Tables) -> dict[int, str]:
    """Return {epoch: run id}. The first row of a run has its epoch; its last one may be written by a later run."""
    with translate_read_errors(tables.uri):
        rows = tables.dataset("runs").to_table(columns=["run_id", "commit_seq"])
    first = rows.group_by("run_id").aggregate([("commit_seq", "min")]).to_pylist()
    return {row["commit_seq_min"] >> COUNTER_BITS: row["run_id"] for row in first}
