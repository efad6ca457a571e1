"""What a label job would make, worked out before anything is touched: sources x segments x recipes, minus what stands.

Recipes are drawn here, so that a plan names every version. No source is opened and nothing is written.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kvq_batch.config.labels import SYNTHETIC, LabelJob, Source
from kvq_batch.config.segment import Segment
from kvq_batch.domain.errors import SpecError
from kvq_batch.labeling.label_index import read_label_index
from kvq_batch.labeling.recipes import draw_pre_degraded, draw_recipes, segment_seed
from kvq_batch.labeling.references import SOURCES, is_still, read_sources
from kvq_batch.labeling.scenes import ALL_SCENES
from kvq_batch.labeling.stream import ALGORITHM, RENDITIONS, label_id
from kvq_batch.media.ffmpeg import require_filter
from kvq_batch.storage.options import StorageOptions, check_reachable
from kvq_batch.tables.delta import Tables

Tell = Callable[[str], None]

_ALL = "all"


@dataclass(frozen=True, slots=True)
class LabelPlan:
    """A label job with everything that a run needs to start.

    `versions` is a pa.Table of VERSIONS, one row for each label to make, those of one segment together.
    """

    job: LabelJob
    renditions: pa.Table
    num_sources: int
    num_segments: int
    num_standing: int
    num_given_up: int
    known: Mapping[str, int] = field(default_factory=dict)
    """How far the tables had come (`Tables.progress`), as the plan knows it; nothing for tables that were not there."""


def plan_labels(job: LabelJob, tell: Tell = lambda text: None) -> LabelPlan:
    """The plan of `job`; `tell` hears what is being done.

    Raises:
        SpecError: the job, its sources or its tables cannot be used; nothing was changed.
        FatalError: the ffmpeg here cannot measure.
    """
    storage = StorageOptions.from_spec(job.storage)
    check_reachable(job.tables, storage)
    require_filter("libvmaf")
    tell("reading the sources")
    sources = _sources(job, storage)
    tell(f"drawing versions of {sources.num_rows} sources")
    rows, num_segments = [], 0
    for source in sources.to_pylist():
        for segment in _segments(job, source):
            num_segments += 1
            rows += _renditions(job, source, segment)
    model_mask = pa.Table.from_pylist(rows, RENDITIONS)
    tell("asking the tables what is made already")
    tables = Tables.open_if_any(job.tables, storage)
    standing = read_label_index(tables)
    is_made = pc.is_in(model_mask["label_id"], value_set=standing.made)
    is_given_up = pc.and_not(pc.is_in(model_mask["label_id"], value_set=standing.given_up), is_made)
    open_versions = model_mask.filter(pc.invert(pc.or_(is_made, is_given_up)))
    numbers = pa.array(np.arange(open_versions.num_rows))
    return LabelPlan(
        job,
        open_versions.set_column(0, RENDITIONS.field("item"), numbers),
        num_sources=sources.num_rows,
        num_segments=num_segments,
        num_standing=pc.sum(is_made).as_py() or 0,
        num_given_up=pc.sum(is_given_up).as_py() or 0,
        known=tables.progress() if tables else {},
    )


def plan_labels_again(old: LabelPlan, tell: Tell) -> LabelPlan:
    """The plan of the same job now that its tables have changed. Raises: as `plan_labels`."""
    tell("the tables have changed since the plan was made: planning again")
    return plan_labels(old.job, tell)


def label_blocks(renditions: pa.Table, most: int) -> list[pa.Table]:
    """`versions` cut into blocks of one segment each, and at most `most` versions."""
    if not renditions.num_rows:
        return []
    keys = list(zip(renditions["video_id"].to_pylist(), renditions["segment"].to_pylist(), strict=True))
    blocks, start = [], 0
    for row in range(1, len(keys) + 1):
        if row == len(keys) or keys[row] != keys[start] or row - start == most:
            blocks.append(renditions.slice(start, row - start).combine_chunks())
            start = row
    return blocks


def _sources(job: LabelJob, storage: StorageOptions) -> pa.Table:
    tables = [
        pa.Table.from_pylist(list(_scenes(spec)), SOURCES) if spec.is_synthetic else read_sources(spec, storage)
        for spec in job.sources
    ]
    sources = pa.concat_tables(tables)
    ids = sources["video_id"].value_counts()
    twice = ids.filter(pc.greater(ids.field("counts"), 1)).field("values").to_pylist()
    if twice:
        raise SpecError(
            f"{len(twice)} source ids stand more than once, first {twice[0]!r}: give one of the sources an id_prefix"
        )
    return sources


def _scenes(spec: Source) -> Iterator[dict[str, Any]]:
    """Rows of SOURCES for procedural scenes: their ids say which scene, and of which seed."""
    name = spec.source.removeprefix(SYNTHETIC)
    if name != _ALL and name not in ALL_SCENES:
        raise SpecError(f"there is no scene {name!r}; there are {_ALL}, {', '.join(ALL_SCENES)}")
    for scene in ALL_SCENES if name == _ALL else (name,):
        for seed in range(spec.count):
            video_id = f"{spec.id_prefix}{scene}-{seed:04d}"
            yield {
                "video_id": video_id,
                "scene_id": video_id,
                "uri": f"{SYNTHETIC}{scene}/{seed}",
                "content_id": f"scene:{ALGORITHM}",
                "size_bytes": None,
            }


def _segments(job: LabelJob, source: dict[str, Any]) -> Iterator[Segment]:
    spec = job.segments
    # Framings are of frames that are given; a camera over a still, or a drawing, has its size as it is asked for.
    is_given = not (source["uri"].startswith(SYNTHETIC) or is_still(source["uri"]))
    for framing in spec.framings if is_given else ("native",):
        seed = segment_seed(job.seed, source["video_id"], framing)
        for number in range(spec.per_source):
            yield Segment(
                number,
                spec.per_source,
                spec.num_frames,
                spec.height_px,
                spec.width_px,
                framing,
                seed,
                draw_pre_degraded(spec.pre_degraded, seed, number),
            )


def _renditions(job: LabelJob, source: dict[str, Any], segment: Segment) -> list[dict[str, Any]]:
    return [
        {
            **source,
            "item": 0,
            "attempt": 1,
            "model_mask": 1,
            "label_id": label_id(source["video_id"], source["content_id"], segment, recipe),
            "segment": segment.segment_id,
            "recipe": recipe.to_json(),
        }
        for recipe in draw_recipes(job.renditions, segment)
    ]
