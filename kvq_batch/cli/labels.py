"""Commands that make training data: labels make, distortions.

They turn their arguments into a job, a plan or a question and hand it on; no pixel is touched here.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvq_batch.cli.execution import command_line, stopping_on_signals
from kvq_batch.cli.options import AddressOption, DryRunOption, LogOption, OutputOption
from kvq_batch.cli.output import Format, Output
from kvq_batch.cli.progress import RunProgress, log_of, use_log

if TYPE_CHECKING:
    from kvq_batch.engine.label_planning import LabelPlan
    from kvq_batch.engine.label_run import LabelSummary

app = typer.Typer(no_args_is_help=True, help="Make labels for training: degraded versions, each with what it is worth.")


@app.command()
def make(
    context: typer.Context,
    job: Annotated[
        Path, typer.Argument(metavar="JOB", help="Label job (TOML); jobs/labels.toml is one.", show_default=False)
    ],
    dry_run: DryRunOption = False,
    address: AddressOption = None,
    log: LogOption = "auto",
    output: OutputOption = Format.TABLE,
) -> None:
    """Make degraded versions of sources and label them with VMAF.

    The same command again makes what is missing, or nothing. Ctrl-C commits
    what is finished. Labels are VMAF against the source, not opinions.

    Examples:

      $ kvq-batch labels make jobs/labels.toml --dry-run
      $ kvq-batch labels make jobs/labels.toml

    Exit codes: as `kvq-batch run`.
    """
    from rich.console import Console

    from kvq_batch.engine.label_planning import plan_labels
    from kvq_batch.engine.label_run import LabelOptions, run_labels
    from kvq_batch.spec.load import load_label_job

    told = use_log(context).told if log == "json" else None
    out = Output(output, told)
    with Console(stderr=True).status("planning") as status:
        planned = plan_labels(load_label_job(job), status.update)
    if dry_run:
        _show_plan(planned, out)
        return
    most = planned.job.make.workers.max
    observer = log_of(context) or RunProgress({"make": most}, "versions", "labelled")
    with stopping_on_signals(observer.note) as stop, observer:
        summary = run_labels(planned, observer, LabelOptions(address, stop=stop))
    _finish(summary, planned, out, command_line("labels make", job))


@app.command()
def distortions(output: OutputOption = Format.TABLE) -> None:
    """List the distortions that a job may name, and what their amounts mean.

    Example:

      $ kvq-batch labels distortions
    """
    from kvq_batch.domain.recipe import STEPS

    rows = [
        {"name": name, "amount": kind.unit, "from": kind.low, "to": kind.high, "codec": kind.is_codec}
        for name, kind in STEPS.items()
    ]
    Output(output).rows(rows)


def _show_plan(planned: "LabelPlan", output: Output) -> None:
    output.record(
        {
            "job": planned.job.name,
            "sources": planned.num_sources,
            "segments": planned.num_segments,
            "to_make": planned.versions.num_rows,
            "standing": planned.num_standing,
            "not_tried_again": planned.num_given_up,
        }
    )


def _finish(summary: "LabelSummary", planned: "LabelPlan", output: Output, again: str) -> None:
    """Prints the summary and leaves with the exit code that it deserves."""
    from kvq_batch.engine.budget import INTERRUPTED

    output.record(
        {
            "run_id": summary.run_id,
            "job": planned.job.name,
            "state": summary.state,
            "sources": summary.num_sources,
            "segments": summary.num_segments,
            "planned": summary.num_planned,
            "labelled": summary.num_made,
            "failed": summary.num_failed,
            "not_reached": summary.num_not_reached,
            "tried_again": summary.num_retried,
            "seconds": round(summary.seconds, 1),
            "labels_per_core_hour": round(summary.labels_per_core_hour),
        }
    )
    tables = planned.job.tables
    if not summary.num_planned:
        output.note("nothing to make: every version has its label")
    if summary.num_failed:
        output.note(f"{summary.num_failed} failed; to see why:  {command_line('failures', tables)}")
    if summary.num_made:
        question = "SELECT source_id, name, vmaf FROM labels ORDER BY source_id, vmaf"
        output.note(f'the labels:  {command_line("query", tables)} "{question}"')
        output.note("They are VMAF against the source, and no opinions of people.")
    if summary.num_not_reached:
        output.note(f"stopped with {summary.num_not_reached} not reached; to go on:  {again}")
    if summary.message == INTERRUPTED:
        raise typer.Exit(130)
    limit = planned.job.run.max_failure_share
    if summary.failure_share > limit:
        output.note(f"{summary.failure_share:.1%} of the versions failed; run.max_failure_share is {limit:.1%}")
        raise typer.Exit(3)
