"""Commands that make and do jobs: init, catalog, plan, run, score.

Each turns its arguments into a job or a plan and hands it on; nothing is scored here.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvq_batch.cli.execution import command_line, execute, finish, show_plan
from kvq_batch.cli.logs import status, use_json_log
from kvq_batch.cli.options import (
    AddressOption,
    DeadlineOption,
    DeviceOption,
    DryRunOption,
    EndpointOption,
    JobArgument,
    LogOption,
    MaxAgeOption,
    MaxCostOption,
    MaxVideosOption,
    OrderByOption,
    OutputOption,
    ReasonOption,
    RegionOption,
    RetryOption,
    RunIdOption,
    SampleOption,
    ShardOption,
    TimeZoneOption,
    WhereOption,
)
from kvq_batch.cli.output import Format, Output
from kvq_batch.domain.errors import SpecError

if TYPE_CHECKING:
    from kvq_batch.config.job import Job
    from kvq_batch.planning.job_plan import JobPlan


def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The job file to write.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Write a new job file with every key, its default and its meaning.

    The file is valid as it is: it scores the folder `videos` with the
    small model in the box. Name your catalog, tables and models in it.

    Example:

      $ kvq-batch init nightly.toml
    """
    from kvq_batch.config.job import slug
    from kvq_batch.config.template import job_template

    if file.is_dir():
        raise SpecError(f"{file} is a folder; name the job file in it")
    if file.exists() and not force:
        raise SpecError(f"{file} is there already; name another file, or say --force")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(job_template(slug(file.stem)), encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{file} cannot be written: {error.strerror}") from error
    Output().note(f"wrote {file}: set catalog.source, tables and models in it, then  {command_line('plan', file)}")


def catalog(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Folder, prefix or glob of video files.", show_default=False)
    ],
    out: Annotated[
        str, typer.Option("--out", help="Catalog file to write: .parquet, .csv or .jsonl.", show_default=False)
    ],
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
) -> None:
    """List a folder, prefix or glob of videos into a catalog file.

    A video's id is its path below the folder. Add columns of your own to the
    file (country, uploader, ...): they can be asked for beside the scores.

    Examples:

      $ kvq-batch catalog videos/ --out catalog.csv
      $ kvq-batch catalog "s3://bucket/2026/**/*.mp4" --out catalog.parquet
    """
    from kvq_batch.catalog.reader import read_catalog, write_catalog
    from kvq_batch.config.job import Catalog
    from kvq_batch.storage.options import StorageOptions

    storage = StorageOptions(endpoint_url, region)
    listed = read_catalog(Catalog(source=source), storage)
    write_catalog(listed, out, storage)
    Output().note(f"wrote {out}: {listed.num_rows} videos")


def plan(
    context: typer.Context,
    job: JobArgument,
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
    output: OutputOption = Format.TABLE,
) -> None:
    """Show what a run would do, and why; touches no video.

    Reasons: new, content changed, model changed, preprocessing changed,
    retry (an earlier run failed, and that may pass), re-score (older than
    --max-age). `run` with the same options does exactly this.

    Examples:

      $ kvq-batch plan nightly.toml
      $ kvq-batch plan nightly.toml --reason model-changed --sample 1%
      $ kvq-batch plan nightly.toml --output json
    """
    from kvq_batch.config.load import load_job

    show_plan(_planned(as_asked(load_job(job), context)), Output(output))


def run(
    context: typer.Context,
    job: JobArgument,
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
    address: AddressOption = None,
    run_id: RunIdOption = None,
    dry_run: DryRunOption = False,
    log: LogOption = "auto",
    output: OutputOption = Format.TABLE,
) -> None:
    """Score what is new, changed, or scored by an older model; nothing else.

    The same command again goes on where the tables say: it does the rest, or
    nothing. Ctrl-C commits what is finished; once more stops at once.

    Examples:

      $ kvq-batch run nightly.toml
      $ kvq-batch run nightly.toml --max-videos 100 --log json 2> run.log
      $ kvq-batch run nightly.toml --order-by "views desc" --deadline 06:00
      $ kvq-batch run nightly.toml --shard 2/4    # beside 1/4, 3/4 and 4/4

    Exit codes: 0 all scored, or failures within run.max_failure_share;
    1 fatal; 2 refused before anything started; 3 more failures;
    4 the budget ended before the plan; 130 Ctrl-C.
    """
    from kvq_batch.config.load import load_job

    if log == "json":
        use_json_log(context)
    planned = _planned(as_asked(load_job(job), context))
    if dry_run:
        return show_plan(planned, Output(output))
    summary = execute(planned, context, address, run_id)
    finish(summary, planned, Output(output), command_line("run", job) + (f" --shard {shard}" if shard else ""))
    return None


def score(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="Video, folder, prefix, glob or catalog file.", show_default=False),
    ],
    tables: Annotated[
        str, typer.Option("--tables", help="Folder or s3:// prefix of the result tables.", show_default=False)
    ],
    model: Annotated[str, typer.Option("--model", help="Model; see `kvq-batch models`.")] = "kvq-lite",
    weights: Annotated[
        str | None, typer.Option("--weights", help="File with the model's weights.", show_default=False)
    ] = None,
    device: DeviceOption = "cpu",
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
    address: AddressOption = None,
    dry_run: DryRunOption = False,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    log: LogOption = "auto",
    output: OutputOption = Format.TABLE,
) -> None:
    """Score a video, a folder or a catalog without a job file.

    As `run`, with defaults; any failure ends with exit code 3, a budget that
    ends before the plan with 4.

    Examples:

      $ kvq-batch score videos/ --tables quality/
      $ kvq-batch score videos/ --tables quality/ --model kvq --weights KVQ.pth
    """
    if log == "json":
        use_json_log(context)
    planned = _planned(as_asked(score_job(source, tables, model, weights, device, endpoint_url, region), context))
    if dry_run:
        return show_plan(planned, Output(output))
    summary = execute(planned, context, address)
    finish(summary, planned, Output(output), "the same command")
    return None


def score_job(
    source: str,
    tables: str,
    model: str,
    weights: str | None,
    device: str,
    endpoint_url: str | None,
    region: str | None,
) -> "Job":
    """The job that `score` runs: any failure counts, nothing is left to a file."""
    from kvq_batch.config.job import slug
    from kvq_batch.config.load import make_job

    values: dict[str, Any] = {
        "name": slug(f"score-{Path(source.rstrip('/')).name}"),
        "tables": tables,
        "catalog": {"source": source},
        "models": [{"name": model, "weights": weights, "device": device, "workers": gpu_share(device)}],
        "decode": {"workers": {"max": max(1, (os.cpu_count() or 2) - 1)}},
        "run": {"max_failure_share": 0.0},
        "storage": {"endpoint_url": endpoint_url, "region": region},
    }
    return make_job(values, origin="kvq-batch score")


def gpu_share(device: str) -> dict[str, float]:
    """Workers of a scoring stage that runs on `device`: a whole card each, or CPU alone."""
    return {"num_gpus": 1.0} if device == "cuda" else {}


def as_asked(job: "Job", context: typer.Context) -> "Job":
    """The job with what the command line says of its selection and its budget, by options that are named like keys."""
    from kvq_batch.config.budget import Budget
    from kvq_batch.config.load import with_values
    from kvq_batch.config.selection import Select

    asked = {
        section: {key: context.params.get(key) or None for key in model.model_fields}
        for section, model in (("select", Select), ("budget", Budget))
    }
    return with_values(job, asked, origin="the command line")


def _planned(job: "Job") -> "JobPlan":
    from kvq_batch.planning.job_plan import plan_job

    with status("planning"):
        return plan_job(job)
