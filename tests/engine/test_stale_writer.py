"""Objects that are replaced during a run: no score is stored under bytes that were not read."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from kvq_batch.engine.run import RunOptions
from kvq_batch.engine.score_run import run_job
from kvq_batch.planning.job_plan import plan_job
from tests.engine.test_run import ask, check_counts, job_of, run
from tests.support.faults import MisbehavingDecodeWorker
from tests.support.s3 import S3Location


def test_replaced_file_is_not_scored_under_old_content_id(videos: Path, tmp_path: Path) -> None:
    """A file is replaced before it is read (first check), or between its first and last clip (second check)."""
    whole = videos / "none-0.mp4"
    for name in ("late.mp4", "replaced.mp4"):
        shutil.copy2(whole, videos / name)
    # Several clips, decoded in several tasks: the first are already sent when the change is detected.
    job = job_of(videos, tmp_path / "tables", clips={"every_s": 0.25})
    planned = plan_job(job)
    planned_ids = dict(zip(*(planned.catalog[name].to_pylist() for name in ("video_id", "content_id")), strict=True))
    shutil.copyfile(videos / "blur-1.mp4", videos / "late.mp4")
    summary = run_job(planned, None, RunOptions(worker=MisbehavingDecodeWorker))
    check_counts(job, summary)
    assert (summary.num_scored, summary.num_failed) == (6, 2)
    failed = ask(
        job.tables, "SELECT video_id, content_id, stage, error, permanent FROM failures WHERE final ORDER BY 1"
    )
    assert [(row["video_id"], row["stage"], row["error"], row["permanent"]) for row in failed] == [
        ("late.mp4", "fetch", "content_changed", False),
        ("replaced.mp4", "fetch", "content_changed", False),
    ]
    assert all(row["content_id"] == planned_ids[row["video_id"]] for row in failed)
    assert not ask(job.tables, "SELECT * FROM clips WHERE video_id IN ('late.mp4', 'replaced.mp4')")

    # The next run scores both with their new content.
    again = plan_job(job)
    now = dict(zip(*(again.catalog[name].to_pylist() for name in ("video_id", "content_id")), strict=True))
    assert again.plan.by_reason["content changed"] == again.plan.tasks.num_rows == 2
    check_counts(job, run_job(again))
    scored = ask(job.tables, "SELECT video_id, content_id, is_stale FROM scores_latest")
    assert {row["video_id"]: row["content_id"] for row in scored} == now
    assert not any(row["is_stale"] for row in scored)
    (late, blur) = ask(job.tables, "SELECT raw_score FROM scores WHERE video_id IN ('late.mp4', 'blur-1.mp4')")
    assert late == blur


@pytest.mark.faults
def test_replaced_object_is_not_scored_under_old_etag(clips: Sequence[Path], s3_prefix: S3Location) -> None:
    for clip in clips[:2]:
        s3_prefix.put(f"videos/{clip.name}", clip.read_bytes())
    changed = clips[0].name
    storage = {"endpoint_url": s3_prefix.options.endpoint_url, "region": s3_prefix.options.region}
    job = job_of(f"{s3_prefix.uri}/videos", f"{s3_prefix.uri}/tables", storage=storage)
    planned = plan_job(job)
    s3_prefix.put(f"videos/{changed}", clips[2].read_bytes())
    summary = run_job(planned)
    check_counts(job, summary, s3_prefix.options)
    assert (summary.num_scored, summary.num_failed) == (1, 1)
    (row,) = ask(job.tables, "SELECT video_id, error, permanent FROM failures WHERE final", s3_prefix.options)
    assert row == {"video_id": changed, "error": "content_changed", "permanent": False}
    assert run(job).num_scored == 1
    current = dict(zip(*(plan_job(job).catalog[name].to_pylist() for name in ("video_id", "content_id")), strict=True))
    rows = ask(job.tables, "SELECT video_id, content_id, is_stale FROM scores_latest", s3_prefix.options)
    assert {row["video_id"]: row["content_id"] for row in rows} == current
    assert not any(row["is_stale"] for row in rows)
