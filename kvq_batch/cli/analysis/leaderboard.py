"""The command `leaderboard`: all models of the tables on one labelled catalog."""

from pathlib import Path
from typing import Annotated, Any

import typer

from kvq_batch.cli.logs import status
from kvq_batch.cli.options import (
    BootstrapSamplesOption,
    EndpointOption,
    IdColumnOption,
    MosColumnOption,
    OutputOption,
    RegionOption,
    SeedOption,
    TablesArgument,
)
from kvq_batch.cli.output import Format, Output


def leaderboard(
    tables: TablesArgument,
    labels: Annotated[
        str,
        typer.Argument(metavar="LABELS", help="List of labels: .csv, .txt, .parquet or .jsonl.", show_default=False),
    ],
    models: Annotated[
        list[str] | None,
        typer.Option("--model", help="Model name or id. Repeatable. Default: every model.", show_default=False),
    ] = None,
    common: Annotated[bool, typer.Option("--common", help="Only videos that every model scored.")] = False,
    reference: Annotated[
        str | None,
        typer.Option("--reference", help="Reference that videos share: a column, or SQL.", show_default=False),
    ] = None,
    id_column: IdColumnOption = None,
    mos_column: MosColumnOption = None,
    stale: Annotated[bool, typer.Option("--stale", help="Include stale scores.")] = False,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", metavar="FILE", help="Also draw the leaderboard (.png).", show_default=False),
    ] = None,
    bootstrap_samples: BootstrapSamplesOption = 1000,
    seed: SeedOption = 0,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Rank all models of the tables by their agreement with labels.

    SRCC, KRCC, PLCC and RMSE (after a logistic fit) have 95% intervals of a
    bootstrap over references. core_s is core-seconds a video: decoding, which
    the models of a run share, and the model. Two models whose intervals
    overlap are not clearly different. JSON and CSV have all intervals.

    Examples:

      $ kvq-batch leaderboard quality/ labels.csv
      $ kvq-batch leaderboard quality/ labels.csv --common --picture rank.png
    """
    from kvq_batch.evaluation.leaderboard import (
        COLUMNS,
        differing_counts,
        leaderboard_rows,
        read_costs,
        with_common_videos,
    )
    from kvq_batch.evaluation.scores import JoinOptions, join_labels
    from kvq_batch.labels.files import read_labels
    from kvq_batch.report.plots import draw_leaderboard
    from kvq_batch.storage.options import StorageOptions
    from kvq_batch.tables.session import open_session

    storage, out = StorageOptions(endpoint_url, region), Output(output)
    listed = read_labels(labels, storage, id_column, mos_column)
    with status("comparing"):
        with open_session(tables, storage) as session:
            options = JoinOptions(tuple(models or ()), reference=reference, include_stale=stale)
            labelled = join_labels(session, listed, options)
            costs = read_costs(session)
        if common:
            labelled = with_common_videos(labelled)
        rows = leaderboard_rows(labelled, costs, bootstrap_samples, seed)
        if picture is not None:
            draw_leaderboard(rows, labelled.labels.dataset, picture)
    out.note(labelled.labels.summary)
    if output in (Format.TABLE, Format.MARKDOWN):
        out.rows([_short(row) for row in rows])
        for row in rows:
            if row["remarks"]:
                out.note(f"{row['model_name']}: {row['remarks']}")
    else:
        out.rows(rows, COLUMNS)
    if differing_counts(rows):
        out.note("models were compared on different videos; --common compares those that every model scored")
    if picture is not None:
        out.note(f"wrote {picture}")
    out.warn_untrained(row["model_id"] for row in rows if row["model_origin"] == "untrained")


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """Return the columns for people, with the interval of SRCC alone; JSON and CSV have all."""
    cells = {name: None if row[name] is None else f"{row[name]:.3f}" for name in ("krcc", "plcc", "rmse")}
    core_s = None if row["core_s"] is None else round(row["core_s"], 3)
    return {
        "rank": row["rank"],
        "model": row["model_name"],
        "videos": row["videos"],
        "srcc": _with_interval(row),
        **cells,
        "core_s": core_s,
        "parameters": row["num_parameters"],
    }


def _with_interval(row: dict[str, Any]) -> str | None:
    value, low, high = row["srcc"], row["srcc_low"], row["srcc_high"]
    if value is None:
        return None
    return f"{value:.3f}" if low is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"
