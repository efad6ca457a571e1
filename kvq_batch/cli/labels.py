"""The commands `labels make`, `export`, `import` and `degradations`: labels and training sets."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kvq_batch.cli.execution import continue_command, exit_with_outcome, observer_of, stop_on_signals, tables_command
from kvq_batch.cli.logs import status, use_json_log
from kvq_batch.cli.options import (
    AddressOption,
    DryRunOption,
    EndpointOption,
    ExecutorOption,
    IdColumnOption,
    LabelJobArgument,
    LogOption,
    MosColumnOption,
    OutputOption,
    RegionOption,
    RunIdOption,
    TablesArgument,
    TablesOption,
    VmafOption,
)
from kvq_batch.cli.output import Format, Output
from kvq_batch.domain.errors import SpecError

if TYPE_CHECKING:
    from kvq_batch.engine.run_recorder import RunSummary
    from kvq_batch.labeling.planning import LabelPlan

app = typer.Typer(no_args_is_help=True, help="Make labels and training sets: degraded renditions with their VMAF.")


@app.command()
def make(
    context: typer.Context,
    job: LabelJobArgument,
    dry_run: DryRunOption = False,
    address: AddressOption = None,
    executor: ExecutorOption = None,
    run_id: RunIdOption = None,
    log: LogOption = "auto",
    output: OutputOption = Format.TABLE,
) -> None:
    """Make degraded renditions of references and label them with VMAF.

    Run the same command again to make what is missing. Ctrl-C commits what is
    finished. Labels are VMAF against the reference, not opinions.

    Examples:

      $ kvq-batch labels make labels.toml --dry-run
      $ kvq-batch labels make labels.toml

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
        summary = run_labels(planned, observer, RunOptions(address, stop=stop, run_id=run_id, executor=executor))
    _finish(summary, planned, out, continue_command("labels make", job, run_id))


@app.command()
def export(
    tables: TablesArgument,
    out: Annotated[str, typer.Option("--out", help="New folder or prefix for the training set.", show_default=False)],
    form: Annotated[
        Literal["parquet", "csv", "list", "webdataset"],
        typer.Option("--format", help="list: `file, -1, -1, mos`. webdataset: tar shards with clips."),
    ] = "parquet",
    target: Annotated[
        Literal["labels", "opinions", "teacher", "features"],
        typer.Option("--target", help="Made labels, imported opinions, scores of a teacher, or stored features."),
    ] = "labels",
    where: Annotated[
        str | None,
        typer.Option("--where", help="SQL condition over the columns of the target's view.", show_default=False),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Teacher, features: a model of these tables.", show_default=False)
    ] = None,
    stratify: Annotated[
        int | None,
        typer.Option("--stratify", min=2, help="Balance the labels over n ranges of equal width.", show_default=False),
    ] = None,
    split: Annotated[
        str, typer.Option("--split", help="Shares of train, validation and test, by whole scenes.")
    ] = "80/10/10",
    split_sql: Annotated[
        str | None,
        typer.Option("--split-sql", help="SQL expression for the split of each row, not shares.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the split.")] = 0,
    clips: Annotated[
        Literal["file", "frames"],
        typer.Option("--clips", help="webdataset: stored file, or RGB frames (.npy)."),
    ] = "file",
    vmaf: VmafOption = "v0.6.1",
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Export a training set. No scene is in two splits.

    Columns: video_id, uri, the label (mos, or raw_score of a teacher),
    scene_id, group_id, split, cells (a .npy file, \\[slot, row, column]),
    and those of the view. Features are one Parquet file, a row per video and
    model, without splits.

    Examples:

      $ kvq-batch labels export tables --out set
      $ kvq-batch labels export tables --out set --where "kind <> 'mix'"
      $ kvq-batch labels export tables --out set --vmaf v1
      $ kvq-batch labels export tables --out shards --format webdataset
      $ kvq-batch labels export tables --out nss --target features --model nss
    """
    from kvq_batch.labels.export import SetFolder, SetRequest, export_features, export_set
    from kvq_batch.labels.training_set import parse_shares
    from kvq_batch.storage.options import StorageOptions
    from kvq_batch.tables.session import open_session

    storage, shown = StorageOptions(endpoint_url, region), Output(output)
    if target == "features":
        if form != "parquet" or stratify is not None or split_sql is not None:
            raise SpecError("--target features writes one Parquet file. Remove --format, --stratify and --split-sql.")
        with open_session(tables, storage) as session:
            counts = export_features(session, SetFolder(out, storage), where, model)
        shown.rows([{"model_id": model_id, "videos": num} for model_id, num in counts.items()])
        shown.note("wrote features.parquet")
        return
    request = SetRequest(target, form, parse_shares(split), where, model, stratify, seed, clips, split_sql, vmaf)
    with open_session(tables, storage) as session:
        summary = export_set(session, request, SetFolder(out, storage), storage)
    shown.rows(
        [{"split": name, "clips": num, "scenes": summary.num_scenes[name]} for name, num in summary.num_clips.items()]
    )
    shown.note(f"wrote {', '.join(summary.files)}")
    if target == "teacher":
        shown.note("The labels are raw scores of the model (column `raw_score`), not opinions of people.")
    if summary.num_left_out:
        shown.note(f"left out {summary.num_left_out} clips of ranges with too many")


@app.command("import")
def import_(
    source: Annotated[
        str,
        typer.Argument(metavar="FILE", help="CSV, Parquet, JSON lines, or `file, -1, -1, mos`.", show_default=False),
    ],
    tables: TablesOption,
    scale: Annotated[
        str, typer.Option("--scale", help="Scale of the study, such as 1..5 or 0..100.", show_default=False)
    ],
    better: Annotated[
        Literal["high", "low"], typer.Option("--better", help="End of the scale that means good quality (DMOS: low).")
    ] = "high",
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", help="Name of the data set. Default: name of the file.", show_default=False),
    ] = None,
    id_column: IdColumnOption = None,
    mos_column: MosColumnOption = None,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Import mean opinion scores of a study.

    If a value is not a number or is outside the scale, the whole list is
    rejected with its line. Importing a data set again replaces it.

    Example:

      $ kvq-batch labels import mos.csv --scale 1..5 --tables quality
    """
    from kvq_batch.labels.files import Scale
    from kvq_batch.labels.opinions import OpinionList, import_opinions
    from kvq_batch.storage.options import StorageOptions

    shown = Output(output)
    opinions = OpinionList(source, Scale.from_text(scale), better, dataset, id_column, mos_column)
    done = import_opinions(tables, StorageOptions(endpoint_url, region), opinions)
    shown.record(
        {
            "dataset": done.dataset,
            "opinions": done.num_opinions,
            "withdrawn": done.num_withdrawn,
            "in_catalog": done.num_in_catalog,
        }
    )
    shown.note(done.summary)


@app.command()
def degradations(output: OutputOption = Format.TABLE) -> None:
    """List the degradations of label jobs with the unit of their amounts.

    Example:

      $ kvq-batch labels degradations
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
            "references": planned.num_references,
            "segments": planned.num_segments,
            "planned": planned.renditions.num_rows,
            "current": planned.num_current,
            "quarantined": planned.num_quarantined,
        }
    )


def _finish(summary: "RunSummary", planned: "LabelPlan", output: Output, again: str) -> None:
    """Print the summary and exit with the code of the outcome."""
    output.record(
        {
            "run_id": summary.run_id,
            "job": planned.job.name,
            "state": summary.state,
            "references": summary.num_videos,
            "segments": planned.num_segments,
            "planned": summary.num_planned,
            "labelled": summary.num_scored,
            "failed": summary.num_failed,
            "remaining": summary.num_remaining,
            "retried": summary.num_retried,
            "seconds": round(summary.seconds, 1),
            "labels_per_worker_hour": round(summary.results_per_worker_hour),
        }
    )
    if not summary.num_planned:
        output.note("nothing to make: every rendition has its label")
    if summary.num_failed:
        output.note(f"{summary.num_failed} failed; to list them:  {tables_command('failures list', planned.job)}")
    if summary.num_scored:
        query = "SELECT scene_id, name, vmaf FROM labels ORDER BY scene_id, vmaf"
        output.note(f"to see the labels:  {tables_command('query', planned.job, query)}")
        output.note("The labels are VMAF against the reference, not opinions of people.")
    if summary.num_remaining:
        output.note(f"stopped with {summary.num_remaining} remaining; to continue:  {again}")
    limit = planned.job.run.max_failure_share
    exit_with_outcome(summary.message, summary.state, summary.failure_share, limit, "renditions", output)
