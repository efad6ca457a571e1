"""The commands `init`, `catalog`, `plan`, `run` and `score`."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvq_batch.cli.execution import (
    check_report,
    command_line,
    continue_command,
    execute,
    finish,
    finish_with_scores,
    plan_with_status,
    print_scores,
    show_plan,
)
from kvq_batch.cli.logs import use_json_log
from kvq_batch.cli.options import (
    AddressOption,
    DeadlineOption,
    DeviceOption,
    DryRunOption,
    EndpointOption,
    ExecutorOption,
    IncludePermanentOption,
    JobArgument,
    LogOption,
    MaxAgeOption,
    MaxCostOption,
    MaxVideosOption,
    ModelOption,
    OrderByOption,
    OutputOption,
    ReasonOption,
    RegionOption,
    ReportOption,
    RunIdOption,
    SampleOption,
    ShardOption,
    TimeZoneOption,
    WeightsOption,
    WhereOption,
)
from kvq_batch.cli.output import Format, Output
from kvq_batch.domain.errors import FatalError, SpecError

if TYPE_CHECKING:
    from kvq_batch.config.job import Job


class JobKind(StrEnum):
    """Kinds of job files that `init` writes."""

    SCORE = "score"
    NIGHTLY = "nightly"
    REGIONS = "regions"
    BACKFILL = "backfill"
    LABELS = "labels"
    TRAIN = "train"


# How the command that `init` recommends next is called.
_NEXT_COMMAND = {JobKind.LABELS: "labels make", JobKind.TRAIN: "train"}


def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Job file to write.", show_default=False)],
    kind: Annotated[JobKind, typer.Option("--kind", help="Kind of job to write.")] = JobKind.SCORE,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a new job file with comments.

    The default kind, score, lists every key with its default and meaning. It
    is valid as it is: it scores the folder `videos` with KVQ-Lite. The other
    kinds are examples of nightly re-scoring, quality by region, backfilling
    of an archive, label making and training.

    Examples:

      $ kvq-batch init job.toml
      $ kvq-batch init nightly.toml --kind nightly
    """
    from kvq_batch.config.job import slug
    from kvq_batch.config.load import example_job, job_template

    if file.is_dir():
        raise SpecError(f"{file} is a folder. Name a file in it.")
    if file.exists() and not force:
        raise SpecError(f"{file} exists. Name another file, or overwrite it with --force.")
    name = slug(file.stem)
    text = job_template(name) if kind is JobKind.SCORE else example_job(kind.value, name)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SpecError(f"Cannot write {file}: {error.strerror}.") from error
    command = command_line(_NEXT_COMMAND.get(kind, "plan"), file) + " --dry-run" * (kind in _NEXT_COMMAND)
    Output().note(f"wrote {file}; edit it, then run:  {command}")


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
    """List the videos of a folder, prefix or glob in a catalog file.

    The id of a video is its path below the folder. You can add columns to the
    file (country, uploader, ...) and query them together with the scores.

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
    include_permanent: IncludePermanentOption = False,
    order_by: OrderByOption = None,
    max_videos: MaxVideosOption = None,
    max_cost: MaxCostOption = None,
    deadline: DeadlineOption = None,
    time_zone: TimeZoneOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Show what a run would do, and why. Reads no video.

    Reasons: new, content changed, model changed, preprocessing changed,
    retry (the last run failed), re-score (older than --max-age), features
    missing (the job stores them). `run` with the same options executes this
    plan.

    Examples:

      $ kvq-batch plan nightly.toml
      $ kvq-batch plan nightly.toml --reason model-changed --sample 1%
      $ kvq-batch plan nightly.toml --output json
    """
    from kvq_batch.config.load import load_job

    show_plan(plan_with_status(override_job(load_job(job), context)), Output(output))


def run(
    context: typer.Context,
    job: JobArgument,
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
    address: AddressOption = None,
    executor: ExecutorOption = None,
    run_id: RunIdOption = None,
    dry_run: DryRunOption = False,
    report: ReportOption = None,
    log: LogOption = "auto",
    output: OutputOption = Format.TABLE,
) -> None:
    """Score what is new, changed, or scored by an older model.

    Run the same command again to continue: it does only what remains. Ctrl-C
    commits what is finished; press it again to stop at once.

    Examples:

      $ kvq-batch run nightly.toml
      $ kvq-batch run nightly.toml --report report.html
      $ kvq-batch run nightly.toml --max-videos 100 --log json 2> run.log
      $ kvq-batch run nightly.toml --order-by "views desc" --deadline 06:00
      $ kvq-batch run nightly.toml --shard 2/4    # next to 1/4, 3/4 and 4/4

    Exit codes: 0 all scored, or failures within run.max_failure_share;
    1 fatal; 2 rejected before start; 3 more failures; 4 the budget ended
    before the plan; 5 a guard with the action fail; 130 Ctrl-C.
    """
    from kvq_batch.config.load import load_job

    if log == "json":
        use_json_log(context)
    check_report(report)
    planned = plan_with_status(override_job(load_job(job), context))
    if dry_run:
        return show_plan(planned, Output(output))
    summary = execute(planned, context, address, run_id, executor)
    finish(summary, planned, Output(output), continue_command("run", job, run_id, shard), report)
    return None


def score(
    context: typer.Context,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Video, folder, prefix, glob or catalog file; several videos without --tables.",
            show_default=False,
        ),
    ],
    tables: Annotated[
        str | None,
        typer.Option(
            "--tables",
            help="Folder or s3:// prefix that keeps the results. Default: print the scores only.",
            show_default=False,
        ),
    ] = None,
    model: ModelOption = "kvq-lite",
    weights: WeightsOption = None,
    device: DeviceOption = "cpu",
    features: Annotated[bool, typer.Option("--features", help="Store the features of the model, too.")] = False,
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
    address: AddressOption = None,
    executor: ExecutorOption = None,
    dry_run: DryRunOption = False,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    log: LogOption = "auto",
    output: OutputOption = Format.TABLE,
) -> None:
    """Score a video, a folder or a catalog without a job file.

    Works like `run` with default settings. Without --tables it prints the
    scores, the worst video first, names the videos that failed, and keeps
    nothing. The exit code is 3 after any failure, and 4 if the budget ends
    before the plan.

    Examples:

      $ kvq-batch score videos/
      $ kvq-batch score one.mp4 two.mp4
      $ kvq-batch score videos/ --output csv > scores.csv
      $ kvq-batch score videos/ --tables quality/
      $ kvq-batch score videos/ --tables quality/ --model kvq --weights KVQ.pth
    """
    from kvq_batch.engine.score_run import adhoc_job, list_sources, tables_or_temporary

    if log == "json":
        use_json_log(context)
    if len(sources) > 1 and tables is not None:
        raise SpecError(
            "Several videos cannot be kept with --tables: name their folder, or a catalog file that lists them."
        )
    with tables_or_temporary(tables) as folder:
        source = sources[0] if len(sources) == 1 else list_sources(sources, folder)
        job = adhoc_job(source, folder, model, weights, device, endpoint_url, region, features)
        planned, out = plan_with_status(override_job(job, context)), Output(output)
        if dry_run:
            return show_plan(planned, out)
        try:
            summary = execute(planned, context, address, executor=executor)
        except FatalError:
            # What was committed before is deleted with the folder.
            if tables is None and Path(folder).exists():
                print_scores(planned, out)
            raise
        if tables is None:
            finish_with_scores(summary, planned, out)
        else:
            finish(summary, planned, out, "the same command")
    return None


def override_job(job: "Job", context: typer.Context) -> "Job":
    """Return the job with selection and budget overridden by the options of the command, which are named like keys."""
    from kvq_batch.config.job import Budget, Select
    from kvq_batch.config.load import with_values

    values = {
        section: {key: context.params.get(key) or None for key in model.model_fields}
        for section, model in (("select", Select), ("budget", Budget))
    }
    return with_values(job, values, origin="the command line")
