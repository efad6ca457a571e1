"""The command `forecast`: time and cost for any number of videos on a cluster of any size."""

from typing import Annotated

import typer

from kvq_batch.cli.estimate_report import expected_record, expected_sentences, short_stage_rows, stage_rows
from kvq_batch.cli.options import JobArgument, OutputOption
from kvq_batch.cli.output import Format, Output

# The forecast assigns workers one at a time.
MAX_UNITS = 1_000_000


def forecast(
    job: JobArgument,
    videos: Annotated[
        float, typer.Option("--videos", min=1, help="Number of videos, such as 1e8.", show_default=False)
    ],
    cores: Annotated[
        int, typer.Option("--cores", min=1, max=MAX_UNITS, help="CPU cores of the cluster.", show_default=False)
    ],
    gpus: Annotated[int, typer.Option("--gpus", min=0, max=MAX_UNITS, help="GPUs of the cluster.")] = 0,
    megapixels: Annotated[
        float | None,
        typer.Option(
            "--megapixels",
            min=0.001,
            help="Mean frames x area of a video, if it differs from earlier runs. 10 s of 720p: 221.",
            show_default=False,
        ),
    ] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Forecast time and cost for any number of videos on any cluster.

    Uses the measurements of earlier runs of the job, as `plan` does. Reports
    time, core-hours, GPU-hours and cost, the number of workers of each stage
    and of drivers (one per shard), and the stage that limits the throughput.
    Assumes that the videos are like those scored so far.

    Examples:

      $ kvq-batch forecast nightly.toml --videos 1e8 --cores 4096
      $ kvq-batch forecast nightly.toml --videos 1e6 --cores 64 --gpus 2
    """
    from kvq_batch.config.load import load_job
    from kvq_batch.planning.estimate import Cluster
    from kvq_batch.planning.job_plan import estimate_cluster

    loaded, num_videos = load_job(job), round(videos)
    found = estimate_cluster(loaded, num_videos, Cluster(cores, gpus), megapixels)
    out = Output(output)
    idle = {
        "cores": cores - sum(stage.max_workers * stage.cores for stage in found.stages),
        "GPUs": gpus - sum(stage.max_workers * stage.gpus for stage in found.stages),
    }
    match output:
        case Format.JSON:
            cluster = {"cores": cores, "gpus": gpus, "idle_cores": idle["cores"], "idle_gpus": idle["GPUs"]}
            shape = {"job": loaded.name, "videos": num_videos, "megapixels": megapixels, "cluster": cluster}
            out.record(shape | {"expected": expected_record(found)})
        case Format.CSV:
            out.rows(stage_rows(found))
        case Format.TABLE:
            out.rows(short_stage_rows(found), title=f"{loaded.name}: {num_videos:,} videos")
    for sentence in expected_sentences(found):
        out.note(sentence)
    for name, number in idle.items():
        if number >= 1:
            out.note(f"{number:g} {name} stay idle and are not counted in the hours")
