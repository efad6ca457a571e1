"""What was done to a table, commit by commit, read from its log.

delta-rs' own history leaves out how many parts and rows a commit added, and which run made it; both stand in the log.
Commits that the log's retention has taken away are not told of. This module changes nothing.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kvq_batch.domain.errors import SpecError
from kvq_batch.storage.options import display_uri, join, translate_storage_errors
from kvq_batch.tables.compaction import MARK
from kvq_batch.tables.database import reading
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.schemas import COUNTER_BITS
from kvq_batch.tables.transactions import commit_seq_of


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit of one table. `operation` is append, claim (a writer begins), compact, or what delta-rs calls it.

    `epoch` and `counter` are of the writer, None where no writer of ours made it; `rows_removed` is None where the log
    does not say.
    """

    table: str
    version: int
    committed_at: datetime
    operation: str
    parts_added: int
    rows_added: int
    parts_removed: int
    rows_removed: int | None
    epoch: int | None
    counter: int | None
    run_id: str | None


def read_history(tables: Tables, name: str, limit: int) -> list[Commit]:
    """The newest commits of the table `name`, newest first. Raises: SpecError where the log is out of reach."""
    newest = tables.delta(name).version()
    with translate_storage_errors(join(tables.uri, name)):
        file_system, root = tables.part_filesystem(name)
        paths = {f"{root}/_delta_log/{v:020d}.json": v for v in range(newest, max(-1, newest - limit), -1)}
        texts = file_system.cat(list(paths), on_error="omit")
    runs = _runs_by_epoch(tables)
    found = {path.removeprefix("file://"): text for path, text in texts.items()}
    return [_commit(tables, name, version, found[path], runs) for path, version in paths.items() if path in found]


def _commit(tables: Tables, name: str, version: int, text: bytes, runs: Mapping[int, str]) -> Commit:
    try:
        actions = [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        where = f"{display_uri(tables.uri)}: version {version} of table {name!r}"
        raise SpecError(f"{where} is no log entry: {error}") from error
    info: Mapping[str, Any] = next((action["commitInfo"] for action in actions if "commitInfo" in action), {})
    added = [action["add"] for action in actions if "add" in action]
    num_removed = sum("remove" in action for action in actions)
    told_seqs = (commit_seq_of(a["txn"]["appId"], a["txn"]["version"]) for a in actions if "txn" in a)
    seqs = [commit_seq for commit_seq in told_seqs if commit_seq is not None]
    told = info.get(MARK) or {}
    epoch = seqs[0] >> COUNTER_BITS if seqs else None
    return Commit(
        table=name,
        version=version,
        committed_at=datetime.fromtimestamp(info.get("timestamp", 0) / 1000, UTC),
        operation=_operation(info, told, bool(added), bool(seqs)),
        parts_added=len(added),
        rows_added=sum(json.loads(add.get("stats") or "{}").get("numRecords", 0) for add in added),
        parts_removed=num_removed,
        rows_removed=told.get("rows") if num_removed else 0,
        epoch=epoch,
        counter=seqs[0] & ((1 << COUNTER_BITS) - 1) if seqs else None,
        run_id=None if epoch is None else runs.get(epoch),
    )


def _operation(info: Mapping[str, Any], told: Mapping[str, Any], has_parts: bool, is_ours: bool) -> str:
    if told:
        return str(told["operation"])
    if is_ours:
        return "append" if has_parts else "claim"
    return str(info.get("operation", "unknown")).lower()


def _runs_by_epoch(tables: Tables) -> dict[int, str]:
    """{epoch: run id}: a run writes itself down with its first commits; a last row may be written by its successor."""
    with reading(tables.uri):
        rows = tables.dataset("runs").to_table(columns=["run_id", "commit_seq"])
    first = rows.group_by("run_id").aggregate([("commit_seq", "min")]).to_pylist()
    return {row["commit_seq_min"] >> COUNTER_BITS: row["run_id"] for row in first}
