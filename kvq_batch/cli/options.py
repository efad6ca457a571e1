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
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Take at most so many videos of the plan.", show_default=False)
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop: touches no video.")]
LogOption = Annotated[
    LogFormat, typer.Option("--log", help="auto: a bar on a terminal. json: one JSON object a line on stderr.")
]
DeviceOption = Annotated[Literal["cpu", "cuda"], typer.Option("--device", help="Where the model runs.")]
