"""Scoring runs, on both executors: each task ends with one score or one final failure."""

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from kvq_batch.config.job import ExecutorName, Job
from kvq_batch.config.load import make_job
from kvq_batch.domain.errors import FatalError, SpecError
from kvq_batch.domain.frames import FrameRequest
from kvq_batch.domain.scorer import ModelOptions
from kvq_batch.engine.rows import Row
from kvq_batch.engine.run import RunOptions
from kvq_batch.engine.run_recorder import RunSummary
from kvq_batch.engine.score_run import run_job
from kvq_batch.engine.stopping import INTERRUPTED
from kvq_batch.engine.work_tracker import SilentObserver, WorkTracker
from kvq_batch.media.decode import DecodeTask
from kvq_batch.media.isolation import IsolatedDecoder
from kvq_batch.models.registry import build
from kvq_batch.planning.job_plan import plan_job
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.session import open_session
from tests.support.faults import MisbehavingDecodeWorker
from tests.support.s3 import S3Location

FAST = {"name": "luma-sharpness", "workers": {"num_cpus": 0.5}}
KVQ = {"name": "kvq-tiny", "weights": "untrained", "workers": {"num_cpus": 0.5}, "batch_size": 2}


def job_of(source: Path | str, tables: Path | str, *models: dict[str, Any], **more: Any) -> Job:
    values = {
        "name": "test",
        "tables": str(tables),
        "catalog": {"source": str(source)},
        "models": list(models or (FAST,)),
        "decode": {"workers": {"num_cpus": 0.5}},
    }
    return make_job(values | more, "test")


@pytest.fixture(params=["local", "ray"])
def executor(request: pytest.FixtureRequest) -> ExecutorName:
    """Name of an executor: the test holds on each."""
    name: ExecutorName = request.param
    return name


def run(job: Job, **options: Any) -> RunSummary:
    return run_job(plan_job(job), options.pop("observer", None), RunOptions(**options))


def ask(tables: Path | str, sql: str, storage: StorageOptions | None = None) -> list[dict[str, Any]]:
    with open_session(str(tables), storage) as session:
        rows: list[dict[str, Any]] = session.sql(sql).to_pylist()
        return rows


def check_counts(job: Job, summary: RunSummary, storage: StorageOptions | None = None) -> None:
    """Check that each task of the run has one score or one final failure, never both."""
    rows = ask(
        job.tables,
        f"""
        WITH ends AS (
            SELECT video_id, model_id, 's' AS kind FROM scores WHERE run_id = '{summary.run_id}'
            UNION ALL SELECT video_id, model_id, 'f' FROM failures WHERE final AND run_id = '{summary.run_id}'
        )
        SELECT count(*) AS ends, count(DISTINCT (video_id, model_id)) AS pairs, count(*) FILTER (kind = 's') AS scored
        FROM ends
        """,
        storage,
    )[0]
    assert rows["ends"] == rows["pairs"] == summary.num_planned - summary.num_remaining
    assert rows["scored"] == summary.num_scored


def break_some(folder: Path) -> set[str]:
    """Write broken files of every kind that needs no encoder; return their names."""
    whole = (folder / "none-0.mp4").read_bytes()
    broken = {
        "empty.mp4": b"",
        "page.mp4": b"<!DOCTYPE html><html><body>404</body></html>",
        "cut.mp4": whole[: len(whole) // 2],
        "noise.mp4": bytes(range(256)) * 40,
    }
    for name, content in broken.items():
        (folder / name).write_bytes(content)
    return set(broken)


def test_every_task_ends_with_score_or_failure(videos: Path, tmp_path: Path, executor: ExecutorName) -> None:
    broken = break_some(videos)
    job = job_of(videos, tmp_path / "tables", FAST, KVQ)
    summary = run(job, executor=executor)
    check_counts(job, summary)
    assert (summary.state, summary.num_scored, summary.num_failed) == ("finished", 12, 8)
    failed = ask(job.tables, "SELECT DISTINCT video_id, stage, permanent, message FROM failures WHERE final")
    assert {row["video_id"] for row in failed} == broken
    assert all(row["permanent"] and row["message"] for row in failed)
    assert {row["stage"] for row in failed} <= {"fetch", "probe", "decode"}

    # Both models share one decode. The score can be recomputed from the stored maps.
    recomputed = ask(
        job.tables,
        """
        SELECT s.video_id, s.raw_score, avg(r.weighted) AS again, count(*) AS cells FROM scores_latest s
        JOIN regions r ON r.video_id = s.video_id AND r.model_id = s.model_id GROUP BY ALL
        """,
    )
    assert len(recomputed) == 6
    for row in recomputed:
        assert row["again"] == pytest.approx(row["raw_score"], abs=1e-4)
    assert {row["model_origin"] for row in ask(job.tables, "SELECT model_origin FROM scores")} == {
        "untrained",
        "handcrafted",
    }

    stored = json.loads(ask(job.tables, "SELECT job_spec FROM runs ORDER BY commit_seq DESC LIMIT 1")[0]["job_spec"])
    assert stored["decode"]["workers"]["max"] == len(os.sched_getaffinity(0))

    again = run(job)
    assert (again.num_planned, again.state) == (0, "finished")

    os.utime(videos / "blur-1.mp4")
    reasons = plan_job(job).plan.by_reason
    assert {reason: n for reason, n in reasons.items() if n} == {"content changed": 2}
    other = job_of(videos, job.tables, FAST, KVQ, clips={"every_s": 1})
    assert plan_job(other).plan.by_reason["preprocessing changed"] == 18


def test_odd_addresses_are_failures_of_their_rows(videos: Path, tmp_path: Path) -> None:
    odd = {
        "google": "gs://bucket/a.mp4",
        "unknown scheme": "foo://bucket/a.mp4",
        "nul": "videos/a\0b.mp4",
        "archive": "zip://a.mp4",
        "long": "n" * 300 + ".mp4",
        "folder": "videos",
        "relative": "../no/such.mp4",
        "port": "http://127.0.0.1:99999/a.mp4",
        "refused": "http://127.0.0.1:1/a.mp4",
    }
    names = sorted(path.name for path in videos.iterdir())
    rows = [{"video_id": name, "uri": f"videos/{name}"} for name in names]
    rows += [{"video_id": name, "uri": uri} for name, uri in odd.items()]
    (tmp_path / "catalog.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    job = job_of(tmp_path / "catalog.jsonl", tmp_path / "tables", run={"max_attempts": 1})
    summary = run(job)
    check_counts(job, summary)
    assert (summary.state, summary.num_scored, summary.num_failed) == ("finished", len(names), len(odd))
    failed = ask(job.tables, "SELECT video_id, stage, permanent, message FROM failures WHERE final")
    assert {row["video_id"] for row in failed} == set(odd)
    assert {(row["stage"], row["permanent"]) for row in failed} == {("fetch", False)}
    assert all(row["message"] for row in failed)
    assert plan_job(job).plan.num_videos == len(odd)


def test_score_of_video_is_mean_of_its_clips(videos: Path, tmp_path: Path) -> None:
    job = job_of(videos / "none-0.mp4", tmp_path / "tables", clips={"every_s": 0.5})
    summary = run(job)
    assert summary.num_scored == 1
    clips = ask(job.tables, "SELECT clip_index, start_s, end_s, raw_score FROM clips ORDER BY clip_index")
    assert len(clips) > 4
    assert [clip["start_s"] for clip in clips] == [0.5 * i for i in range(len(clips))]
    (score,) = ask(job.tables, "SELECT raw_score, num_clips FROM scores")
    assert score["num_clips"] == len(clips)
    assert score["raw_score"] == pytest.approx(sum(clip["raw_score"] for clip in clips) / len(clips))


def test_crashing_and_hanging_videos_fail_alone(videos: Path, tmp_path: Path, executor: ExecutorName) -> None:
    # The local executor has no worker processes that a video could kill: only decoders.
    kills = ("kill-once", "kill-always") if executor == "ray" else ()
    for name in ("segfault", "hang", *kills):
        shutil.copy2(videos / "none-0.mp4", videos / f"{name}.mp4")
    job = job_of(videos, tmp_path / "tables", limits={"timeout_s": 5}, run={"max_attempts": 2})
    summary = run(job, worker=MisbehavingDecodeWorker, executor=executor)
    check_counts(job, summary)
    final = ask(job.tables, "SELECT video_id, error, permanent, exit_signal FROM failures WHERE final ORDER BY 1")
    assert [(row["video_id"], row["error"], row["permanent"]) for row in final] == [
        ("hang.mp4", "decode_timeout", False),
        *[("kill-always.mp4", "worker_died", False) for _ in kills[1:]],
        ("segfault.mp4", "decoder_crashed", True),
    ]
    assert final[-1]["exit_signal"] == "SIGSEGV"
    assert summary.num_scored == 6 + len(kills[:1])
    assert not list(Path("/dev/shm").glob(f"kvq-batch-{os.getpid()}-*"))


class KillsOneScorer(SilentObserver):
    """Kills the score worker with SIGKILL after the first results."""

    def __init__(self) -> None:
        self.killed: list[int] = []

    def progressed(self, tracker: WorkTracker) -> None:
        if not self.killed:
            self.killed = pids_of("ScoreWorker")
            for pid in self.killed:
                os.kill(pid, signal.SIGKILL)


def pids_of(worker: str) -> list[int]:
    """Return the Ray actors of this process whose title contains `worker`."""
    found = subprocess.run(["pgrep", "-f", f"ray::MapWorker.*{worker}"], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split() if _is_below_us(int(pid))]


def _is_below_us(pid: int) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[1])
        except FileNotFoundError:
            return False
    return False


def test_killed_score_worker_changes_no_score(videos: Path, tmp_path: Path) -> None:
    job = job_of(videos, tmp_path / "tables", KVQ)
    killer = KillsOneScorer()
    summary = run(job, observer=killer, executor="ray")
    assert killer.killed
    check_counts(job, summary)
    assert (summary.num_scored, summary.num_failed) == (6, 0)
    # The score equals that of a single clip in this process: it depends on no batch, worker or run.
    scorer = build(ModelOptions("kvq-tiny", "untrained", num_threads=1))
    for row in ask(job.tables, "SELECT video_id, raw_score FROM scores ORDER BY video_id LIMIT 3"):
        task = DecodeTask(videos / row["video_id"], row["video_id"], (FrameRequest(),))
        with IsolatedDecoder(1, tmp_path, timeout_s=60) as decoder:
            (clip,) = decoder.submit(task).result().clips
        (alone,) = scorer.score([clip.frames[0].pixels])
        assert row["raw_score"] == pytest.approx(alone.raw_score, abs=1e-5)


class StopsEarly(SilentObserver):
    """Requests a stop after the first results."""

    def __init__(self) -> None:
        self.stop = threading.Event()

    def progressed(self, tracker: WorkTracker) -> None:
        self.stop.set()


def test_stopped_run_commits_and_next_run_resumes(videos: Path, tmp_path: Path, executor: ExecutorName) -> None:
    job = job_of(videos, tmp_path / "tables", KVQ | {"batch_size": 1})
    observer = StopsEarly()
    first = run(job, observer=observer, stop=observer.stop, executor=executor)
    check_counts(job, first)
    assert (first.state, first.message) == ("stopped", INTERRUPTED)
    assert 0 < first.num_scored < 6
    second = run(job)
    check_counts(job, second)
    assert first.num_scored + second.num_scored == 6
    assert len(ask(job.tables, "SELECT DISTINCT video_id FROM scores")) == 6


class FailsAfterFirstScore(SilentObserver):
    """Raises a fatal error while there are results that are not committed yet."""

    def progressed(self, tracker: WorkTracker) -> None:
        if tracker.num_scored:
            raise FatalError("the tables were taken over")


def test_failed_run_commits_finished_results(videos: Path, tmp_path: Path, executor: ExecutorName) -> None:
    job = job_of(videos, tmp_path / "tables", FAST | {"batch_size": 1}, run={"commit_every_s": 3600})
    with pytest.raises(FatalError, match="taken over"):
        run(job, observer=FailsAfterFirstScore(), executor=executor)
    (row,) = ask(job.tables, "SELECT state, message, num_scored, num_remaining FROM runs")
    assert (row["state"], row["message"]) == ("failed", "the tables were taken over")
    assert row["num_scored"] + row["num_remaining"] == 6
    assert len(ask(job.tables, "SELECT video_id FROM scores")) == row["num_scored"] > 0


class FailureCollector(SilentObserver):
    """Collects the committed failures."""

    def __init__(self) -> None:
        self.failures: list[Row] = []

    def committed(self, scores: Sequence[Row], failures: Sequence[Row]) -> None:
        self.failures += failures


def test_circuit_breaker_stops_run_without_final_failures(tmp_path: Path, executor: ExecutorName) -> None:
    catalog = tmp_path / "catalog.csv"
    rows = [f"video{i},/nowhere/video{i}.mp4" for i in range(30)]
    catalog.write_text("\n".join(["video_id,uri", *rows]))
    job = job_of(catalog, tmp_path / "tables", run={"breaker_in_a_row": 10})
    collector = FailureCollector()
    with pytest.raises(FatalError, match="in a row failed at fetch with missing"):
        run(job, observer=collector, executor=executor)
    assert collector.failures
    assert not [row for row in collector.failures if row["final"]]
    assert plan_job(job).plan.by_reason["retry"] >= 10
    (row,) = ask(job.tables, "SELECT state, message FROM runs")
    assert row["state"] == "failed"
    assert "in a row" in row["message"]


def test_run_on_s3(clips: Sequence[Path], s3_prefix: S3Location, executor: ExecutorName) -> None:
    for clip in clips[:3]:
        s3_prefix.put(f"videos/{clip.name}", clip.read_bytes())
    s3_prefix.put("videos/page.mp4", b"<html></html>")
    storage = {"endpoint_url": s3_prefix.options.endpoint_url, "region": s3_prefix.options.region}
    job = job_of(f"{s3_prefix.uri}/videos", f"{s3_prefix.uri}/tables", FAST, KVQ, storage=storage)
    summary = run(job, executor=executor)
    check_counts(job, summary, s3_prefix.options)
    assert (summary.num_scored, summary.num_failed) == (6, 2)
    rows = ask(job.tables, "SELECT uri, content_id, size_bytes FROM scores ORDER BY uri", s3_prefix.options)
    assert all(row["uri"].startswith("s3://") and row["content_id"].startswith("etag:") for row in rows)
    assert run(job).num_planned == 0


def test_run_joins_cluster_and_leaves_it_running(videos: Path, tmp_path: Path) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        job = job_of(videos, tmp_path / "tables", run={"ray_address": cluster.address})
        summary = run(job)
        assert (summary.num_scored, summary.num_failed) == (6, 0)
        with pytest.raises(SpecError, match="need 9 CPU, but the cluster has at most 2"):
            run(job_of(videos, tmp_path / "other", decode={"workers": {"num_cpus": 8.5}}), address=cluster.address)
        assert cluster.list_all_nodes()  # type: ignore[no-untyped-call]
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]
