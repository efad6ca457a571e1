"""Reads the references of a label job: videos and stills of a catalog file or a listing, with their content ids.

References that are procedural scenes are not files; `labeling/planning.py` lists them.
"""

import pyarrow as pa

from kvq_batch.catalog.content_ids import resolve_content_ids
from kvq_batch.catalog.reader import read_catalog
from kvq_batch.config.job import Catalog
from kvq_batch.domain.column_types import TEXT, convert
from kvq_batch.storage.listing import VIDEO_EXTENSIONS
from kvq_batch.storage.options import StorageOptions

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
