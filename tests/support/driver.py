"""A run in a process of its own, to be killed, paused or watched: `python -m tests.support.driver JOB.json`.

The job is JSON, as `make_job` takes it. Says on stdout, a line each: `committed N` with all scores and failures so
far, `told TEXT`, and at the end `STATE scored N` or `error TEXT`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from kvq_batch.config.job import Job
from kvq_batch.config.load import make_job
from kvq_batch.domain.errors import KvqBatchError
from kvq_batch.engine.observer import SilentObserver
from kvq_batch.engine.rows import Row
from kvq_batch.engine.run import RunOptions, run_job
from kvq_batch.planning.job_plan import plan_job


def say(text: str) -> None:
    # Past `sys.stdout`, which is Ray's while a run goes on.
    os.write(1, f"{text}\n".encode())


class Speaker(SilentObserver):
    def __init__(self) -> None:
        self.committed_so_far = 0

    def committed(self, scores: Sequence[Row], failures: Sequence[Row]) -> None:
        self.committed_so_far += len(scores) + len(failures)
        say(f"committed {self.committed_so_far}")

    def told(self, text: str) -> None:
        say(f"told {text}")


def start_driver(job: Job, folder: Path) -> "subprocess.Popen[str]":
    """The run of `job` as a process; its stdout is a pipe, its stderr `driver.log` in `folder`."""
    job_file = folder / "job.json"
    job_file.write_text(job.model_dump_json())
    with (folder / "driver.log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.support.driver", str(job_file)], stdout=subprocess.PIPE, stderr=log, text=True
        )


def wait_for(process: "subprocess.Popen[str]", start: str) -> str:
    """The next line of the driver that starts so. Raises: AssertionError where it ends without one."""
    assert process.stdout is not None
    last = ""
    for line in process.stdout:
        if line.startswith(start):
            return line.rstrip()
        last = line.rstrip()
    raise AssertionError(f"the driver ended without {start!r}; the last that it said is {last!r}")


def main(options: RunOptions | None = None) -> int:
    job = make_job(json.loads(Path(sys.argv[1]).read_text()), "driver")
    try:
        summary = run_job(plan_job(job), Speaker(), options or RunOptions())
    except KvqBatchError as error:
        say(f"error {error}")
        return 1
    say(f"{summary.state} scored {summary.num_scored}")
    return 0


if __name__ == "__main__":
    # What is run as a script is another module than what others import.
    from tests.support.driver import main as real_main

    os._exit(real_main())
