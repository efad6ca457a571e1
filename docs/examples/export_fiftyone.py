"""Show scores, moments and maps of a catalog in the app of FiftyOne.

    pip install fiftyone
    python docs/examples/export_fiftyone.py quality/ --model kvq-lite --limit 200

Each video becomes a sample with its score and the columns of your catalog. Its moments become temporal detections, and
the maps of each moment heat maps of its frames. The videos must be files of this machine.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

import kvq_batch
from kvq_batch.analysis import overview
from kvq_batch.analysis.questions import quote_literal
from kvq_batch.analysis.video_maps import Moment, VideoMaps, load_videos
from kvq_batch.tables.session import Session


@dataclass
class Record:
    """One video for FiftyOne. Frame numbers start at 1; heat maps are {name: (map, low, high)} by frame number."""

    filepath: str
    fields: dict[str, Any]
    moments: list[dict[str, Any]] = field(default_factory=list)
    heat_maps: dict[int, dict[str, tuple[NDArray[Any], float, float]]] = field(default_factory=dict)


def iter_records(session: Session, model_name: str | None, limit: int) -> Iterator[Record]:
    """Yield the records of the `limit` worst videos of a model, worst first."""
    model = overview.select_model(overview.list_scored_models(session), model_name)
    if model is None:
        return
    rows = {row["video_id"]: row for row in overview.find_worst_videos(session, model, limit=limit)}
    found = session.sql(
        f"SELECT video_id, frame_rate FROM scores_latest WHERE model_id = {quote_literal(model.model_id)}"
    ).to_pylist()
    frame_rates = {row["video_id"]: row["frame_rate"] for row in found}
    for video in load_videos(session, list(rows), model.model_id):
        yield make_record(video, rows[video.video_id]["catalog"], frame_rates.get(video.video_id))


def make_record(video: VideoMaps, catalog: dict[str, Any], frame_rate: float | None) -> Record:
    """Return the record of one video; without a frame rate it has no moments."""
    unit = video.scale.unit.replace(" ", "_")
    record = Record(video.uri, {"video_id": video.video_id, unit: video.value, "model_id": video.model_id})
    # A column of the catalog must not replace a field of FiftyOne, such as `tags`.
    record.fields |= {f"catalog_{name}": value for name, value in catalog.items()}
    if frame_rate is None:
        return record
    for moment in video.moments:
        support = _support(moment, frame_rate)
        if support is None:
            continue
        is_worst = moment is video.worst()
        record.moments.append({"label": "worst" if is_worst else "moment", "support": support, unit: moment.value})
        maps: dict[str, tuple[NDArray[Any], float, float]] = {}
        if moment.texture is not None:
            maps["quality"] = (moment.texture.astype(np.float32), video.scale.low, video.scale.high)
        if moment.saliency is not None:
            maps["saliency"] = (np.minimum(moment.saliency, 4), 0.0, 4.0)
        record.heat_maps |= {number: maps for number in range(support[0], support[1] + 1) if maps}
    return record


def _support(moment: Moment, frame_rate: float) -> list[int] | None:
    """Return the first and the last frame of a moment, from 1, or None without times."""
    if moment.from_s is None or moment.until_s is None:
        return None
    first = round(moment.from_s * frame_rate) + 1
    return [first, max(first, round(moment.until_s * frame_rate))]


def main() -> None:
    import fiftyone as fo

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables")
    parser.add_argument("--model")
    parser.add_argument("--limit", type=int, default=100)
    options = parser.parse_args()
    samples = []
    with kvq_batch.open(options.tables) as results:
        for record in iter_records(results.session, options.model, options.limit):
            sample = fo.Sample(filepath=record.filepath, **record.fields)
            sample["moments"] = fo.TemporalDetections(
                detections=[fo.TemporalDetection(**moment) for moment in record.moments]
            )
            for number, maps in record.heat_maps.items():
                for name, (values, low, high) in maps.items():
                    sample.frames[number][name] = fo.Heatmap(map=values, range=[low, high])
            samples.append(sample)
    dataset = fo.Dataset()
    dataset.add_samples(samples)
    fo.launch_app(dataset).wait()


if __name__ == "__main__":
    main()
