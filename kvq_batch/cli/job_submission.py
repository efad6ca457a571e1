"""A job on its way to a cluster: what of it is sent, under which names, and what the driver is started with.

It is said here what a person may see of it beforehand (`submit --dry-run`); sending is the engine's.
"""

import re
import shlex
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from kvq_batch import __version__
from kvq_batch.cli.jobs import as_asked
from kvq_batch.cli.options import LogFormat
from kvq_batch.domain.errors import SpecError

if TYPE_CHECKING:
    from kvq_batch.config.job import Job
    from kvq_batch.config.labels import LabelJob
    from kvq_batch.engine.job_client import Submission
    from kvq_batch.engine.job_package import JobPackage

_RESOURCE = re.compile(r"([^=\s]+)=([0-9]*\.?[0-9]+)")


class JobSubmission:
    """A job on its way: each submission of it is a run of its own, with a name that is known beforehand."""

    def __init__(
        self, job: "Job | LabelJob", parcel: "JobPackage", log: LogFormat, num_cpus: float, resources: dict[str, float]
    ) -> None:
        self.job, self.parcel = job, parcel
        self._log, self._num_cpus, self._resources = log, num_cpus, resources
        self._first: str | None = None

    @property
    def command(self) -> str:
        from kvq_batch.config.job import Job

        return "run" if isinstance(self.job, Job) else "labels make"

    def entrypoint(self, run_id: str) -> str:
        """What the driver's machine starts. `exec`, so that Ray sees the driver's own end, and signals reach it."""
        from kvq_batch.engine.job_package import JOB_FILE

        words = ["python", "-m", "kvq_batch.cli", *self.command.split(), JOB_FILE]
        words += ["--address", "auto", "--run-id", run_id, "--log", self._log]
        return f"exec {shlex.join(words)}"

    def submission(self, number: int) -> "Submission":
        """The next submission, the `number`-th; its metadata is for everybody to see."""
        from kvq_batch.domain.identity import new_run_id
        from kvq_batch.engine.job_client import Submission
        from kvq_batch.storage.options import absolute, display_uri

        run_id = new_run_id()
        job_id = f"{self.job.name}-{run_id}"
        self._first = self._first or job_id
        metadata = {
            "job_name": self.job.name,
            "command": self.command,
            "run_id": run_id,
            "tables": display_uri(absolute(self.job.tables)),
            "submitted_by": f"kvq-batch {__version__}",
        }
        if number > 1:
            metadata["restart_of"] = self._first
        return Submission(job_id, self.entrypoint(run_id), self.parcel, metadata, self._num_cpus, self._resources)


def job_as_asked(path: Path, context: typer.Context, now: datetime) -> "Job | LabelJob":
    """The job of a file with what the command line says of it; a time of the day at which it ends is that after `now`.

    Raises: SpecError as `load_any_job`; and for options that a label job has no use for.
    """
    from kvq_batch.config.budget import Budget
    from kvq_batch.config.job import Job
    from kvq_batch.config.load import load_any_job, with_values
    from kvq_batch.config.selection import Select

    job = load_any_job(path)
    if isinstance(job, Job):
        job = as_asked(job, context)
        deadline = job.budget.deadline_after(now)
        # Started again after that hour, a run would take it for tomorrow's.
        moment = None if deadline is None else deadline.isoformat(timespec="minutes")
        return with_values(job, {"budget": {"deadline": moment}}, origin="the command line")
    keys = [*Select.model_fields, *Budget.model_fields]
    given = [key for key in keys if context.params.get(key)]
    if given:
        raise SpecError(f"{path}: makes labels, and {', '.join(given)} is for jobs that score; leave it out")
    return job


def told_of(parcel: "JobPackage") -> dict[str, Any]:
    """What a person wants to know of a parcel: whose package runs there, what goes beside it, how much it is."""
    sizes = parcel.sizes_bytes
    beside = [name for name in sizes if not name.startswith("kvq_batch")]
    is_carried = len(beside) < len(sizes)
    return {
        "kvq_batch": f"{__version__}, sent along" if is_carried else "as the cluster has it",
        "beside_it": ", ".join(beside),
        "files": len(sizes),
        "bytes": sum(sizes.values()),
    }


def parse_resources(texts: list[str]) -> dict[str, float]:
    """Amounts by name, of NAME=AMOUNT. Raises: SpecError."""
    found = {}
    for text in texts:
        match = _RESOURCE.fullmatch(text)
        if match is None:
            raise SpecError(f"--entrypoint-resource {text!r}: write NAME=AMOUNT, as head=1")
        found[match[1]] = float(match[2])
    return found
