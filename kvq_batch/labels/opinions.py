"""Import of mean opinions of people from a list into the tables, with their scale.

One bad row rejects the whole list (`files`). Importing a data set again replaces its opinions. Opinions that are no
longer listed are marked as withdrawn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.identity import new_run_id
from kvq_batch.labels.files import Labels, Scale, read_labels
from kvq_batch.storage.options import StorageOptions, display_uri
from kvq_batch.tables.delta import Tables, check_format_version
from kvq_batch.tables.lease import Holder, hold
from kvq_batch.tables.row_types import OpinionRow
from kvq_batch.tables.schemas import make_rows
from kvq_batch.tables.session import Session
from kvq_batch.tables.writer import Writer

Better = Literal["high", "low"]

_SPREADS = ("std", "sd", "mos_std", "spread")
_COUNTS = ("num_opinions", "num_ratings", "votes", "n")


@dataclass(frozen=True, slots=True)
class OpinionList:
    """A list to import: its address, the scale of its opinions, and which end of the scale is good."""

    source: str
    scale: Scale
    better: Better = "high"
    dataset: str | None = None
    id_column: str | None = None
    label_column: str | None = None


@dataclass(frozen=True, slots=True)
class Imported:
    """Result of an import; `num_in_catalog` is the number of videos that are in the tables' catalog."""

    dataset: str
    num_opinions: int
    num_withdrawn: int
    num_in_catalog: int
    summary: str


def import_opinions(uri: str, storage: StorageOptions, wanted: OpinionList) -> Imported:
    """Write the opinions of a list to the tables at `uri`, which are created if they do not exist.

    Raises:
        SpecError: the list has an error, or a run is active on the tables.
        FatalError: the tables cannot be written.
    """
    labels = read_labels(wanted.source, storage, wanted.id_column, wanted.label_column, wanted.scale)
    dataset = wanted.dataset or labels.dataset
    rows = _rows(labels, dataset, wanted)
    run_id = f"import-{new_run_id()}"
    check_format_version(uri, storage)
    with hold(uri, storage, Holder.this_process(run_id, "labels import")):
        tables = Tables.create(uri, storage)
        with Session(tables) as session:
            quoted = dataset.replace("'", "''")
            known = session.sql(f"SELECT * FROM opinions WHERE dataset = '{quoted}'").to_pylist()
            listed = set(session.sql("SELECT video_id FROM catalog")["video_id"].to_pylist())
        gone = [row for row in known if row["video_id"] not in set(labels.names)]
        withdrawn = [_without_commit(row) | {"is_withdrawn": True, "imported_at": datetime.now(UTC)} for row in gone]
        Writer(tables, run_id).write_opinions(make_rows("opinions", [*rows, *withdrawn]))
    return Imported(dataset, len(rows), len(withdrawn), len(listed & set(labels.names)), labels.summary)


def _rows(labels: Labels, dataset: str, wanted: OpinionList) -> list[OpinionRow]:
    shown, scale = display_uri(wanted.source), wanted.scale
    low, high = (scale.low, scale.high) if wanted.better == "high" else (scale.high, scale.low)
    scenes, uris = labels.column("scene_id"), labels.column("uri")
    spreads, counts = (_first(labels, names) for names in (_SPREADS, _COUNTS))
    now = datetime.now(UTC)
    rows: list[OpinionRow] = []
    for index, (name, value) in enumerate(zip(labels.names, labels.values.tolist(), strict=True)):
        at = f"{shown}: {name!r}"
        count = _number(at, "number of opinions", counts, index)
        rows.append(
            {
                "dataset": dataset,
                "video_id": name,
                "scene_id": (scenes[index] if scenes else None) or name,
                "uri": uris[index] if uris else None,
                "opinion": value,
                "scale_low": low,
                "scale_high": high,
                "mos": 100 * (value - low) / (high - low),
                "spread": _number(at, "spread", spreads, index),
                "num_opinions": None if count is None else int(count),
                "is_withdrawn": False,
                "imported_at": now,
            }
        )
    return rows


def _first(labels: Labels, names: Sequence[str]) -> Sequence[str | None] | None:
    return next((column for name in names if (column := labels.column(name)) is not None), None)


def _number(where: str, what: str, column: Sequence[str | None] | None, index: int) -> float | None:
    text = column[index] if column else None
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError as error:
        raise SpecError(f"{where}: its {what} {text!r} is not a number") from error
    if not math.isfinite(number) or number < 0:
        raise SpecError(f"{where}: its {what} {text} is not a finite number of at least 0")
    return number


def _without_commit(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("run_id", "commit_seq")}
