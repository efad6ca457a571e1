"""Result tables over real videos, made without Ray, for tests of `report` and of commands that read tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from kvq_batch.catalog.content_ids import resolve_content_ids
from kvq_batch.catalog.reader import read_catalog
from kvq_batch.catalog.stored_rows import catalog_changes
from kvq_batch.config.job import Catalog
from kvq_batch.domain.identity import ModelRef
from kvq_batch.media.synthesis import ClipShape, Degradation, write_demo_clips
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.schemas import make_rows
from kvq_batch.tables.writer import Batch, Writer
from tests.support.results import KVQ, LUMA, make_batch, make_failures, make_model, make_run

SHAPE = ClipShape(width_px=160, height_px=96, num_frames=24)
VIDEO = "landscape/none-0.mp4"
BROKEN = "landscape/blur-1.mp4"
PLAIN = "landscape/noise-1.mp4"
"""A video with a score and without maps."""


@dataclass(frozen=True, slots=True)
class Scored:
    """The tables, their videos, and the writer that made them."""

    tables: str
    videos: Path
    writer: Writer


def make_scored(folder: Path, num_clips: int = 2) -> Scored:
    """Make tables with `VIDEO` scored by KVQ with maps, `PLAIN` by a model without maps, and `BROKEN` failed."""
    degradations = (Degradation("none", 0), Degradation("blur", 1), Degradation("noise", 1))
    write_demo_clips(folder / "videos", 1, SHAPE, degradations)
    listed = resolve_content_ids(
        read_catalog(Catalog(source=str(folder / "videos")), StorageOptions()), StorageOptions()
    )
    countries = pa.array(["CH"] * listed.num_rows)
    contents = dict(zip(listed["video_id"].to_pylist(), listed["content_id"].to_pylist(), strict=True))
    tables = Tables.create(str(folder / "tables"))
    writer = Writer(tables, "run-1")
    writer.write_run(make_run([KVQ, LUMA], root=str(folder / "videos"), state="finished"))
    writer.write_models(pa.concat_tables([make_model(KVQ), make_model(LUMA)]))
    writer.write_catalog(catalog_changes(tables, listed.append_column("country", countries), "nightly"))
    writer.commit(make_batch([VIDEO], KVQ, contents[VIDEO], num_clips=num_clips))
    writer.commit(without_maps([PLAIN], LUMA, contents[PLAIN]))
    writer.commit(make_failures([BROKEN], KVQ, contents[BROKEN], permanent=False))
    return Scored(tables.uri, folder / "videos", writer)


def without_maps(videos: Sequence[str], model: ModelRef, content: str) -> Batch:
    """Return scores of a handcrafted model without maps."""
    whole = make_batch(videos, model, content)
    rows = [row | {"model_origin": "handcrafted"} for row in whole.scores.to_pylist(maps_as_pydicts="lossy")]
    rows = [{name: value for name, value in row.items() if name not in ("run_id", "commit_seq")} for row in rows]
    return Batch(None, whole.clips, None, make_rows("scores", rows))
