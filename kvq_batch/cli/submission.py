"""Commands for jobs on a cluster: submit, jobs, logs, stop, through the dashboard's address at its head.

They make of a job file what is sent, and show what Ray's Job API answers; nothing is planned or scored here.
"""

import shlex
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvq_batch.cli.job_submission import JobSubmission, job_as_asked, parse_resources, told_of
from kvq_batch.cli.options import (
    DeadlineOption,
    JobArgument,
    LogOption,
    MaxAgeOption,
    MaxCostOption,
    MaxVideosOption,
    OrderByOption,
    OutputOption,
    ReasonOption,
    RetryOption,
    SampleOption,
    ShardOption,
    TimeZoneOption,
    WhereOption,
)
from kvq_batch.cli.output import Format, Output
from kvq_batch.domain.errors import HeadUnavailableError, SpecError

if TYPE_CHECKING:
    from kvq_batch.engine.job_client import JobApi, Submission, SubmittedJob

HeadOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        envvar="RAY_API_SERVER_ADDRESS",
        help="Dashboard of the cluster, http://HEAD:8265. Its token: RAY_AUTH_MODE=token, RAY_AUTH_TOKEN_PATH=FILE.",
        show_default=False,
    ),
]
JobIdArgument = Annotated[
    str, typer.Argument(metavar="JOB_ID", help="As `submit` and `jobs` say it.", show_default=False)
]


def submit(
    context: typer.Context,
    job: JobArgument,
    address: HeadOption = None,
    shared: Annotated[
        list[str] | None,
        typer.Option(
            "--shared",
            help="Folder that every machine mounts under this name; may be repeated.",
            show_default=False,
        ),
    ] = None,
    installed: Annotated[
        bool, typer.Option("--installed", help="Use the kvq-batch that the cluster has (its image), send none.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Pass on the log, and end with the exit code of the run.")
    ] = False,
    restarts: Annotated[
        int | None,
        typer.Option("--restarts", min=0, help="With --wait: starts after a loss. Default: 3.", show_default=False),
    ] = None,
    entrypoint_num_cpus: Annotated[
        float,
        typer.Option(
            "--entrypoint-num-cpus", min=0, help="CPUs of the driver, on any machine. Default: on the head, none."
        ),
    ] = 0.0,
    entrypoint_resources: Annotated[
        list[str] | None,
        typer.Option(
            "--entrypoint-resource",
            metavar="NAME=AMOUNT",
            help="Resource of the machine of the driver; may be repeated.",
            show_default=False,
        ),
    ] = None,
    where: WhereOption = None,
    sample: SampleOption = None,
    shard: ShardOption = None,
    reasons: ReasonOption = None,
    max_age: MaxAgeOption = None,
    retry: RetryOption = None,
    order_by: OrderByOption = None,
    max_videos: MaxVideosOption = None,
    max_cost: MaxCostOption = None,
    deadline: DeadlineOption = None,
    time_zone: TimeZoneOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent, and stop.")] = False,
    log: LogOption = "auto",
    output: OutputOption = Format.TABLE,
) -> None:
    """Run a job (or a label job) on a Ray cluster, through its Job API.

    What is sent: this package, the job without comments, and the weights that
    it names. No credentials: a job that holds any is refused, and machines
    find theirs by the AWS chain (a role, a mounted secret). With --wait, a run
    whose driver or head is lost is submitted again; it does what is missing.

    Examples:

      $ kvq-batch submit nightly.toml --address http://HEAD:8265 --wait
      $ kvq-batch submit nightly.toml --dry-run --output json

    Exit codes: 0 submitted, 2 refused; with --wait those of `kvq-batch run`,
    1 where the driver is lost once too often, 130 where it is stopped.
    """
    from kvq_batch.engine.job_package import pack

    if restarts is not None and not wait:
        raise SpecError("--restarts needs --wait: Ray starts no driver again by itself, this command does")
    asked = job_as_asked(job, context, datetime.now(UTC))
    parcel = pack(asked, str(job), shared or (), carries_project=not installed)
    sending = JobSubmission(asked, parcel, log, entrypoint_num_cpus, parse_resources(entrypoint_resources or []))
    out = Output(output)
    if dry_run:
        _show(sending, out)
    elif wait:
        _submit_and_wait(sending, _api(address), 3 if restarts is None else restarts, out)
    else:
        api, submission = _api(address), sending.submission(1)
        api.submit(submission)
        out.record({**_named(submission), "address": api.address, **told_of(parcel)})
        out.note(f"to see its log:  {_command('logs', submission.job_id, api)} --follow")


def list_jobs(
    job_id: Annotated[
        str | None, typer.Argument(metavar="[JOB_ID]", help="All that is known of this one.", show_default=False)
    ] = None,
    address: HeadOption = None,
    all_: Annotated[bool, typer.Option("--all", help="Jobs of others, too.")] = False,
    output: OutputOption = Format.TABLE,
) -> None:
    """List the jobs that were submitted to a cluster, the newest first.

    `run_id` is what the tables call the run. Of one JOB_ID, with its last
    lines where it failed.

    Examples:

      $ kvq-batch jobs --address http://HEAD:8265
      $ kvq-batch jobs JOB_ID --output json
    """
    api, out = _api(address), Output(output)
    if job_id is None:
        found = [_row(job) for job in api.jobs() if all_ or "run_id" in job.metadata]
        out.rows(found, columns=_COLUMNS)
    else:
        job = api.job(job_id)
        out.record({**_row(job), "error_type": job.error_type, "message": job.message, "metadata": dict(job.metadata)})


def logs(
    job_id: JobIdArgument,
    address: HeadOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job is over.")] = False,
    output: OutputOption = Format.TABLE,
) -> None:
    """Print what the driver of a job has written, so far or until it ends.

    Examples:

      $ kvq-batch logs JOB_ID --address http://HEAD:8265
      $ kvq-batch logs JOB_ID --follow
    """
    from kvq_batch.engine.job_submission import follow as follow_job

    api, out = _api(address), Output(output)
    is_text = output is Format.TABLE
    watcher = _Watcher(out, out.text if is_text else None)
    if follow:
        if follow_job(api, job_id, watcher) is None:
            raise SpecError(f"{api.address} was started again meanwhile and does not know {job_id} any more")
    else:
        watcher.logged(api.log(job_id))
    if not is_text:
        lines = "".join(watcher.kept).splitlines()
        out.rows(({"line": number, "text": text} for number, text in enumerate(lines, 1)), columns=("line", "text"))


def stop(
    job_id: JobIdArgument,
    address: HeadOption = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it has ended.")] = True,
    output: OutputOption = Format.TABLE,
) -> None:
    """Stop a job as Ctrl-C stops a run: what is finished is committed.

    Example:

      $ kvq-batch stop JOB_ID --address http://HEAD:8265
    """
    from kvq_batch.engine.job_submission import wait_for_end

    api, out = _api(address), Output(output)
    was_running = api.stop(job_id)
    job = wait_for_end(api, job_id) if wait and was_running else api.job(job_id)
    out.record({"job_id": job_id, "was_running": was_running, "status": job.status})
    if not was_running:
        out.note(f"{job_id} was over already")


class _Watcher:
    """Our words as notes; the driver's log as it comes, or kept."""

    def __init__(self, output: Output, pass_on: Any) -> None:
        self.told = output.note
        self.kept: list[str] = []
        self.logged = pass_on or self.kept.append


def _submit_and_wait(sending: JobSubmission, api: "JobApi", restarts: int, out: Output) -> None:
    from kvq_batch.engine.job_submission import RetryPolicy, submit_and_wait

    started, sent = datetime.now(UTC), []

    def submission(number: int) -> "Submission":
        sent.append(sending.submission(number))
        return sent[-1]

    try:
        ending = submit_and_wait(api, submission, _Watcher(out, out.aside), RetryPolicy(restarts))
    except (KeyboardInterrupt, HeadUnavailableError):
        job_id = sent[-1].job_id
        out.note(f"{job_id} goes on without us; its log:  {_command('logs', job_id, api)} --follow")
        out.note(f"to stop it:  {_command('stop', job_id, api)}")
        raise
    out.record({
        **_named(sent[-1]),
        "status": ending.status,
        "exit_code": ending.exit_code,
        "submitted": ending.num_submitted,
        "seconds": round((datetime.now(UTC) - started).total_seconds(), 1),
    })  # fmt: skip
    if ending.exit_code:
        out.note(f"{ending.job_id} {ending.status.lower()}: {ending.message}")
        raise typer.Exit(ending.exit_code)


def _show(sending: JobSubmission, out: Output) -> None:
    from kvq_batch.engine.job_package import JOB_FILE

    parcel, told = sending.parcel, told_of(sending.parcel)
    record = {"job": sending.job.name, "entrypoint": sending.entrypoint("RUN_ID"), **told}
    if out.format is Format.JSON:
        content = parcel.files[JOB_FILE]
        assert isinstance(content, bytes)
        record["sizes_bytes"] = parcel.sizes_bytes
        record["job_file"] = content.decode()
    out.record(record)
    out.note("nothing was sent")


def _named(submission: "Submission") -> dict[str, Any]:
    return {
        "job_id": submission.job_id,
        "run_id": submission.metadata["run_id"],
        "job": submission.metadata["job_name"],
    }


_COLUMNS = ("job_id", "status", "job", "started", "seconds", "exit_code", "run_id")


def _row(job: "SubmittedJob") -> dict[str, Any]:
    seconds = None
    if job.started is not None:
        seconds = round(((job.ended or datetime.now(UTC)) - job.started).total_seconds(), 1)
    told = (job.job_id, job.status, job.metadata.get("job_name"), job.started, seconds, job.exit_code)
    return dict(zip(_COLUMNS, (*told, job.metadata.get("run_id")), strict=True))


def _api(address: str | None) -> "JobApi":
    """The Job API at `address`. Raises: SpecError where that is none, or nobody answers there."""
    from kvq_batch.engine.job_client import JobApi
    from kvq_batch.storage.redact import holds_secret

    if address is None:
        raise SpecError("--address http://HEAD:8265 (or RAY_API_SERVER_ADDRESS) says where the cluster is")
    if holds_secret(address):
        raise SpecError("--address holds credentials; leave them out: a token is set by RAY_AUTH_TOKEN_PATH=FILE")
    if not address.startswith(("http://", "https://")):
        raise SpecError(f"--address is the dashboard of the cluster, http://HEAD:8265, and not {address!r}")
    return JobApi(address.rstrip("/"))


def _command(name: str, job_id: str, api: "JobApi") -> str:
    return f"kvq-batch {name} {shlex.quote(job_id)} --address {shlex.quote(api.address)}"
