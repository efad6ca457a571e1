"""The command `report`: one HTML file about a catalog."""

from pathlib import Path
from typing import Annotated

import typer

from kvq_batch.cli.options import EndpointOption, RegionOption, TablesArgument
from kvq_batch.cli.output import Output
from kvq_batch.cli.query import open_tables


def report(
    tables: TablesArgument,
    out: Annotated[Path, typer.Option("--out", help="HTML file to write.", show_default=False)] = Path("report.html"),
    model: Annotated[
        str | None,
        typer.Option("--model", help="Model of the videos shown. Default: a calibrated one.", show_default=False),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option("--where", help="SQL condition over columns of scores and catalog.", show_default=False),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(
            "--by",
            metavar="COLUMN",
            help="Column of the segments; repeat it for several. Default: up to 3 that divide the catalog.",
            show_default=False,
        ),
    ] = None,
    videos: Annotated[int, typer.Option("--videos", min=0, max=200, help="Number of worst videos to show.")] = 20,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
) -> None:
    """Write a report about a catalog: one HTML file that anyone can open.

    Outcome of the newest run, distribution, worst videos with frames and maps,
    parts of the frame, segments, changes, failures, cost. The file loads
    nothing from a network and is below 5 MB. It contains frames of the worst
    videos, ids, and the columns of your catalog: share it accordingly.

    Examples:

      $ kvq-batch report quality/ --out report.html
      $ kvq-batch report quality/ --by country --by device --videos 50
    """
    from kvq_batch.report.page import ReportOptions, write_report
    from kvq_batch.storage.options import StorageOptions
    from kvq_batch.tables.session import CURRENT_VIEWS

    options = ReportOptions(model, where, tuple(by) if by else None, videos)
    with open_tables(tables, endpoint_url, region, materialised=CURRENT_VIEWS) as session:
        size = write_report(session, StorageOptions(endpoint_url, region), tables, out, options)
    Output().note(f"wrote {out} ({size / 1e6:.1f} MB)")
