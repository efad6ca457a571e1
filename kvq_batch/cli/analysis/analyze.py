"""The command `analyze`: ready-made questions about the quality of a catalog."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from kvq_batch.cli.options import EndpointOption, OutputOption, RegionOption, TablesArgument
from kvq_batch.cli.output import Format, Output
from kvq_batch.cli.query import open_tables


def analyze(
    tables: TablesArgument,
    question: Annotated[
        Literal["worst", "distribution", "by-cell", "over-time", "where-lost", "why", "by-run", "coverage", "cost"],
        typer.Argument(metavar="QUESTION", help="See above.", show_default=False),
    ] = "worst",
    where: Annotated[
        str | None,
        typer.Option("--where", help="SQL condition over columns of scores and catalog.", show_default=False),
    ] = None,
    by: Annotated[
        str | None, typer.Option("--by", metavar="COLUMN", help="Group by this column.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Videos per model (worst, why), or runs (by-run).")] = 10,
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL instead of running it.")] = False,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", metavar="FILE", help="Also draw the answer (.png).", show_default=False),
    ] = None,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Answer a ready-made question about the quality of a catalog.

    Questions, over current scores:

      worst         the worst videos, with their worst moment, region and cause
      distribution  how many videos have which quality
      by-cell       mean maps over all videos, cell by cell
      over-time     quality from the start to the end of a video, in tenths
      where-lost    in which ninth of the frame videos are at their worst
      why           the main causes of bad quality, with moment and region;
                    needs the model `causes` in the job
      by-run        what each run scored, newest first
      coverage      how many videos have a current score, and why others do not
      cost          time per video of each stage

    --sql prints a query that you can change and pass to `kvq-batch query`.
    --picture draws distribution, by-cell, over-time, where-lost and by-run.

    Examples:

      $ kvq-batch analyze quality/
      $ kvq-batch analyze quality/ distribution --by codec
      $ kvq-batch analyze quality/ distribution --picture scores.png
      $ kvq-batch analyze quality/ where-lost --where "country = 'CH'" -o csv
    """
    from kvq_batch.analysis.questions import ask, build, histogram, list_calibrations
    from kvq_batch.cli.stdio import write_data
    from kvq_batch.tables.questions import list_untrained_models

    out = Output(output)
    with open_tables(tables, endpoint_url, region) as session:
        if sql:
            write_data(build(session, question, where, by, limit) + "\n")
            return
        answer = ask(session, question, where, by, limit)
        untrained = list_untrained_models(session)
        if picture is not None:
            from kvq_batch.report.answers import draw_answer

            bins = histogram(session, where) if question == "distribution" and by is None else None
            draw_answer(question, answer, picture, by, bins, list_calibrations(session), untrained)
            out.note(f"wrote {picture}")
    columns = answer.column_names
    if output in (Format.TABLE, Format.MARKDOWN):
        # They are needed to join other tables, and hide the answer on a screen.
        columns = [name for name in columns if name not in ("model_id", "model_origin", "commit_seq")]
        if "worst_cause" in columns and answer["worst_cause"].null_count == answer.num_rows:
            columns.remove("worst_cause")
    out.answer(answer.select(columns))
    out.warn_untrained(untrained)
