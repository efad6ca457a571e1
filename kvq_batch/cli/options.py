"""Options, arguments and help panels that several commands share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from kvq_batch.cli.output import Format

LogFormat = Literal["auto", "json"]

# Panels of `kvq-batch --help`, in this order.
START, RUN, ASK, CLUSTER, MODELS, MAINTENANCE = "Start", "Run", "Ask", "Cluster", "Models and labels", "Maintenance"
PANELS = (START, RUN, ASK, CLUSTER, MODELS, MAINTENANCE)

ReportOption = Annotated[
    Path | None,
    typer.Option("--report", metavar="FILE", help="Write the HTML report after the run.", show_default=False),
]
OutputOption = Annotated[Format, typer.Option("--output", "-o", help="Format of the data on stdout.")]
JobArgument = Annotated[
    Path, typer.Argument(metavar="JOB", help="Job file (TOML); `kvq-batch init` writes one.", show_default=False)
]
LabelJobArgument = Annotated[
    Path,
    typer.Argument(
        metavar="JOB", help="Label job (TOML); `kvq-batch init --kind labels` writes one.", show_default=False
    ),
]
TrainJobArgument = Annotated[
    Path,
    typer.Argument(
        metavar="JOB", help="Training job (TOML); `kvq-batch init --kind train` writes one.", show_default=False
    ),
]
TablesArgument = Annotated[
    str, typer.Argument(metavar="TABLES", help="Folder or s3:// prefix of the result tables.", show_default=False)
]
TablesOption = Annotated[
    str, typer.Option("--tables", help="Folder or s3:// prefix of the result tables.", show_default=False)
]
VmafOption = Annotated[
    Literal["v0.6.1", "v1"], typer.Option("--vmaf", help="VMAF model of made labels; v1 counts noise and banding.")
]
EndpointOption = Annotated[
    str | None, typer.Option("--endpoint-url", help="S3 endpoint, for stores other than AWS.", show_default=False)
]
RegionOption = Annotated[str | None, typer.Option("--region", help="Region of the bucket.", show_default=False)]
AddressOption = Annotated[
    str | None,
    typer.Option("--address", help="Ray cluster to run on. Default: this machine.", show_default=False),
]
ExecutorOption = Annotated[
    Literal["auto", "local", "ray"] | None,
    typer.Option(
        "--executor",
        help="local: threads of this process. ray: a Ray cluster. auto: local for up to 1000 videos without --address "
        "and with at most one GPU.",
        show_default="auto",
    ),
]
# `submit` chooses the run id before the run starts, so that its user can look for it.
RunIdOption = Annotated[str | None, typer.Option("--run-id", hidden=True)]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show the plan and exit. Reads no video.")]
LogOption = Annotated[
    LogFormat, typer.Option("--log", help="auto: progress bar on a terminal. json: JSON lines on stderr.")
]
DeviceOption = Annotated[Literal["cpu", "cuda"], typer.Option("--device", help="Device that the model runs on.")]
ModelOption = Annotated[str, typer.Option("--model", help="Model name; see `kvq-batch models`.")]
WeightsOption = Annotated[
    str | None,
    typer.Option("--weights", help="File with the weights of the model, or a folder of its files.", show_default=False),
]
BootstrapSamplesOption = Annotated[
    int, typer.Option("--bootstrap-samples", min=100, help="Bootstrap samples for the confidence intervals.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of the bootstrap.")]
IdColumnOption = Annotated[
    str | None, typer.Option("--id-column", help="Column that names the video.", show_default=False)
]
MosColumnOption = Annotated[
    str | None, typer.Option("--mos-column", help="Column that holds the label.", show_default=False)
]

# Selection and budget of a run. The parameters are named like the keys of the job file that they override.
WhereOption = Annotated[
    str | None, typer.Option("--where", help="SQL condition over the columns of the catalog.", show_default=False)
]
SampleOption = Annotated[
    str | None,
    typer.Option("--sample", help="Take 1% of the videos, or 500; always the same ones.", show_default=False),
]
ShardOption = Annotated[
    str | None,
    typer.Option("--shard", help="Take one of n disjoint shards of the catalog, such as 2/4.", show_default=False),
]
ReasonOption = Annotated[
    list[str] | None,
    typer.Option("--reason", help="Take only tasks with this reason, such as model-changed. Repeatable."),
]
MaxAgeOption = Annotated[
    str | None, typer.Option("--max-age", help="Score again what is older than 12h, 30d or 8w.", show_default=False)
]
IncludePermanentOption = Annotated[
    bool, typer.Option("--include-permanent", help="Retry permanent failures, too.", show_default=False)
]
OrderByOption = Annotated[
    str | None,
    typer.Option("--order-by", help='Order by a column of the catalog, such as "views desc".', show_default=False),
]
MaxVideosOption = Annotated[
    int | None, typer.Option("--max-videos", "--limit", min=1, help="Score at most n videos.", show_default=False)
]
MaxCostOption = Annotated[
    float | None, typer.Option("--max-cost", help="Stop at this cost, by the prices of the job.", show_default=False)
]
DeadlineOption = Annotated[
    str | None, typer.Option("--deadline", help="Stop at 06:00, or at 2026-03-01T06:00.", show_default=False)
]
TimeZoneOption = Annotated[
    str | None, typer.Option("--time-zone", help="Time zone of the deadline. Default: UTC.", show_default=False)
]
