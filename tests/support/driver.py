"""A run in its own process, to be killed, paused or observed: `python -m tests.support.driver JOB.json`.

The job is JSON with the keys of `make_job`. Prints one line per event on stdout: `committed N` with the number of all
scores and failures so far, `log TEXT` for messages of the run, and at the end `STATE scored N` or `error TEXT`.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from kvq_batch.config.job import Job
from kvq_batch.config.load import make_job
from kvq_batch.domain.errors import KvqBatchError
from kvq_batch.engine.rows import Row
from kvq_batch.engine.run import RunOptions
from kvq_batch.engine.score_run import run_job
from kvq_batch.engine.work_tracker import SilentObserver
from kvq_batch.planning.job_plan import plan_job


def say(text: str) -> None:
    # Not through `sys.stdout`, which is redirected while Ray runs.
    os.write(1, f"{text}\n".encode())


class LogPrinter(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(f"log {record.getMessage()}")


class CommitPrinter(SilentObserver):
    def __init__(self) -> None:
        self.committed_so_far = 0

    def committed(self, scores: Sequence[Row], failures: Sequence[Row]) -> None:
        self.committed_so_far += len(scores) + len(failures)
        say(f"committed {self.committed_so_far}")


def start_driver(job: Job, folder: Path) -> "subprocess.Popen[str]":
    """Start the run of `job`; its stdout is a pipe, its stderr goes to `driver.log` in `folder`."""
    job_file = folder / "job.json"
    job_file.write_text(job.model_dump_json())
    with (folder / "driver.log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.support.driver", str(job_file)], stdout=subprocess.PIPE, stderr=log, text=True
        )


def wait_for(process: "subprocess.Popen[str]", start: str) -> str:
    """Return the next line that starts with `start`. Raises: AssertionError if the driver ends without one."""
    assert process.stdout is not None
    last = ""
    for line in process.stdout:
        if line.startswith(start):
            return line.rstrip()
        last = line.rstrip()
    raise AssertionError(f"the driver ended without a line {start!r}; its last line is {last!r}")


def main(options: RunOptions | None = None) -> int:
    for name in ("kvq_batch.engine", "kvq_batch.tables"):
        logging.getLogger(name).setLevel(logging.INFO)
        logging.getLogger(name).addHandler(LogPrinter())
    job = make_job(json.loads(Path(sys.argv[1]).read_text()), "driver")
    try:
        summary = run_job(plan_job(job), CommitPrinter(), options or RunOptions())
    except KvqBatchError as error:
        say(f"error {error}")
        return 1
    say(f"{summary.state} scored {summary.num_scored}")
    return 0


if __name__ == "__main__":
    # A module that runs as a script is another module object than the one that others import.
    from tests.support.driver import main as real_main

    os._exit(real_main())
