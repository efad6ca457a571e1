"""The command `compare`: two models, or two runs, over the videos that both scored."""

from pathlib import Path
from typing import Annotated, Any

import typer

from kvq_batch.cli.execution import EXIT_CHECK_FAILED
from kvq_batch.cli.options import EndpointOption, OutputOption, RegionOption, TablesArgument
from kvq_batch.cli.output import Format, Output
from kvq_batch.cli.query import open_tables

_SEGMENT = (
    *("segment", "videos", "srcc", "krcc", "plcc"),
    *("median_from", "median_to", "median_shift", "p5_shift", "p95_shift", "mean_shift"),
)
_HIDDEN = ("segment", "from", "to")


def compare(
    tables: TablesArgument,
    from_: Annotated[
        str, typer.Option("--from", metavar="MODEL_OR_RUN", help="Model name, model id or run id.", show_default=False)
    ],
    to: Annotated[
        str, typer.Option("--to", metavar="MODEL_OR_RUN", help="The one to compare with it.", show_default=False)
    ],
    by: Annotated[
        str | None,
        typer.Option("--by", metavar="COLUMN", help="Column of the catalog: one row a segment.", show_default=False),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Model, if a run has scores of several.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="Number of top movers.")] = 10,
    fail_if: Annotated[
        str | None,
        typer.Option("--fail-if", metavar="SQL", help="Exit with 5 if this condition holds.", show_default=False),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", metavar="FILE", help="Also draw the comparison (.png).", show_default=False),
    ] = None,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Compare two models, or two runs, over the videos that both scored.

    Prints correlations (srcc, krcc, plcc), the shift of median and tails, the
    videos that moved most, and how far the texture maps agree cell by cell.

    Shifts are on the scale of `mos`, or of raw_score within one model. They are
    null if the models have no common scale. Models are compared on equal bytes;
    runs also across new content. --fail-if is a condition over the columns of
    the summary (see --output json). A null in it is an error (exit code 2).

    Examples:

      $ kvq-batch compare quality/ --from kvq-lite --to kvq --by codec
      $ kvq-batch compare quality/ --from RUN_ID --to RUN_ID \\
          --fail-if "srcc < 0.98 or abs(median_shift) > 1"
    """
    from kvq_batch.analysis.comparison import compare as compare_sides
    from kvq_batch.analysis.comparison import holds
    from kvq_batch.tables.questions import list_untrained_models

    out = Output(output)
    with open_tables(tables, endpoint_url, region) as session:
        found = compare_sides(session, from_, to, by, limit, model)
        untrained = list_untrained_models(session)
    has_failed = fail_if is not None and holds(found, fail_if)
    if picture is not None:
        from kvq_batch.report.answers import draw_comparison

        draw_comparison(found, picture)
        out.note(f"wrote {picture}")
    match output:
        case Format.JSON:
            out.record(found.record())
        case Format.TABLE | Format.MARKDOWN:
            _show(out, found.summary, list(found.segments), list(found.movers), by)
        case _:
            out.rows([found.summary, *({**dict.fromkeys(found.summary), **row} for row in found.segments)])
    for remark in found.remarks:
        out.note(remark)
    out.warn_untrained(untrained)
    if has_failed:
        out.warn(f"--fail-if holds: {fail_if}")
        raise typer.Exit(EXIT_CHECK_FAILED)


def _show(
    out: Output,
    summary: Any,
    segments: list[Any],
    movers: list[Any],
    by: str | None,
) -> None:
    """Print the summary, segments and movers as tables for people."""
    title = f"from {summary['from']} to {summary['to']}"
    out.record({name: value for name, value in summary.items() if name not in _HIDDEN}, title=title)
    if segments:
        rows = [{by or "segment": row["segment"], **{name: row[name] for name in _SEGMENT[1:]}} for row in segments]
        out.rows(rows, title=f"\nby {by}")
    if movers:
        out.rows(movers, title="\ntop movers (rank: 0 is the worst video, 100 the best)")
