"""Options that several commands share, so that they read the same everywhere.

Declarations only.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from kvq_batch.cli.output import Format

LogFormat = Literal["auto", "json"]

OutputOption = Annotated[Format, typer.Option("--output", "-o", help="How data is written to stdout.")]
JobArgument = Annotated[
    Path, typer.Argument(metavar="JOB", help="Job file (TOML); `kvq-batch init` writes one.", show_default=False)
]
TablesArgument = Annotated[
    str, typer.Argument(metavar="TABLES", help="Folder or s3:// prefix of the result tables.", show_default=False)
]
EndpointOption = Annotated[
    str | None, typer.Option("--endpoint-url", help="S3 endpoint, for stores that are not AWS.", show_default=False)
]
RegionOption = Annotated[str | None, typer.Option("--region", help="Region of the bucket.", show_default=False)]
AddressOption = Annotated[
    str | None,
    typer.Option("--address", help="Ray cluster to run on. Default: a local Ray for this run.", show_default=False),
]
# Whoever submits a run wants to know it by name before it has begun.
RunIdOption = Annotated[str | None, typer.Option("--run-id", hidden=True)]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop: touches no video.")]
LogOption = Annotated[
    LogFormat, typer.Option("--log", help="auto: a bar on a terminal. json: one JSON object a line on stderr.")
]
DeviceOption = Annotated[Literal["cpu", "cuda"], typer.Option("--device", help="Where the model runs.")]

# Which videos, in which order, within which budget: named like the keys of the job that they stand over.
WhereOption = Annotated[
    str | None, typer.Option("--where", help="SQL condition over the catalog's columns.", show_default=False)
]
SampleOption = Annotated[
    str | None,
    typer.Option("--sample", help="1% of the videos, or 500: the same ones every time.", show_default=False),
]
ShardOption = Annotated[
    str | None,
    typer.Option("--shard", help="One of several disjoint parts of the catalog: 2/4.", show_default=False),
]
ReasonOption = Annotated[
    list[str] | None,
    typer.Option("--reason", help="Only what is due for this, say model-changed; may be repeated.", show_default=False),
]
MaxAgeOption = Annotated[
    str | None, typer.Option("--max-age", help="Score again what is older: 12h, 30d, 8w.", show_default=False)
]
RetryOption = Annotated[
    str | None, typer.Option("--retry", help='"permanent": what failed for good, too.', show_default=False)
]
OrderByOption = Annotated[
    str | None, typer.Option("--order-by", help='Column of the catalog: "views desc".', show_default=False)
]
MaxVideosOption = Annotated[
    int | None,
    typer.Option("--max-videos", "--limit", min=1, help="Take at most so many of these videos.", show_default=False),
]
MaxCostOption = Annotated[
    float | None, typer.Option("--max-cost", help="Stop at this cost, by the job's prices.", show_default=False)
]
DeadlineOption = Annotated[
    str | None, typer.Option("--deadline", help="Stop at 06:00, or at 2026-03-01T06:00.", show_default=False)
]
TimeZoneOption = Annotated[
    str | None, typer.Option("--time-zone", help="Time zone of the deadline. Default: UTC.", show_default=False)
]
