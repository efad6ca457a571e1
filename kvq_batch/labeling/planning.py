"""Plans a label job: references x segments x recipes, minus the labels that exist and the permanent failures.

References are videos and stills of a catalog file or a listing, or procedural scenes. Recipes are drawn here, so that
a plan lists every rendition: single steps, chains, regions and mixes, the same for the same job, reference and segment.
Only the references' content ids are read; none is opened, and nothing is written.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kvq_batch.catalog.content_ids import resolve_content_ids
from kvq_batch.catalog.reader import read_catalog
from kvq_batch.config.job import Catalog
from kvq_batch.config.labels import SYNTHETIC, LabelJob, Reference, Renditions, parse_chain
from kvq_batch.config.recipe import Chain, Patch, Recipe, Segment, draw_cells
from kvq_batch.domain.column_types import TEXT, convert
from kvq_batch.domain.errors import SpecError
from kvq_batch.labeling.scenes import ALL_SCENES
from kvq_batch.labeling.stream import ALGORITHM, RENDITIONS, label_id
from kvq_batch.media.ffmpeg import require_filter
from kvq_batch.media.planes import cell_grid
from kvq_batch.storage.listing import VIDEO_EXTENSIONS
from kvq_batch.storage.options import StorageOptions, check_reachable
from kvq_batch.tables.database import connect, translate_read_errors
from kvq_batch.tables.delta import Tables

STILL_EXTENSIONS = frozenset(["bmp", "jpeg", "jpg", "png", "tif", "tiff", "webp"])

REFERENCES = pa.schema(
    [
        ("video_id", pa.string()),
        ("scene_id", pa.string()),
        ("uri", pa.string()),
        ("content_id", pa.string()),
        ("size_bytes", pa.int64()),
    ]
)


def read_references(spec: Catalog, options: StorageOptions) -> pa.Table:
    """Return the references with the schema REFERENCES.

    The catalog column `scene_id` says which of them show the same scene; without it each is its own scene.

    Raises:
        SpecError: as `read_catalog` and `resolve_content_ids`.
    """
    catalog = resolve_content_ids(read_catalog(spec, options, VIDEO_EXTENSIONS | STILL_EXTENSIONS), options)
    scenes = catalog["scene_id"] if "scene_id" in catalog.column_names else catalog["video_id"]
    return (
        catalog.select([n for n in REFERENCES.names if n != "scene_id"])
        .append_column("scene_id", convert(scenes, TEXT))
        .select(REFERENCES.names)
    )


def is_still(uri: str) -> bool:
    """Return whether the URI is that of a picture, by its extension."""
    return uri.partition("?")[0].rpartition(".")[2].lower() in STILL_EXTENSIONS


_REGION_ON_A_VERSION = 0.3
"""Share of the degraded regions whose frame is degraded, too."""

_MOST_RECTANGLES = 3


def draw_recipes(renditions: Renditions, segment: Segment) -> list[Recipe]:
    """Return distinct recipes: the clean one, those of the whole frame, then regions and mixes.

    All have the same seed, so that a mix is made of the same renditions that are labelled on their own.
    """
    rng, seed = np.random.default_rng([segment.seed, segment.number]), segment.seed
    chains = tuple(filter(segment.can_show, renditions.chains))
    whole = list(chains)
    if renditions.per_segment is not None and renditions.per_segment < len(chains):
        drawn = np.sort(rng.choice(len(chains), renditions.per_segment, replace=False))
        whole = [chains[index] for index in drawn]
    grid = cell_grid(segment.height_px, segment.width_px)
    recipes = [Recipe((), (), seed)] * renditions.clean + [Recipe(steps, (), seed) for steps in whole]
    recipes += [_region(whole, grid, rng, seed) for _ in range(renditions.regions)]
    recipes += [_mix(whole, grid, rng, seed) for _ in range(renditions.mixes)]
    return list(dict.fromkeys(recipes))


def segment_seed(job_seed: int, video_id: str, framing: str) -> int:
    """Return the seed of the segments of one reference, independent of that of any other."""
    digest = hashlib.sha256(f"{job_seed}:{framing}:{video_id}".encode()).digest()
    return int.from_bytes(digest[:6], "little")


def draw_pre_degraded(pre_degraded: Sequence[Sequence[str]], seed: int, number: int) -> Chain:
    """Return the pre-degradation of segment `number`: the chains in turn, in an order drawn from `seed`."""
    if not pre_degraded:
        return ()
    order = np.random.default_rng([seed, len(pre_degraded)]).permutation(len(pre_degraded))
    return parse_chain(pre_degraded[order[number % len(pre_degraded)]])


def _region(whole: list[Chain], grid: tuple[int, int], rng: np.random.Generator, seed: int) -> Recipe:
    inside = whole[rng.integers(len(whole))]
    bases: list[Chain] = [chain for chain in whole if chain != inside]
    base: Chain = ()
    if bases and rng.random() < _REGION_ON_A_VERSION:
        base = bases[rng.integers(len(bases))]
    return Recipe(base, (Patch(draw_cells(grid, rng), inside),), seed)


def _mix(whole: list[Chain], grid: tuple[int, int], rng: np.random.Generator, seed: int) -> Recipe:
    base = whole[rng.integers(len(whole))]
    # Another rendition, or the reference if there is only one rendition.
    others: list[Chain] = [(), *(chain for chain in whole if chain != base)]
    other = others[rng.integers(len(others))]
    rectangles = [draw_cells(grid, rng) for _ in range(int(rng.integers(1, _MOST_RECTANGLES + 1)))]
    return Recipe(base, tuple(Patch(cells, other) for cells in rectangles), seed)


_LOG = logging.getLogger(__name__)

LABELS_MODEL = "labels"
"""Model name of label runs in `failures`; the fingerprint is the label id."""

_ALL = "all"

# As for scores, the newest row decides: a retry, or a request for one, ends the quarantine.
_QUARANTINED = """
SELECT fingerprint FROM failures WHERE model_name = '{model}'
GROUP BY fingerprint HAVING arg_max(final AND permanent, (commit_seq, attempt, final))
"""


@dataclass(frozen=True, slots=True)
class LabelIndex:
    """Label ids (chunked arrays of text): those that exist, and those that failed permanently."""

    current: pa.ChunkedArray
    quarantined: pa.ChunkedArray


@dataclass(frozen=True, slots=True)
class LabelPlan:
    """A label job with everything that a run needs.

    `renditions` has the schema RENDITIONS: one row for each label to make, with those of one segment in a row.
    `num_current` counts labels that exist, `num_quarantined` those that failed permanently.
    """

    job: LabelJob
    renditions: pa.Table
    num_references: int
    num_segments: int
    num_current: int
    num_quarantined: int
    known: Mapping[str, int] = field(default_factory=dict)
    """Progress of the tables when the plan was made (`Tables.progress`); empty if there were no tables."""


def plan_labels(job: LabelJob) -> LabelPlan:
    """Return the plan of `job`.

    Raises:
        SpecError: the job, its references or its tables cannot be used; nothing was changed.
        FatalError: ffmpeg on this machine has no libvmaf.
    """
    storage = StorageOptions.from_spec(job.storage)
    check_reachable(job.tables, storage)
    require_filter("libvmaf")
    _LOG.info("reading the references")
    references = _read_references(job, storage)
    _LOG.info("drawing renditions of %d references", references.num_rows)
    rows, num_segments = [], 0
    for reference in references.to_pylist():
        for segment in _segments(job, reference):
            num_segments += 1
            rows += _renditions(job, reference, segment)
    drawn = pa.Table.from_pylist(rows, RENDITIONS)
    _LOG.info("querying the tables for existing labels")
    tables = Tables.open_if_any(job.tables, storage)
    index = read_label_index(tables)
    is_current = pc.is_in(drawn["label_id"], value_set=index.current)
    is_quarantined = pc.and_not(pc.is_in(drawn["label_id"], value_set=index.quarantined), is_current)
    renditions = drawn.filter(pc.invert(pc.or_(is_current, is_quarantined)))
    numbers = pa.array(np.arange(renditions.num_rows))
    return LabelPlan(
        job,
        renditions.set_column(0, RENDITIONS.field("item"), numbers),
        num_references=references.num_rows,
        num_segments=num_segments,
        num_current=pc.sum(is_current).as_py() or 0,
        num_quarantined=pc.sum(is_quarantined).as_py() or 0,
        known=tables.progress() if tables else {},
    )


def read_label_index(tables: Tables | None) -> LabelIndex:
    """Return the label ids in the tables; empty without tables. Raises: SpecError if the tables cannot be read."""
    if tables is None:
        nothing = pa.chunked_array([], pa.string())
        return LabelIndex(nothing, nothing)
    with connect() as connection, translate_read_errors(tables.uri):
        connection.register("labels", tables.dataset("labels"))
        connection.register("failures", tables.dataset("failures"))
        current = connection.sql("SELECT DISTINCT label_id FROM labels").to_arrow_table()
        quarantined = connection.sql(_QUARANTINED.format(model=LABELS_MODEL)).to_arrow_table()
    return LabelIndex(current["label_id"], quarantined["fingerprint"])


def label_blocks(renditions: pa.Table, max_renditions: int) -> list[pa.Table]:
    """Return `renditions` in blocks of one segment and at most `max_renditions` rows each."""
    if not renditions.num_rows:
        return []
    keys = list(zip(renditions["video_id"].to_pylist(), renditions["segment"].to_pylist(), strict=True))
    blocks, start = [], 0
    for row in range(1, len(keys) + 1):
        if row == len(keys) or keys[row] != keys[start] or row - start == max_renditions:
            blocks.append(renditions.slice(start, row - start).combine_chunks())
            start = row
    return blocks


def _read_references(job: LabelJob, storage: StorageOptions) -> pa.Table:
    tables = [
        pa.Table.from_pylist(list(_scenes(spec)), REFERENCES) if spec.is_synthetic else read_references(spec, storage)
        for spec in job.references
    ]
    references = pa.concat_tables(tables)
    ids = references["video_id"].value_counts()
    duplicates = ids.filter(pc.greater(ids.field("counts"), 1)).field("values").to_pylist()
    if duplicates:
        raise SpecError(
            f"{len(duplicates)} reference ids are not unique, the first is {duplicates[0]!r}: "
            "give one of the references an id_prefix"
        )
    return references


def _scenes(spec: Reference) -> Iterator[dict[str, Any]]:
    """Yield rows of REFERENCES for procedural scenes; their ids consist of the scene and its seed."""
    name = spec.source.removeprefix(SYNTHETIC)
    if name != _ALL and name not in ALL_SCENES:
        raise SpecError(f"unknown scene {name!r}: expected one of {_ALL}, {', '.join(ALL_SCENES)}")
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


def _segments(job: LabelJob, reference: dict[str, Any]) -> Iterator[Segment]:
    spec = job.segments
    # Only videos have frames of a fixed size to be framed; motion over a still and scenes are made in the wanted size.
    is_picture = is_still(reference["uri"])
    is_video = not (reference["uri"].startswith(SYNTHETIC) or is_picture)
    for framing in spec.framings if is_video else ("native",):
        seed = segment_seed(job.seed, reference["video_id"], framing)
        for camera in spec.cameras if is_picture else ("moving",):
            for number in range(spec.per_reference):
                yield Segment(
                    number,
                    spec.per_reference,
                    spec.num_frames,
                    spec.height_px,
                    spec.width_px,
                    framing,
                    seed,
                    draw_pre_degraded(spec.pre_degraded, seed, number),
                    camera,
                )


def _renditions(job: LabelJob, reference: dict[str, Any], segment: Segment) -> list[dict[str, Any]]:
    return [
        {
            **reference,
            "item": 0,
            "attempt": 1,
            "model_mask": 1,
            "label_id": label_id(reference["video_id"], reference["content_id"], segment, recipe),
            "segment": segment.segment_id,
            "recipe": recipe.to_json(),
        }
        for recipe in draw_recipes(job.renditions, segment)
    ]
