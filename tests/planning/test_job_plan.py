"""Planning every shipped job with local videos, tables and weights; without starting Ray or decoding a video."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvq_batch.config.job import Catalog, Job, Storage
from kvq_batch.config.load import load_job, make_job
from kvq_batch.domain.errors import SpecError
from kvq_batch.media import decoders
from kvq_batch.planning.job_plan import plan_job

ROOT = Path(__file__).parents[2]
# Label jobs and trainings have other formats.
JOBS = sorted(path for path in (ROOT / "jobs").glob("*.toml") if path.stem not in ("labels", "train"))
VIDEOS = [f"clip{number}.mp4" for number in range(3)]


def nightly_catalog(folder: Path) -> Path:
    rows = [f"{video},{video},crc:{video},published,{9 - number}" for number, video in enumerate(VIDEOS)]
    rows.append("draft,draft.mp4,crc:d,draft,99")
    return written(folder / "catalog.csv", "asset_id,location,checksum,status,views", rows)


def backfill_catalog(folder: Path) -> Path:
    rows = [f"{video}-{start},{video},{start},{start + 4}" for video in VIDEOS for start in (0, 4)]
    return written(folder / "shots.csv", "shot_id,video,shot_start,shot_end", rows)


def regions_catalog(folder: Path) -> Path:
    return folder / "**" / "*.mp4"


def written(path: Path, header: str, rows: list[str]) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


LOCAL: dict[str, tuple[Callable[[Path], Path], int]] = {
    "nightly": (nightly_catalog, len(VIDEOS)),
    "backfill": (backfill_catalog, 2 * len(VIDEOS)),
    "regions": (regions_catalog, len(VIDEOS)),
}
"""For each job: a function that creates its catalog, and the number of selected rows."""


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Files without video content, because planning must not open them."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for video in VIDEOS:
        (folder / video).write_bytes(b"never decoded")
    return folder


def local(job: Job, videos: Path, tables: Path) -> Job:
    """Return the job with local files; nothing else is changed."""
    source = LOCAL[job.name][0](videos)
    catalog = Catalog(**(job.catalog.model_dump(exclude={"source"}) | {"source": str(source)}))
    models = tuple(m.model_copy(update={"weights": "untrained"}) if m.weights else m for m in job.models)
    changes: dict[str, Any] = {
        "tables": str(tables),
        "catalog": catalog,
        "models": models,
        "storage": Storage(),
    }
    return job.model_copy(update=changes)


def test_every_shipped_job_is_tested() -> None:
    assert {path.stem for path in JOBS} == set(LOCAL)


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_shipped_job_can_be_planned(path: Path, videos: Path, tmp_path: Path) -> None:
    job = local(load_job(path), videos, tmp_path / "tables")
    planned = plan_job(job)
    count = LOCAL[job.name][1]
    assert planned.plan.by_reason["new"] == planned.plan.tasks.num_rows == count * len(job.models)
    assert planned.plan.tasks["uri"].to_pylist()[0].endswith(VIDEOS[0])
    assert not (tmp_path / "tables").exists()
    # All models of a job are scored from one decode, so they must agree on the frames.
    assert len(planned.models.requests) == 1


def test_catalog_columns_of_a_job_reach_the_plan(videos: Path, tmp_path: Path) -> None:
    backfill = plan_job(local(load_job(ROOT / "jobs" / "backfill.toml"), videos, tmp_path / "tables"))
    rows = backfill.plan.tasks.to_pylist()
    assert [(row["start_s"], row["end_s"]) for row in rows[:2]] == [(0.0, 4.0), (4.0, 8.0)]
    assert all(row["video_id"].startswith("archive/") for row in rows)
    assert len({row["content_id"] for row in rows}) == len(rows)
    nightly = plan_job(local(load_job(ROOT / "jobs" / "nightly.toml"), videos, tmp_path / "tables"))
    assert {row["content_id"] for row in nightly.plan.tasks.to_pylist()} == {f"crc:{video}" for video in VIDEOS}


def test_jobs_have_different_fingerprints(videos: Path, tmp_path: Path) -> None:
    """Sampling, precision and HDR policy are part of the fingerprint."""
    planned = [plan_job(local(load_job(path), videos, tmp_path / "tables")) for path in JOBS]
    fingerprints = [plan.models.models[0].ref.fingerprint for plan in planned]
    assert len(set(fingerprints)) == len(JOBS)


def test_planning_starts_no_ray_and_loads_no_torch(videos: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from kvq_batch.planning.job_plan import plan_job\n"
        "from kvq_batch.config.load import make_job\n"
        "job = make_job({'name': 'j', 'tables': sys.argv[2], 'catalog': {'source': sys.argv[1]},"
        " 'models': [{'name': 'kvq-tiny', 'weights': 'untrained'}]}, 'test')\n"
        "print(plan_job(job).plan.tasks.num_rows, sorted({'torch', 'ray', 'av', 'decord'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", code, str(videos), str(tmp_path / "tables")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == f"{len(VIDEOS)} []"


def test_missing_decoder_is_rejected_with_its_extra(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders, "find_spec", lambda name: None)
    values = {"name": "j", "tables": str(tmp_path / "t"), "catalog": {"source": str(videos)}}
    job = make_job(values | {"models": [{"name": "luma-sharpness"}], "decode": {"decoder": "decord"}}, "test")
    with pytest.raises(SpecError, match=r'not installed.* pip install "kvq-batch\[decord\]", or set decoder = "auto"'):
        plan_job(job)


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        (",video_id,uri", "0,1,a.mp4", r"column 1 of 3 has no name"),
        ("video_id,uri,run_id,catalog_run_id", "1,a.mp4,2,3", r"'catalog_run_id' is not unique: 'run_id' is stored as"),
    ],
)
def test_plan_rejects_what_a_run_cannot_store(tmp_path: Path, header: str, row: str, message: str) -> None:
    source = written(tmp_path / "c.csv", header, [row])
    values = {"name": "j", "tables": str(tmp_path / "tables"), "catalog": {"source": str(source)}}
    with pytest.raises(SpecError, match=message):
        plan_job(make_job({**values, "models": [{"name": "luma-sharpness"}]}, "test"))
    assert not (tmp_path / "tables").exists()
