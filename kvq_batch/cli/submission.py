"""Commands for jobs on a cluster: `submit`, `jobs`, `logs` and `stop`, through the dashboard of its head.

`JobSubmission` builds what is sent: the package, the entry point of the driver, and the metadata. Each submission is a
run with an id that is known before the run starts.
"""

import re
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvq_batch import __version__
from kvq_batch.cli.execution import command_line
from kvq_batch.cli.jobs import override_job
from kvq_batch.cli.options import (
    DeadlineOption,
    IncludePermanentOption,
    JobArgument,
    LogFormat,
    LogOption,
    MaxAgeOption,
    MaxCostOption,
    MaxVideosOption,
    OrderByOption,
    OutputOption,
    ReasonOption,
    SampleOption,
    ShardOption,
    TimeZoneOption,
    WhereOption,
)
from kvq_batch.cli.output import Format, Output
from kvq_batch.domain.errors import HeadUnavailableError, NotSubmittedError, SpecError

if TYPE_CHECKING:
    from kvq_batch.config.job import Job
    from kvq_batch.config.labels import LabelJob
    from kvq_batch.engine.job_package import JobPackage
    from kvq_batch.engine.job_submission import JobApi, SubmitRequest, SubmittedJob

DashboardOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        envvar="RAY_API_SERVER_ADDRESS",
        help="Dashboard of the cluster, http://HEAD:8265. For its token, set RAY_AUTH_MODE=token and "
        "RAY_AUTH_TOKEN_PATH=FILE.",
        show_default=False,
    ),
]
JobIdArgument = Annotated[
    str, typer.Argument(metavar="JOB_ID", help="Job id, as printed by `submit` and `jobs`.", show_default=False)
]

DEFAULT_RESTARTS = 3

_RESOURCE = re.compile(r"([^=\s]+)=([0-9]*\.?[0-9]+)")

_COLUMNS = ("job_id", "status", "job", "started", "seconds", "exit_code", "run_id")


def submit(
    context: typer.Context,
    job: JobArgument,
    address: DashboardOption = None,
    shared: Annotated[
        list[str] | None,
        typer.Option(
            "--shared",
            help="Folder that every machine mounts under the same path. Can be repeated.",
            show_default=False,
        ),
    ] = None,
    installed: Annotated[
        bool, typer.Option("--installed", help="Use the kvq-batch installed on the cluster; do not send this one.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Print the log and exit with the exit code of the run.")] = False,
    restarts: Annotated[
        int | None,
        typer.Option(
            "--restarts",
            min=0,
            help=f"With --wait: maximum restarts of a lost driver. Default: {DEFAULT_RESTARTS}.",
            show_default=False,
        ),
    ] = None,
    entrypoint_num_cpus: Annotated[
        float,
        typer.Option(
            "--entrypoint-num-cpus",
            min=0,
            help="CPUs to reserve for the driver, on any machine. Default: none, on the head.",
            show_default=False,
        ),
    ] = 0.0,
    entrypoint_resources: Annotated[
        list[str] | None,
        typer.Option(
            "--entrypoint-resource",
            metavar="NAME=AMOUNT",
            help="Resource that the driver's machine must have. Can be repeated.",
            show_default=False,
        ),
    ] = None,
    where: WhereOption = None,
    sample: SampleOption = None,
    shard: ShardOption = None,
    reasons: ReasonOption = None,
    max_age: MaxAgeOption = None,
    include_permanent: IncludePermanentOption = False,
    order_by: OrderByOption = None,
    max_videos: MaxVideosOption = None,
    max_cost: MaxCostOption = None,
    deadline: DeadlineOption = None,
    time_zone: TimeZoneOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent, and exit.")] = False,
    log: LogOption = "auto",
    output: OutputOption = Format.TABLE,
) -> None:
    """Submit a scoring job or a label job to a Ray cluster.

    Sends this package, the job without comments, and its local weights. Sends
    no credentials: a job that contains any is rejected, and the machines find
    theirs through the AWS chain (a role, a mounted secret). With --wait, a run
    whose driver or head is lost is submitted again and does what is missing.

    Examples:

      $ kvq-batch submit nightly.toml --address http://HEAD:8265 --wait
      $ kvq-batch submit nightly.toml --dry-run --output json

    Exit codes: 0 submitted, 2 rejected. With --wait those of `kvq-batch run`,
    1 if the driver is lost too often, 130 if the job is stopped.
    """
    from kvq_batch.engine.job_package import pack
    from kvq_batch.engine.job_submission import submit as submit_job

    if restarts is not None and not wait:
        raise SpecError("--restarts requires --wait: this command restarts lost drivers, Ray does not.")
    loaded = load_job_with_options(job, context, datetime.now(UTC))
    package = pack(loaded, str(job), shared or (), include_package=not installed)
    submission = JobSubmission(loaded, package, log, entrypoint_num_cpus, parse_resources(entrypoint_resources or []))
    out = Output(output)
    if dry_run:
        _show(submission, out)
    elif wait:
        again = f"{command_line('submit', job)} --wait"
        _submit_and_wait(submission, _connect(address), DEFAULT_RESTARTS if restarts is None else restarts, out, again)
    else:
        api, request = _connect(address), submission.request(1)
        submit_job(api, request)
        out.record({**_ids(request), "address": api.address, **describe_package(package)})
        out.note(f"Show its log:  {_command('logs', request.job_id, api)} --follow")


def list_jobs(
    job_id: Annotated[
        str | None, typer.Argument(metavar="[JOB_ID]", help="Show the details of one job.", show_default=False)
    ] = None,
    address: DashboardOption = None,
    all_: Annotated[bool, typer.Option("--all", help="Include jobs of other programs.")] = False,
    output: OutputOption = Format.TABLE,
) -> None:
    """List the jobs of a cluster, newest first.

    `run_id` is the id of the run in the tables. With JOB_ID, show the details
    of one job, with the last lines of its log if it failed.

    Examples:

      $ kvq-batch jobs --address http://HEAD:8265
      $ kvq-batch jobs JOB_ID --output json
    """
    api, out = _connect(address), Output(output)
    if job_id is None:
        out.rows([_row(job) for job in api.jobs() if all_ or "run_id" in job.metadata], columns=_COLUMNS)
    else:
        job = api.job(job_id)
        out.record({**_row(job), "error_type": job.error_type, "message": job.message, "metadata": dict(job.metadata)})


def logs(
    job_id: JobIdArgument,
    address: DashboardOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing until the job ends.")] = False,
    output: OutputOption = Format.TABLE,
) -> None:
    """Print the log of a job's driver.

    Examples:

      $ kvq-batch logs JOB_ID --address http://HEAD:8265
      $ kvq-batch logs JOB_ID --follow
    """
    from kvq_batch.engine.job_submission import follow as follow_job

    api, out = _connect(address), Output(output)
    pieces: list[str] = []
    write = out.text if output is Format.TABLE else pieces.append
    if follow:
        if follow_job(api, job_id, write) is None:
            raise SpecError(f"The head at {api.address} restarted and does not know job {job_id} any more.")
    else:
        write(api.log(job_id))
    if output is not Format.TABLE:
        lines = "".join(pieces).splitlines()
        out.rows(({"line": number, "text": text} for number, text in enumerate(lines, 1)), columns=("line", "text"))


def stop(
    job_id: JobIdArgument,
    address: DashboardOption = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the job has ended.")] = True,
    output: OutputOption = Format.TABLE,
) -> None:
    """Stop a job and commit its finished results, like Ctrl-C.

    Example:

      $ kvq-batch stop JOB_ID --address http://HEAD:8265
    """
    from kvq_batch.engine.job_submission import wait_for_end

    api, out = _connect(address), Output(output)
    was_running = api.stop(job_id)
    job = wait_for_end(api, job_id) if wait and was_running else api.job(job_id)
    out.record({"job_id": job_id, "was_running": was_running, "status": job.status})
    if not was_running:
        out.note(f"{job_id} had already ended.")


class JobSubmission:
    """A job and everything that a submission of it needs; each `request` is a run of its own."""

    def __init__(
        self,
        job: "Job | LabelJob",
        package: "JobPackage",
        log: LogFormat,
        num_cpus: float,
        resources: dict[str, float],
    ) -> None:
        self.job, self.package = job, package
        self._log, self._num_cpus, self._resources = log, num_cpus, resources
        self._first_job_id: str | None = None

    @property
    def command(self) -> str:
        """The command of the driver: `run` or `labels make`."""
        from kvq_batch.config.job import Job

        return "run" if isinstance(self.job, Job) else "labels make"

    def entrypoint(self, run_id: str) -> str:
        """Return the shell command of the driver; with `exec`, Ray sees its exit code and signals reach it."""
        from kvq_batch.engine.job_package import JOB_FILE

        words = ["python", "-m", "kvq_batch.cli", *self.command.split(), JOB_FILE]
        words += ["--address", "auto", "--run-id", run_id, "--log", self._log]
        return f"exec {shlex.join(words)}"

    def request(self, number: int) -> "SubmitRequest":
        """Return the `number`-th submission, with a new run id."""
        from kvq_batch.domain.identity import new_run_id
        from kvq_batch.engine.job_submission import SubmitRequest
        from kvq_batch.storage.options import absolute, display_uri

        run_id = new_run_id()
        job_id = f"{self.job.name}-{run_id}"
        self._first_job_id = self._first_job_id or job_id
        metadata = {
            "job_name": self.job.name,
            "command": self.command,
            "run_id": run_id,
            "tables": display_uri(absolute(self.job.tables)),
            "submitted_by": f"kvq-batch {__version__}",
        }
        if number > 1:
            metadata["restart_of"] = self._first_job_id
        return SubmitRequest(job_id, self.entrypoint(run_id), self.package, metadata, self._num_cpus, self._resources)


def load_job_with_options(path: Path, context: typer.Context, now: datetime) -> "Job | LabelJob":
    """Load a job file and apply the options of the command line; a deadline at a time of day becomes a date after
    `now`.

    Raises: SpecError as `load_any_job`; and for options that do not apply to a label job.
    """
    from kvq_batch.config.job import Budget, Job, Select
    from kvq_batch.config.load import load_any_job, with_values

    job = load_any_job(path)
    if isinstance(job, Job):
        job = override_job(job, context)
        deadline = job.budget.deadline_after(now)
        # A restart after that time of day would otherwise use the next day's.
        moment = None if deadline is None else deadline.isoformat(timespec="minutes")
        return with_values(job, {"budget": {"deadline": moment}}, origin="the command line")
    keys = [*Select.model_fields, *Budget.model_fields]
    given = [key for key in keys if context.params.get(key)]
    if given:
        raise SpecError(f"{path} is a label job, and {', '.join(given)} applies to scoring jobs only. Remove it.")
    return job


def describe_package(package: "JobPackage") -> dict[str, Any]:
    """Return a summary of a job package for the user: which kvq-batch the driver uses, other files, size."""
    sizes = package.sizes_bytes
    other_files = [name for name in sizes if not name.startswith("kvq_batch")]
    is_included = len(other_files) < len(sizes)
    return {
        "kvq_batch": f"{__version__}, sent with the job" if is_included else "as installed on the cluster",
        "other_files": ", ".join(other_files),
        "files": len(sizes),
        "bytes": sum(sizes.values()),
    }


def parse_resources(texts: list[str]) -> dict[str, float]:
    """Return amounts by name from NAME=AMOUNT texts. Raises: SpecError."""
    resources = {}
    for text in texts:
        match = _RESOURCE.fullmatch(text)
        if match is None:
            raise SpecError(f"Invalid --entrypoint-resource {text!r}: expected NAME=AMOUNT, such as head=1.")
        resources[match[1]] = float(match[2])
    return resources


def _submit_and_wait(submission: JobSubmission, api: "JobApi", restarts: int, out: Output, again: str) -> None:
    """Submit and follow a job, and exit with its code; `again` is the command that continues it after its budget."""
    from kvq_batch.engine.job_submission import ResubmitPolicy, submit_and_wait

    started, requests = datetime.now(UTC), []

    def make_request(number: int) -> "SubmitRequest":
        requests.append(submission.request(number))
        return requests[-1]

    try:
        result = submit_and_wait(api, make_request, out.aside, ResubmitPolicy(restarts))
    except NotSubmittedError:
        raise
    except (KeyboardInterrupt, HeadUnavailableError):
        job_id = requests[-1].job_id
        out.note(f"{job_id} keeps running. Show its log:  {_command('logs', job_id, api)} --follow")
        out.note(f"Stop it:  {_command('stop', job_id, api)}")
        raise
    out.record({
        **_ids(requests[-1]),
        "status": result.status,
        "exit_code": result.exit_code,
        "submitted": result.num_submitted,
        "seconds": round((datetime.now(UTC) - started).total_seconds(), 1),
    })  # fmt: skip
    if result.status == "stopped (budget)":
        out.note(f"{result.job_id} stopped at its budget; to continue:  {again} --address {shlex.quote(api.address)}")
    elif result.exit_code:
        out.note(f"{result.job_id} {result.status.lower()}: {result.message}")
    if result.exit_code:
        raise typer.Exit(result.exit_code)


def _show(submission: JobSubmission, out: Output) -> None:
    from kvq_batch.engine.job_package import JOB_FILE

    package = submission.package
    record = {
        "job": submission.job.name,
        "entrypoint": submission.entrypoint("RUN_ID"),
        **describe_package(package),
    }
    if out.format is Format.JSON:
        content = package.files[JOB_FILE]
        assert isinstance(content, bytes)
        record["sizes_bytes"] = package.sizes_bytes
        record["job_file"] = content.decode()
    out.record(record)
    out.note("Dry run: nothing was sent.")


def _ids(request: "SubmitRequest") -> dict[str, Any]:
    return {
        "job_id": request.job_id,
        "run_id": request.metadata["run_id"],
        "job": request.metadata["job_name"],
    }


def _row(job: "SubmittedJob") -> dict[str, Any]:
    seconds = None
    if job.started is not None:
        seconds = round(((job.ended or datetime.now(UTC)) - job.started).total_seconds(), 1)
    values = (job.job_id, job.status, job.metadata.get("job_name"), job.started, seconds, job.exit_code)
    return dict(zip(_COLUMNS, (*values, job.metadata.get("run_id")), strict=True))


def _connect(address: str | None) -> "JobApi":
    """Return a client of the Job API at `address`. Raises: SpecError if it is invalid or does not answer."""
    from kvq_batch.engine.job_submission import JobApi
    from kvq_batch.storage.redact import contains_secret

    if address is None:
        raise SpecError("No cluster given. Use --address http://HEAD:8265, or set RAY_API_SERVER_ADDRESS.")
    if contains_secret(address):
        raise SpecError("--address contains credentials. Remove them; set a token with RAY_AUTH_TOKEN_PATH=FILE.")
    if not address.startswith(("http://", "https://")):
        raise SpecError(f"Invalid --address {address!r}: expected the dashboard of the cluster, http://HEAD:8265.")
    return JobApi(address.rstrip("/"))


def _command(name: str, job_id: str, api: "JobApi") -> str:
    return f"kvq-batch {name} {shlex.quote(job_id)} --address {shlex.quote(api.address)}"
