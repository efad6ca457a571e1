"""Label runs on a real local Ray: each rendition ends with one label or one final failure."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kvq_batch.config.labels import LabelJob
from kvq_batch.config.recipe import Recipe, Segment
from kvq_batch.engine.run import RunOptions
from kvq_batch.engine.run_recorder import RunSummary
from kvq_batch.engine.work_tracker import SilentObserver, WorkTracker
from kvq_batch.labeling.labeler import Labeler, slot_means
from kvq_batch.labeling.planning import plan_labels
from kvq_batch.labeling.run import run_labels
from kvq_batch.labeling.scenes import make_scene
from kvq_batch.labeling.segments import STILL_RATE, segment_of_scene
from kvq_batch.media.planes import decode_lossless
from kvq_batch.media.synthesis import ClipShape
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.check import check_tables
from kvq_batch.tables.delta import Tables
from tests.engine.test_run import ask
from tests.labeling.test_planning import label_job
from tests.support.label_faults import DyingLabelWorker
from tests.support.s3 import S3Location

FEW = {"ladders": {"blur": [2], "h264": [40]}, "combinations": [], "regions": 1, "mixes": 1}
ENDS = """
WITH ends AS (
    SELECT label_id, 'label' AS kind FROM labels WHERE run_id = '{run_id}'
    UNION ALL SELECT fingerprint, 'failure' FROM failures WHERE final AND run_id = '{run_id}'
)
SELECT count(*) AS ends, count(DISTINCT label_id) AS renditions, count(*) FILTER (kind = 'label') AS labels FROM ends
"""


def run(job: LabelJob, observer: SilentObserver | None = None, **options: Any) -> RunSummary:
    return run_labels(plan_labels(job), observer, RunOptions(**options))


def check_counts(job: LabelJob, summary: RunSummary, storage: StorageOptions | None = None) -> None:
    """Check that each rendition has one label or one final failure, and that the tables are consistent."""
    (row,) = ask(job.tables, ENDS.format(run_id=summary.run_id), storage)
    assert row["ends"] == row["renditions"] == summary.num_planned - summary.num_remaining
    assert row["labels"] == summary.num_scored
    findings = check_tables(Tables.open(job.tables, storage))
    assert [finding for finding in findings if finding.severity != "info"] == []


def test_videos_stills_and_scenes_are_labelled(videos: Path, tmp_path: Path) -> None:
    for path in sorted(videos.iterdir())[2:]:
        path.unlink()
    Image.fromarray(make_scene("page", 1, ClipShape(128, 96, 25, 1))[0]).save(videos / "still.png")
    (videos / "page.mp4").write_bytes(b"<html></html>")
    (videos / "small.png").write_bytes(b"no picture")
    references = ({"source": str(videos)}, {"source": "synthetic:glow"})
    job = label_job(
        tmp_path / "tables", *references, renditions=FEW, keep=str(tmp_path / "kept"), run={"max_attempts": 2}
    )
    summary = run(job)
    check_counts(job, summary)
    assert (summary.state, summary.num_videos, summary.num_planned) == ("finished", 6, 30)
    assert (summary.num_scored, summary.num_failed) == (20, 10)
    failures = ask(job.tables, "SELECT DISTINCT video_id, stage, error, permanent FROM failures ORDER BY video_id")
    assert [tuple(row.values()) for row in failures] == [
        ("page.mp4", "probe", "not_a_video", True),
        ("small.png", "probe", "not_an_image", True),
    ]
    rows = ask(job.tables, "SELECT * FROM labels")
    assert {row["kind"] for row in rows} == {"clean", "single", "region", "mix"}
    for row in rows:
        assert (row["num_slots"], row["num_rows"], row["num_cols"]) == (2, 2, 3)
        assert len(row["cells"]) == 12
        assert len(row["vmaf_slots"]) == 2
        assert row["group_id"].startswith(f"{row['scene_id']}/")
        assert (row["vmaf"] > 95) == (row["kind"] == "clean")
    again = run(job)
    assert (again.num_planned, again.state) == (0, "finished")
    assert plan_labels(job).num_quarantined == 10
    _check_label(next(row for row in rows if row["video_id"] == "glow-0000" and row["kind"] == "region"))


def _check_label(row: dict[str, Any]) -> None:
    """Check that the row equals a label made in this process, and that the kept file is the rendition."""
    made = Labeler(segment_of_scene("glow", 0, Segment.from_json(row["segment"]))).label(
        Recipe.from_json(row["recipe"])
    )
    assert row["vmaf"] == made.fidelity.vmaf.mean()
    assert np.array_equal(np.float32(row["vmaf_slots"]), slot_means(made.fidelity.vmaf))
    assert np.array_equal(np.float32(row["cells"]), made.cells.ravel())
    # Too small for VMAF v1.
    assert row["vmaf_v1"] is row["vmaf_v1_slots"] is row["cells_v1"] is row["vmaf_v1_model"] is None
    kept = decode_lossless(Path(row["rendition_uri"]).read_bytes(), row["height_px"], row["width_px"], STILL_RATE)
    assert np.array_equal(kept.data, made.rendition.data)


@pytest.mark.faults
def test_reference_that_kills_its_worker_fails_alone(videos: Path, tmp_path: Path) -> None:
    first, second, third, *rest = sorted(videos.iterdir())
    for path in rest:
        path.unlink()
    first.rename(videos / "kill-always.mp4")
    second.rename(videos / "kill-once.mp4")
    third.rename(videos / "fine.mp4")
    renditions = FEW | {"regions": 0, "mixes": 0}
    job = label_job(tmp_path / "tables", {"source": str(videos)}, renditions=renditions, run={"max_attempts": 2})
    summary = run(job, worker=DyingLabelWorker)
    check_counts(job, summary)
    assert (summary.num_planned, summary.num_scored, summary.num_failed) == (9, 6, 3)
    (failed,) = ask(job.tables, "SELECT DISTINCT video_id, error, permanent FROM failures WHERE final")
    assert tuple(failed.values()) == ("kill-always.mp4", "worker_died", False)
    # The failure is not permanent: the next run retries it.
    assert plan_labels(job).renditions.num_rows == 3


class StopsEarly(SilentObserver):
    """Requests a stop after the first label."""

    def __init__(self) -> None:
        self.stop = threading.Event()

    def progressed(self, tracker: WorkTracker) -> None:
        self.stop.set()


@pytest.mark.faults
def test_stopped_run_commits_and_next_run_resumes(tmp_path: Path) -> None:
    job = label_job(tmp_path / "tables", {"source": "synthetic:leaves", "count": 8}, renditions=FEW)
    observer = StopsEarly()
    first = run(job, observer, stop=observer.stop)
    assert first.state == "stopped"
    assert 0 < first.num_scored < first.num_planned == 40
    check_counts(job, first)
    second = run(job)
    assert (second.state, second.num_planned) == ("finished", 40 - first.num_scored)
    assert ask(job.tables, "SELECT count(*) AS n, count(DISTINCT label_id) AS ids FROM labels") == [
        {"n": 40, "ids": 40}
    ]
    states = ask(job.tables, "SELECT state, num_scored FROM runs ORDER BY commit_seq")
    assert [row["num_scored"] for row in states] == [first.num_scored, second.num_scored]


def test_label_run_on_s3(clips: Sequence[Path], s3_prefix: S3Location) -> None:
    s3_prefix.put("sources/a.mp4", clips[0].read_bytes())
    storage = {"endpoint_url": s3_prefix.options.endpoint_url, "region": s3_prefix.options.region}
    source = {"source": f"{s3_prefix.uri}/sources"}
    job = label_job(f"{s3_prefix.uri}/tables", source, renditions=FEW, keep=f"{s3_prefix.uri}/kept", storage=storage)
    summary = run(job)
    check_counts(job, summary, s3_prefix.options)
    assert summary.num_scored == 5
    (row, *_) = ask(job.tables, "SELECT rendition_uri, content_id FROM labels", s3_prefix.options)
    assert row["rendition_uri"].startswith(f"{s3_prefix.uri}/kept/")
    assert row["content_id"].startswith("etag:")
