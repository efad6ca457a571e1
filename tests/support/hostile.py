"""Tables in which every text that others choose holds markup and a script: ids, columns, names, messages."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa

from kvq_batch.domain.identity import ModelRef
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.schemas import make_rows
from kvq_batch.tables.writer import Writer
from tests.support.results import make_batch, make_catalog, make_failures, make_model, make_run

ATTACK = "<script>alert(document.title)</script>"
ATTACKS = (
    ATTACK,
    "\"'><img src=x onerror=alert(1)>",
    "{{ 7 * 7 }}</style><svg onload=alert(2)>",
    "javascript:alert(3)",
)
VIDEOS = tuple(f"{attack} {number}.mp4" for number, attack in enumerate(ATTACKS * 2))
FAILED = f"failed {ATTACK}.mp4"
HOSTILE = ModelRef(f"kvq {ATTACK}", "kvq@1-0123456789ab", "f" * 64)


def make_hostile(uri: str) -> Writer:
    """Make tables of one run over VIDEOS, which do not exist, and FAILED."""
    writer = Writer(Tables.create(uri), "run-1")
    run = {"job": f"job {ATTACK}", "message": f"stopped {ATTACK}", "state": "stopped"}
    writer.write_run(changed("runs", make_run([HOSTILE], root="/nowhere"), run))
    card = {"summary": f"summary {ATTACK}", "training_data": ATTACK, "licence": ATTACK}
    calibrated = make_model(HOSTILE, f"people {ATTACK}", (90.0, 5.0, 0.3, 0.2), is_default=True)
    writer.write_models(pa.concat_tables([changed("models", make_model(HOSTILE), card), calibrated]))
    videos = [*VIDEOS, FAILED]
    columns: dict[str, Any] = {
        "title": [f"{ATTACKS[i % len(ATTACKS)]} title {i}" for i in range(len(videos))],
        "country": [ATTACKS[i % 2] for i in range(len(videos))],
        f"note {ATTACK}": [f"{ATTACK} {i % 3}" for i in range(len(videos))],
        "catalog": ["nightly"] * len(videos),
        "in_catalog": [True] * len(videos),
    }
    catalog = make_catalog(videos, **columns)
    paths = pa.array([f"/nowhere/{ATTACK}/{video}" for video in videos], pa.string())
    writer.write_catalog(catalog.set_column(catalog.column_names.index("uri"), "uri", paths))
    writer.commit(make_batch(VIDEOS, HOSTILE))
    failures = make_failures([FAILED], HOSTILE)
    texts = {"message": f"message {ATTACK}", "error": f"error {ATTACK}"}
    writer.commit(replace(failures, failures=changed("failures", failures.failures, texts)))
    return writer


def changed(table: str, rows: pa.Table | None, values: Mapping[str, Any]) -> pa.Table:
    """Return the rows with other values in some columns."""
    assert rows is not None
    found = [row | values for row in rows.to_pylist(maps_as_pydicts="lossy")]
    return make_rows(table, [{k: v for k, v in row.items() if k not in ("run_id", "commit_seq")} for row in found])
