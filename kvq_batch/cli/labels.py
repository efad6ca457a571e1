"""Commands that make training data: labels make, export, import, distortions.

They turn their arguments into a job, a plan or a question and hand it on; no pixel is touched here.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kvq_batch.cli.execution import command_line, observer_of, stop_on_signals
from kvq_batch.cli.logs import status, use_json_log
from kvq_batch.cli.options import (
    AddressOption,
    DryRunOption,
    EndpointOption,
    LogOption,
    OutputOption,
    RegionOption,
    RunIdOption,
    TablesArgument,
)
from kvq_batch.cli.output import Format, Output

if TYPE_CHECKING:
    from kvq_batch.engine.run_recorder import RunSummary
    from kvq_batch.labeling.planning import LabelPlan

app = typer.Typer(no_args_is_help=True, help="Make labels for training: degraded versions, each with what it is worth.")


@app.command()
def make(
    context: typer.Context,
    job: Annotated[
        Path, typer.Argument(metavar="JOB", help="Label job (TOML); jobs/labels.toml is one.", show_default=False)
    ],
    dry_run: DryRunOption = False,
    address: AddressOption = None,
    run_id: RunIdOption = None,
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
    from kvq_batch.config.load import load_label_job
    from kvq_batch.engine.run import RunOptions
    from kvq_batch.labeling.planning import plan_labels
    from kvq_batch.labeling.run import run_labels

    if log == "json":
        use_json_log(context)
    out = Output(output)
    with status("planning"):
        planned = plan_labels(load_label_job(job))
    if dry_run:
        _show_plan(planned, out)
        return
    observer = observer_of(context, {"make": planned.job.make.workers.max}, "renditions", "labelled")
    with stop_on_signals() as stop, observer:
        summary = run_labels(planned, observer, RunOptions(address, stop=stop, run_id=run_id))
    _finish(summary, planned, out, command_line("labels make", job))


@app.command()
def export(
    tables: TablesArgument,
    out: Annotated[str, typer.Option("--out", help="New folder or prefix for the set.", show_default=False)],
    form: Annotated[
        Literal["parquet", "csv", "list", "webdataset"],
        typer.Option("--format", help="list: `file, -1, -1, mos`. webdataset: tar shards with the clips."),
    ] = "parquet",
    target: Annotated[
        Literal["labels", "opinions", "teacher"],
        typer.Option("--target", help="Made labels, imported opinions, or what a model of these tables says."),
    ] = "labels",
    where: Annotated[
        str | None, typer.Option("--where", help="SQL condition over the columns of the view.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The teacher, by its name in the registry.", show_default=False)
    ] = None,
    stratify: Annotated[
        int | None,
        typer.Option("--stratify", min=2, help="Ranges of label; none keeps over an even share.", show_default=False),
    ] = None,
    split: Annotated[
        str, typer.Option("--split", help="Shares of train, validation and test, by whole sources.")
    ] = "80/10/10",
    part: Annotated[
        str | None,
        typer.Option("--part", help="SQL that names the part of each row, instead of shares.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Another seed: another split.")] = 0,
    clips: Annotated[
        Literal["file", "frames"],
        typer.Option("--clips", help="webdataset: kept file, or RGB frames (.npy)."),
    ] = "file",
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Write a training set out of the tables, split so that no source stands in two parts.

    Columns: video_id, uri, mos (the label), scene_id, group_id, split,
    cells (a .npy file, [slot, row, column]), and those of the view.

    Examples:

      $ kvq-batch labels export tables --out set
      $ kvq-batch labels export tables --out set --where "kind <> 'mix'"
      $ kvq-batch labels export tables --out shards --format webdataset
    """
    from kvq_batch.labels.export import SetRequest, export_set
    from kvq_batch.labels.splits import parse_shares
    from kvq_batch.labels.tar_shards import SetFolder
    from kvq_batch.storage.options import StorageOptions
    from kvq_batch.tables.session import open_session

    storage, shown = StorageOptions(endpoint_url, region), Output(output)
    request = SetRequest(target, form, parse_shares(split), where, model, stratify, seed, clips, part)
    with open_session(tables, storage) as session:
        summary = export_set(session, request, SetFolder(out, storage), storage)
    shown.rows(
        [{"part": part, "clips": num, "sources": summary.num_sources[part]} for part, num in summary.num_clips.items()]
    )
    shown.note(f"wrote {', '.join(summary.files)}")
    if summary.num_left_out:
        shown.note(f"{summary.num_left_out} clips of crowded ranges are left out")


@app.command("import")
def import_(
    source: Annotated[
        str,
        typer.Argument(metavar="FILE", help="CSV, Parquet, JSON lines, or `file, -1, -1, mos`.", show_default=False),
    ],
    tables: Annotated[str, typer.Option("--tables", help="Folder or s3:// prefix of the tables.", show_default=False)],
    scale: Annotated[
        str, typer.Option("--scale", help="Lowest and highest opinion of the study: 1..5, 0..100.", show_default=False)
    ],
    better: Annotated[
        Literal["high", "low"], typer.Option("--better", help="Which end of the scale is good (DMOS: low).")
    ] = "high",
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Name of the data set. Default: the file's.", show_default=False)
    ] = None,
    id_column: Annotated[
        str | None, typer.Option("--id-column", help="Column that names the video.", show_default=False)
    ] = None,
    mos_column: Annotated[
        str | None, typer.Option("--mos-column", help="Column with the opinion.", show_default=False)
    ] = None,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Take mean opinions of people into the tables, on the scale that is named.

    A value that is no number or outside the scale refuses the whole list, by
    its line. The same data set again replaces what it said before.

    Example:

      $ kvq-batch labels import mos.csv --scale 1..5 --tables quality
    """
    from kvq_batch.labels.files import Scale
    from kvq_batch.labels.opinions import OpinionList, import_opinions
    from kvq_batch.storage.options import StorageOptions

    shown = Output(output)
    wanted = OpinionList(source, Scale.from_text(scale), better, dataset, id_column, mos_column)
    done = import_opinions(tables, StorageOptions(endpoint_url, region), wanted)
    shown.record(
        {
            "dataset": done.dataset,
            "opinions": done.num_opinions,
            "withdrawn": done.num_withdrawn,
            "in_catalog": done.num_in_catalog,
        }
    )
    shown.note(done.told)


@app.command()
def distortions(output: OutputOption = Format.TABLE) -> None:
    """List the distortions that a job may name, and what their amounts mean.

    Example:

      $ kvq-batch labels distortions
    """
    from kvq_batch.config.recipe import STEPS

    rows = [
        {"name": name, "amount": kind.unit, "from": kind.low, "to": kind.high, "codec": kind.is_codec}
        for name, kind in STEPS.items()
    ]
    Output(output).rows(rows)


def _show_plan(planned: "LabelPlan", output: Output) -> None:
    output.record(
        {
            "job": planned.job.name,
            "sources": planned.num_references,
            "segments": planned.num_segments,
            "to_make": planned.renditions.num_rows,
            "standing": planned.num_current,
            "not_tried_again": planned.num_quarantined,
        }
    )


def _finish(summary: "RunSummary", planned: "LabelPlan", output: Output, again: str) -> None:
    """Prints the summary and leaves with the exit code that it deserves."""
    from kvq_batch.engine.stopping import INTERRUPTED

    output.record(
        {
            "run_id": summary.run_id,
            "job": planned.job.name,
            "state": summary.state,
            "sources": summary.num_videos,
            "segments": planned.num_segments,
            "planned": summary.num_planned,
            "labelled": summary.num_scored,
            "failed": summary.num_failed,
            "not_reached": summary.num_remaining,
            "tried_again": summary.num_retried,
            "seconds": round(summary.seconds, 1),
            "labels_per_worker_hour": round(summary.results_per_worker_hour),
        }
    )
    tables = planned.job.tables
    if not summary.num_planned:
        output.note("nothing to make: every version has its label")
    if summary.num_failed:
        output.note(f"{summary.num_failed} failed; to see why:  {command_line('failures', tables)}")
    if summary.num_scored:
        question = "SELECT scene_id, name, vmaf FROM labels ORDER BY scene_id, vmaf"
        output.note(f'the labels:  {command_line("query", tables)} "{question}"')
        output.note("They are VMAF against the source, and no opinions of people.")
    if summary.num_remaining:
        output.note(f"stopped with {summary.num_remaining} not reached; to go on:  {again}")
    if summary.message == INTERRUPTED:
        raise typer.Exit(130)
    limit = planned.job.run.max_failure_share
    if summary.failure_share > limit:
        output.note(f"{summary.failure_share:.1%} of the versions failed; run.max_failure_share is {limit:.1%}")
        raise typer.Exit(3)
