"""Commands that make and do jobs: init, catalog, plan, run, score.

Each turns its arguments into a job or a plan and hands it on; nothing is scored here.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvq_batch.cli.options import (
    AddressOption,
    DryRunOption,
    EndpointOption,
    JobArgument,
    LimitOption,
    OutputOption,
    RegionOption,
)
from kvq_batch.cli.output import Format, Output
from kvq_batch.domain.errors import SpecError

if TYPE_CHECKING:
    from kvq_batch.engine.planning import JobPlan
    from kvq_batch.engine.summary import RunSummary
    from kvq_batch.spec.job import Job

LogOption = Annotated[
    str, typer.Option("--log", help='"auto": a bar on a terminal. "json": one JSON object a line on stderr.')
]


def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The job file to write.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Write a new job file with every key, its default and its meaning.

    Example:  kvq-batch init jobs/nightly.toml
    """
    from kvq_batch.spec.job import slug
    from kvq_batch.spec.template import job_template

    if file.exists() and not force:
        raise SpecError(f"{file} is there already; name another file, or say --force")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(job_template(slug(file.stem)), encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{file} cannot be written: {error.strerror}") from error
    Output().note(f"wrote {file}: set catalog.source, tables and models, then  kvq-batch plan {file}")


def catalog(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder, prefix or glob of video files.")],
    out: Annotated[str, typer.Option("--out", help="Catalog file to write: .parquet, .csv or .jsonl.")],
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
) -> None:
    """List a folder, prefix or glob of videos into a catalog file.

    Example:  kvq-batch catalog s3://bucket/videos/ --out catalog.parquet
    """
    from kvq_batch.io.catalog import read_catalog, write_catalog
    from kvq_batch.io.storage import StorageOptions
    from kvq_batch.spec.job import Catalog

    storage = StorageOptions(endpoint_url, region)
    listed = read_catalog(Catalog(source=source), storage)
    write_catalog(listed, out, storage)
    Output().note(f"wrote {out}: {listed.num_rows} videos")


def plan(job: JobArgument, output: OutputOption = Format.TABLE) -> None:
    """Show what a run would do, and why; touches no video.

    Example:  kvq-batch plan jobs/nightly.toml --output json
    """
    from kvq_batch.spec.load import load_job

    show_plan(_planned(load_job(job)), Output(output))


def run(
    job: JobArgument,
    limit: LimitOption = None,
    address: AddressOption = None,
    dry_run: DryRunOption = False,
    log: LogOption = "auto",
    output: OutputOption = Format.TABLE,
) -> None:
    """Score what is new, changed, or scored by an older model; nothing else.

    The same command again goes on where the tables say. Ctrl-C commits what is finished.

    Example:  kvq-batch run jobs/nightly.toml --limit 100
    """
    from kvq_batch.spec.load import load_job

    loaded = load_job(job)
    planned = _planned(loaded)
    if dry_run:
        return show_plan(planned, Output(output))
    finish(execute(planned, limit, address, log), planned, Output(output), f"kvq-batch run {job}")
    return None


def score(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Video, folder, prefix, glob or catalog file.")],
    tables: Annotated[str, typer.Option("--tables", help="Folder or s3:// prefix of the result tables.")],
    model: Annotated[str, typer.Option("--model", help="Model; see `kvq-batch models`.")] = "kvq-tiny",
    weights: Annotated[
        str | None, typer.Option("--weights", help="File with the model's weights.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option("--device", help='"cpu" or "cuda".')] = "cpu",
    limit: LimitOption = None,
    address: AddressOption = None,
    dry_run: DryRunOption = False,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    log: LogOption = "auto",
    output: OutputOption = Format.TABLE,
) -> None:
    """Score a folder of videos without a job file.

    Example:  kvq-batch score videos/ --tables quality/ --model kvq --weights KVQ.pth
    """
    job = score_job(source, tables, model, weights, device, endpoint_url, region)
    planned = _planned(job)
    if dry_run:
        return show_plan(planned, Output(output))
    finish(execute(planned, limit, address, log), planned, Output(output), "the same command")
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
    from kvq_batch.spec.job import slug
    from kvq_batch.spec.load import make_job

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


def show_plan(planned: "JobPlan", output: Output) -> None:
    """Pairs by reason and model, and what the catalog lost."""
    plan = planned.plan
    rows = [
        {"reason": reason, "model": model.ref.name, "videos": plan.counts[reason][model.ref.name]}
        for reason in plan.counts
        for model in planned.models.models
    ]
    output.rows(rows, title=f"{planned.job.name}: {plan.pairs.num_rows} to score")
    output.note(
        f"{planned.catalog.num_rows} videos in the catalog; {plan.num_current} scores are current, "
        f"{plan.num_quarantined} are not tried again (permanent failures), {len(plan.departed)} videos left the catalog"
    )
    output.warn_untrained([model.spec.card.origin for model in planned.models.models])


def execute(planned: "JobPlan", limit: int | None, address: str | None, log: str) -> "RunSummary":
    """Run the plan with progress on stderr; Ctrl-C stops it at the next result."""
    from kvq_batch.cli.progress import JsonLog, RunProgress
    from kvq_batch.engine.run import RunOptions, run_job

    # Ray's C++ side writes advice of its own to our stderr; only what ends it is worth a person's time.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    job = planned.job
    if log not in ("auto", "json"):
        raise SpecError(f"--log {log}: say auto or json")
    score_workers = sum(model.workers.max for model in job.models)
    with (
        stopping_on_signals() as stop,
        JsonLog() if log == "json" else RunProgress(job.decode.workers.max, score_workers) as observer,
    ):
        return run_job(planned, observer, RunOptions(address=address, limit=limit, stop=stop))


@contextmanager
def stopping_on_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets; a second signal interrupts at once."""
    stop = threading.Event()

    def ask(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        Output().note("stopping: committing what is finished (again to stop at once)")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def finish(summary: "RunSummary", planned: "JobPlan", output: Output, again: str) -> None:
    """Print the summary and leave with the exit code that it deserves."""
    from kvq_batch.engine.run import INTERRUPTED

    output.record(
        {
            "run": summary.run_id,
            "state": summary.state,
            "videos": summary.num_videos,
            "planned": summary.num_planned,
            "scored": summary.num_scored,
            "failed": summary.num_failed,
            "not reached": summary.num_not_reached,
            "tried again": summary.num_retried,
            "seconds": round(summary.seconds, 1),
            "videos/s": round(summary.videos_per_s, 2),
        },
        title=f"{planned.job.name}",
    )
    output.warn_untrained([model.spec.card.origin for model in planned.models.models])
    tables = planned.job.tables
    if summary.num_failed:
        output.note(f"{summary.num_failed} failed: see  kvq-batch failures {tables}")
    if summary.num_not_reached:
        output.note(f"stopped with {summary.num_not_reached} not reached; to go on:  {again}")
    if summary.message == INTERRUPTED:
        raise typer.Exit(130)
    limit = planned.job.run.max_failure_share
    if summary.failure_share > limit:
        output.note(f"{summary.failure_share:.1%} of the videos failed, more than run.max_failure_share = {limit:.1%}")
        raise typer.Exit(3)


def _planned(job: "Job") -> "JobPlan":
    from rich.console import Console

    from kvq_batch.engine.planning import plan_job

    with Console(stderr=True).status("planning") as status:
        return plan_job(job, status.update)
