"""kvq-batch: perceptual quality of every video of a catalog, and where in the frame it is lost.

This module is for notebooks and programs: score videos, and query stored results. Large runs are started from the
command line. Importing it loads nothing else, because workers and `--help` import it too.

    import kvq_batch

    scores = kvq_batch.score("clip.mp4")
    print(scores["mos"][0])

    with kvq_batch.open("s3://bucket/quality") as tables:
        worst = tables.sql("SELECT uri, mos FROM scores_latest WHERE mos < $limit", {"limit": 40}).df()
        maps = tables.maps("holiday.mp4")
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pyarrow as pa

    from kvq_batch.notebook.results import Results

__all__ = ["__version__", "open", "score"]

# Idle threads of torch's OpenMP sleep instead of spinning, because decoders and models share the cores: next to other
# work, four clips of `kvq-lite` on two threads took 31 core-seconds with spinning threads, 3.5 with sleeping ones, and
# 3.1 on one thread (measured). OpenMP reads this when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Not read from the installed distribution: workers may import this package from a copy of its files. A test compares it
# with pyproject.toml.
__version__ = "0.1.0"


def open(
    uri: str,
    endpoint_url: str | None = None,
    region: str | None = None,
    memory_limit: str = "4GB",
    timeout_s: float | None = 600,
) -> "Results":
    """Open the tables below `uri` (a folder or s3:// prefix), read-only.

    `sql(text, parameters)` returns an answer with `arrow()`, `df()` and `pl()`; `register(name, table)` adds a table of
    yours; `maps`, `timeline` and `picture` show one video. All show the tables as they are now. Close it, or use it in
    a `with` block. `endpoint_url` and `region` are for stores other than AWS; keys come from the AWS credential chain.
    A query fails with a SpecError if it takes longer than `timeout_s` (None: no limit), or if its work or its result
    needs more memory than `memory_limit`.

    Raises:
        SpecError: there are no tables below `uri`, they are out of reach or have another format version, or a limit is
            invalid.
    """
    from kvq_batch.notebook.results import Results
    from kvq_batch.storage.options import StorageOptions
    from kvq_batch.tables.sandbox import QueryLimits
    from kvq_batch.tables.session import open_session

    return Results(open_session(uri, StorageOptions(endpoint_url, region), QueryLimits(memory_limit, timeout_s)))


def score(
    source: "str | Path | Sequence[str | Path]",
    model: str = "kvq-lite",
    weights: str | None = None,
    device: str = "cpu",
) -> "pa.Table":
    """Score videos on this machine and return one row per video; nothing is kept.

    `source` is a video, folder, prefix, glob or catalog file, or a list of videos. Columns: `video_id`, `mos` (null if
    the model has no calibration), `raw_score`, `model_id`, `model_origin`, and `error` and `message` of a video that
    cannot be scored. To keep scores and maps, use `kvq-batch score SOURCE --tables FOLDER`.

    Raises:
        SpecError: the source or the model cannot be used.
        FatalError: the run ended early, for example because many videos in a row failed with the same error.
    """
    from kvq_batch.engine.score_run import score_to_table

    return score_to_table(source, model, weights, device)
