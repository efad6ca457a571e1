"""Result tables with known scores of many videos, and a list of labels for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kvq_batch.catalog.stored_rows import catalog_changes
from kvq_batch.domain.identity import ModelRef
from kvq_batch.metrics.ranks import Real
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.schemas import make_rows
from kvq_batch.tables.writer import Batch, Writer
from tests.support.results import KVQ, LUMA, make_batch, make_catalog, make_model, make_run

NUM, PER_REFERENCE = 60, 5
"""Number of videos, and of videos per reference."""


@dataclass(frozen=True, slots=True)
class Study:
    """The tables, the list of labels, and their contents in order of the videos."""

    tables: str
    labels: str
    writer: Writer
    videos: tuple[str, ...]
    scores: Real
    values: Real
    sources: tuple[str, ...]


def make_study(folder: Path) -> Study:
    """Make tables of NUM videos scored by KVQ (untrained), half also by LUMA, and a CSV with labels by file name."""
    generator = np.random.default_rng(7)
    sources = tuple(f"scene{i // PER_REFERENCE:02d}" for i in range(NUM))
    videos = tuple(f"{source}/v{i:03d}.mp4" for i, source in enumerate(sources))
    scores = generator.normal(size=NUM)
    values = np.round(50 + 30 * np.tanh(scores) + generator.normal(size=NUM) * 4, 2)
    tables = Tables.create(str(folder / "tables"))
    writer = Writer(tables, "run-1")
    writer.write_run(make_run([KVQ, LUMA], state="finished"))
    writer.write_models(pa.concat_tables([make_model(KVQ), make_model(LUMA)]))
    catalog = make_catalog(videos, country=pa.array(["CH", "DE"] * (NUM // 2)), number=pa.array(range(NUM)))
    writer.write_catalog(catalog_changes(tables, catalog, "nightly"))
    writer.commit(scored(videos, scores, KVQ))
    half = NUM // 2
    writer.commit(scored(videos[:half], -scores[:half], LUMA, "handcrafted"))
    lines = [f"{Path(v).name},{y},{s}" for v, y, s in zip(videos, values, sources, strict=True)]
    (folder / "study.csv").write_text("\n".join(["file,mos,scene_id", *lines]) + "\n")
    return Study(tables.uri, str(folder / "study.csv"), writer, videos, scores, values, sources)


def scored(
    videos: Sequence[str], scores: Real, model: ModelRef, origin: str = "untrained", content: str = "etag:1"
) -> Batch:
    """Return score rows with these scores, without maps."""
    made: list[dict[str, Any]] = make_batch(videos, model, content).scores.to_pylist(maps_as_pydicts="lossy")
    rows = [
        {name: value for name, value in row.items() if name not in ("run_id", "commit_seq")}
        | {"raw_score": float(score), "model_origin": origin}
        for row, score in zip(made, scores, strict=True)
    ]
    return Batch(None, None, None, make_rows("scores", rows))
