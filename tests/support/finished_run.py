"""Tables of one stopped run with rows in every result table, and rows of `runs`."""

import pyarrow as pa

from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.schemas import make_rows
from kvq_batch.tables.writer import Writer
from tests.support.results import KVQ, LUMA, make_batch, make_catalog, make_failures, make_model, make_run

VIDEOS = ("a", "b", "c")


def run_row(state: str, scored: int, failed: int, planned: int, remaining: int = 0) -> pa.Table:
    row = make_run([KVQ, LUMA], state=state).to_pylist(maps_as_pydicts="lossy")[0]
    counts = {"num_scored": scored, "num_failed": failed, "num_planned": planned, "num_remaining": remaining}
    return make_rows("runs", [{k: v for k, v in row.items() if k not in ("run_id", "commit_seq")} | counts])


def fill(uri: str, options: StorageOptions | None = None) -> Writer:
    """Write a run of seven tasks: four scored in two commits by two models, two failed, one remaining."""
    tables = Tables.create(uri, options)
    writer = Writer(tables, "run-1")
    writer.write_models(pa.concat_tables([make_model(), make_model(LUMA)]))
    catalog = make_catalog([*VIDEOS, "x"]).append_column("catalog", pa.array(["nightly"] * 4))
    writer.write_catalog(catalog.append_column("in_catalog", pa.array([True] * 4)))
    writer.write_run(run_row("running", 0, 0, 7, 7))
    writer.commit(make_batch(VIDEOS, KVQ, num_clips=2))
    writer.commit(make_batch(["a"], LUMA))
    writer.commit(make_failures(["x"], KVQ, final=False))
    writer.commit(make_failures(["x"], KVQ))
    writer.commit(make_failures(["x"], LUMA))
    writer.write_run(run_row("stopped", 4, 2, 7, 1))
    return writer
