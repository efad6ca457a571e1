"""Scoring without a job file: for `kvq-batch score` and `kvq_batch.score`."""

import csv
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from kvq_batch.config.job import Job, slug
from kvq_batch.config.load import make_job
from kvq_batch.domain.errors import SpecError
from kvq_batch.engine.score_run import run_job
from kvq_batch.planning.job_plan import plan_job
from kvq_batch.tables.questions import list_outcomes
from kvq_batch.tables.session import open_session


def adhoc_job(
    source: str,
    tables: str,
    model: str,
    weights: str | None = None,
    device: str = "cpu",
    endpoint_url: str | None = None,
    region: str | None = None,
) -> Job:
    """Return a job with default settings that uses the cores of this machine; any failed video makes it exit with 3.

    Raises:
        SpecError: a value is invalid.
    """
    # A decoder for each core, although models use the same cores: 48 short clips on 2 cores took 6.1 instead of 9.4 s
    # with `luma-sharpness`, 9.1 instead of 8.9 s with `kvq-lite` (measured).
    values: dict[str, Any] = {
        "name": slug(f"score-{Path(source.rstrip('/')).name}"),
        "tables": tables,
        "catalog": {"source": source},
        "models": [{"name": model, "weights": weights, "device": device, "workers": gpu_share(device)}],
        "decode": {"workers": {"max": os.cpu_count() or 1}},
        "run": {"max_failure_share": 0.0},
        "storage": {"endpoint_url": endpoint_url, "region": region},
    }
    return make_job(values, origin="kvq-batch score")


def gpu_share(device: str) -> dict[str, float]:
    """Return the GPUs of a scoring worker on `device`: a whole card, or none."""
    return {"num_gpus": 1.0} if device == "cuda" else {}


@contextmanager
def tables_or_temporary(tables: str | None) -> Iterator[str]:
    """Yield `tables`; without them, yield a folder for tables that is deleted at the end."""
    if tables is not None:
        yield tables
        return
    with tempfile.TemporaryDirectory(prefix="kvq-batch-score-") as folder:
        yield str(Path(folder) / "tables")


def score_to_table(source: str | Path | Sequence[str | Path], model: str, weights: str | None, device: str) -> pa.Table:
    """Implement `kvq_batch.score`; see there."""
    with tables_or_temporary(None) as tables:
        if isinstance(source, str | Path):
            address = str(source)
        else:
            address = str(Path(tables).with_name("videos.csv"))
            _write_catalog(Path(address), source)
        run_job(plan_job(adhoc_job(address, tables, model, weights, device)))
        with open_session(tables) as session:
            return list_outcomes(session)


def _write_catalog(file: Path, sources: Sequence[str | Path]) -> None:
    """Write a catalog of the videos, each with its address as id; local paths are made absolute."""
    if not sources:
        raise SpecError("No video given: expected at least one path.")
    rows = [(str(source), str(source) if "://" in str(source) else str(Path(source).absolute())) for source in sources]
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("video_id", "uri"), *rows])
