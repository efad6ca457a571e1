"""A catalog with bad videos, a job that scores it, the processes that run it, and the checks after a fault.

Each fault has its own trial with its own scratch and shared memory, so that leftover files there belong to it.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvq_batch.config.job import Job
from kvq_batch.config.load import make_job
from kvq_batch.planning.job_plan import plan_job
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.check import check_tables
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.session import open_session
from tests.support.poison import ERRORS, PAGE, kind_of
from tests.support.processes import Process, below
from tests.support.s3 import S3Location
from tests.support.tally import Tally, counted, install

CLEANUP_TIMEOUT_S = 180.0
"""Longest time that the last processes of a crashed run may take to end."""

_SLOW_TO_DIE = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Service processes of Ray on a node: when they end they report to the server, and wait a minute for its answer."""


class Trial:
    """One fault: catalog, job, processes and tables."""

    def __init__(
        self,
        folder: Path,
        shared_memory: Path,
        clips: Sequence[Path],
        names: Sequence[str],
        store: S3Location | None = None,
        seconds: float = 0.05,
        device_error: str = "",
        capacity: int | None = None,
        **job: Any,
    ) -> None:
        self.folder = folder
        self.shared_memory = shared_memory
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        self.names = names
        self.options = store.options if store else StorageOptions()
        self.tally = folder / "tally"
        self._processes: list[subprocess.Popen[str]] = []
        self.site = install(folder / "site")
        *clips, black = clips
        for number, name in enumerate(names):
            clip = black if "black" in name else clips[number % len(clips)]
            content = PAGE if "page" in name else distinct(clip.read_bytes(), number)
            if store:
                store.put(f"videos/{name}", content)
            else:
                (folder / "videos").mkdir(exist_ok=True)
                (folder / "videos" / name).write_bytes(content)
        root = store.uri if store else str(folder)
        weights = Tally(str(self.tally), seconds, 0.0, device_error, capacity).write(folder / "tally.json")
        values: dict[str, Any] = {
            "name": "trial",
            "tables": f"{root}/tables",
            "catalog": {"source": f"{root}/videos"},
            "models": [{"name": "tally", "weights": str(weights), "batch_size": 4, "workers": {"num_cpus": 0.5}}],
            "decode": {
                "workers": {"max": 1, "num_cpus": 0.5},
                "scratch": str(self.scratch),
                "shared_memory": str(shared_memory),
            },
            "limits": {"timeout_s": 60, "max_memory_bytes": 512 << 20},
            "run": {"executor": "ray", "commit_every_s": 0.1, "max_attempts": 2},
        }
        if store:
            values["storage"] = {"endpoint_url": store.options.endpoint_url, "region": store.options.region}
        for key, section in job.items():
            values[key] = values.get(key, {}) | section if isinstance(section, dict) else section
        self.job: Job = make_job(values, "trial")

    @property
    def poison(self) -> dict[str, str]:
        """The error of each bad video, by video id."""
        return {name: ERRORS[kind] for name in self.names if (kind := kind_of(name))}

    @property
    def healthy(self) -> set[str]:
        return {name for name in self.names if kind_of(name) is None}

    @property
    def num_inferences(self) -> int:
        return counted(self.tally)

    def environment(self) -> dict[str, str]:
        """Return the environment that a process needs to find the model `tally`."""
        return {"PYTHONPATH": os.pathsep.join([str(self.site), os.getcwd(), os.environ.get("PYTHONPATH", "")])}

    def start(self, point: str | None = None) -> "subprocess.Popen[str]":
        """Start a driver that crashes at `point` (`tests.support.crashes`). Its output: `tests.support.driver`."""
        # A file for each driver: several drivers of a trial may run on their shards.
        job_file = self.folder / f"job-{len(self._processes)}.json"
        job_file.write_text(self.job.model_dump_json())
        command = [sys.executable, "-m", "tests.support.fault_driver", str(job_file), *([point] if point else [])]
        with (self.folder / "driver.log").open("a") as log:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | self.environment()
            )
        self._processes.append(process)
        return process

    def ask(self, sql: str) -> list[dict[str, Any]]:
        with open_session(self.job.tables, self.options) as session:
            rows: list[dict[str, Any]] = session.sql(sql).to_pylist()
            return rows

    def state(self) -> dict[str, Any]:
        """Return the newest row of the newest run."""
        return self.ask("SELECT * FROM runs ORDER BY commit_seq DESC LIMIT 1")[0]

    def finish(self) -> None:
        """Run the job to its end. Raises: AssertionError if it does not finish."""
        with self.start() as process:
            last = list(process.stdout or [])[-1:]
        assert last, f"the driver printed nothing; see {self.folder / 'driver.log'}"
        assert last[0].startswith("finished scored "), last

    def close(self) -> None:
        """Kill the processes that a failed test left running."""
        for process in self._processes:
            if process.poll() is None:
                for child in [*below(process.pid)]:
                    os.kill(child.pid, 9)
                process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


def distinct(content: bytes, number: int) -> bytes:
    """Return the MP4 with a `free` box appended: other bytes, the same frames."""
    payload = f"{number:016}".encode()
    return content + (8 + len(payload)).to_bytes(4, "big") + b"free" + payload


def names_of(num_videos: int, *poison: str) -> list[str]:
    """Return file names in catalog order, with the kinds of `poison` spread over them in the given order."""
    step = num_videos // (len(poison) + 1) if poison else num_videos
    kinds = {step * (index + 1): kind for index, kind in enumerate(poison)}
    return [f"v{number:03}{'-' + kinds[number] if number in kinds else ''}.mp4" for number in range(num_videos)]


@contextmanager
def memory_folder() -> Iterator[Path]:
    """Create a folder on the memory file system for one trial."""
    folder = Path(tempfile.mkdtemp(prefix="kvq-trial-", dir="/dev/shm"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def check(trial: Trial) -> int:
    """Check the tables after the last run of the trial; return the number of repeated inferences.

    The run ended, only the bad videos have final failures, nothing is lost, nothing is stored twice.
    """
    # The run, or its continuation, ended, and the same command would do nothing more.
    assert trial.state()["state"] == "finished"
    plan = plan_now(trial)
    assert plan.by_reason["retry"] == plan.tasks.num_rows == len(trial.poison) - plan.num_quarantined

    # Only the bad videos failed.
    final = trial.ask("SELECT DISTINCT video_id, error FROM failures WHERE final")
    assert {row["video_id"]: row["error"] for row in final} == trial.poison
    assert len(final) == len(trial.poison)

    # Nothing is lost: each other video has a current score with its clips and maps.
    scored = trial.ask(
        """
        SELECT s.video_id, s.num_clips, s.raw_score, s.is_stale,
            (SELECT count(*) FROM clips c WHERE c.video_id = s.video_id AND c.commit_seq = s.commit_seq) AS clips,
            (SELECT count(*) FROM maps m WHERE m.video_id = s.video_id AND m.commit_seq = s.commit_seq) AS maps
        FROM scores_latest s
        """
    )
    assert {row["video_id"] for row in scored} == trial.healthy
    assert all(row["clips"] == row["maps"] == row["num_clips"] == 1 and not row["is_stale"] for row in scored)

    # Nothing is stored twice, in any runs.
    identity = "video_id, content_id, model_id, fingerprint"
    assert trial.ask(f"SELECT {identity} FROM scores GROUP BY ALL HAVING count(*) > 1") == []
    assert len(scored) == len(trial.healthy) == trial.ask("SELECT count(*) AS n FROM scores")[0]["n"]

    # The counts of every run add up.
    off = "num_planned <> num_scored + num_failed + num_remaining"
    assert trial.ask(f"SELECT * FROM runs WHERE state = 'running' OR {off}") == []

    check_tables_whole(trial)
    check_cleanup(trial)
    repeated = trial.num_inferences - len(scored)
    assert repeated >= 0
    return repeated


def plan_now(trial: Trial) -> Any:
    """Return the plan that the same job would have now."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(trial.site))
        return plan_job(trial.job).plan


def check_tables_whole(trial: Trial) -> None:
    """Check that every data file that a log names is complete, and that rows and counts agree."""
    findings = check_tables(Tables.open(trial.job.tables, trial.options), deep=True)
    assert [finding for finding in findings if finding.severity == "error"] == []


def check_cleanup(trial: Trial) -> None:
    """Check that no files are left in shared memory and scratch."""
    assert list(trial.shared_memory.iterdir()) == []
    assert [path for path in trial.scratch.rglob("*") if path.is_file()] == []


def wait_for_end(processes: Sequence[Process], includes_services: bool = False) -> None:
    """Wait until none of the processes is alive, except for the slow service processes of Ray unless asked.

    Raises: AssertionError that names those that are still alive.
    """
    deadline = time.monotonic() + CLEANUP_TIMEOUT_S
    exempt = () if includes_services else _SLOW_TO_DIE
    while alive := [process for process in processes if process.is_alive and not process.title.startswith(exempt)]:
        assert time.monotonic() < deadline, [f"{process} {process.title}" for process in alive]
        time.sleep(0.1)


def recorded_max_repeated(trial: Trial) -> int:
    """Return the bound of repeated inferences that is recorded for the crashed runs of the trial."""
    row = trial.ask("SELECT coalesce(sum(max_repeated), 0)::INT AS n FROM runs WHERE state = 'crashed'")[0]
    return int(row["n"])
