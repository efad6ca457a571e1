"""What VMAF v1 and CAMBI would change as labels: measured on kept renditions, by kind of degradation.

    python -m research.lite.vmaf_models TABLES --sample 600 --seed S

TABLES are those of a label job with `keep`. A sample of renditions of whole frames is measured again against the clean
rendition of the same frames. Prints Markdown: means of VMAF v0.6.1, v1 (viewing distance of three picture heights) and
CAMBI for each kind, and the rank correlation of v0.6.1 with v1.
"""

import argparse
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tables import print_table
from kvq_batch.config.recipe import Recipe
from kvq_batch.labeling.labeler import VMAF_MODEL, libvmaf_metrics
from kvq_batch.media.ffmpeg import run_ffmpeg
from kvq_batch.media.planes import Planes, from_raw
from kvq_batch.metrics.ranks import Ranking, spearman
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.delta import Tables

NEW_MODEL = "vmaf_v1.0.16_3d0h"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables")
    parser.add_argument("--sample", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tables = Tables.open_if_any(options.tables, StorageOptions())
    if tables is None:
        parser.error(f"{options.tables} has no tables")
    columns = ["video_id", "segment", "recipe", "kind", "vmaf", "rendition_uri", "height_px", "width_px"]
    rows = tables.dataset("labels").to_table(columns=columns).to_pylist()
    clean = {(row["video_id"], row["segment"]): row for row in rows if row["kind"] == "clean"}
    degraded = [
        row for row in rows if row["kind"] in ("single", "chain") and (row["video_id"], row["segment"]) in clean
    ]
    chosen = np.random.default_rng(options.seed).permutation(len(degraded))[: options.sample]
    measured = [_measured(degraded[i], clean[degraded[i]["video_id"], degraded[i]["segment"]]) for i in chosen]
    kinds = sorted({row["kind"] for row in measured})
    print_table([_summary(kind, [row for row in measured if row["kind"] == kind]) for kind in kinds])
    print_table([_summary("(all)", measured)])


def _measured(row: dict[str, Any], clean: dict[str, Any]) -> dict[str, Any]:
    found, _ = libvmaf_metrics(_planes(clean), _planes(row), {"old": VMAF_MODEL, "new": NEW_MODEL}, {"cambi": None})
    recipe = Recipe.from_json(row["recipe"])
    kind = recipe.steps[0].name if len(recipe.steps) == 1 else "chain"
    return {"kind": kind, "scene": row["video_id"], **{name: float(values.mean()) for name, values in found.items()}}


def _planes(row: dict[str, Any]) -> Planes:
    raw = ["-i", str(Path(row["rendition_uri"].removeprefix("file://"))), "-f", "rawvideo", "-pix_fmt", "yuv420p", "-"]

    return from_raw(run_ffmpeg(raw), row["height_px"], row["width_px"], Fraction(25))


def _summary(kind: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    old, new, cambi = (np.array([row[name] for row in rows]) for name in ("old", "new", "cambi"))
    srcc = spearman(Ranking(old), Ranking(new), np.ones((1, len(rows))))[0]
    return {
        "degradation": kind,
        "renditions": len(rows),
        "v0.6.1": round(float(old.mean()), 1),
        "v1": round(float(new.mean()), 1),
        "largest difference": round(float(np.abs(new - old).max()), 1),
        "CAMBI": round(float(cambi.mean()), 2),
        "SRCC": round(float(srcc), 3),
    }


if __name__ == "__main__":
    main()
