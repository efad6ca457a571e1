"""The command `forecast`: what a catalog of any size takes on a cluster of any size, by what a job's runs measured.

It reads no catalog and no video, and computes nothing: the numbers are those of a plan's estimate.
"""

from typing import Annotated

import typer

from kvq_batch.cli.estimate_report import expected_record, expected_sentences, stage_rows, stage_rows_for_people
from kvq_batch.cli.options import JobArgument, OutputOption
from kvq_batch.cli.output import Format, Output

# Workers are laid out one by one.
MOST = 1_000_000


def forecast(
    job: JobArgument,
    videos: Annotated[float, typer.Option("--videos", min=1, help="Videos to score; 1e8 is fine.", show_default=False)],
    cores: Annotated[
        int, typer.Option("--cores", min=1, max=MOST, help="CPU cores of the cluster.", show_default=False)
    ],
    gpus: Annotated[int, typer.Option("--gpus", min=0, max=MOST, help="GPUs of the cluster.")] = 0,
    megapixels: Annotated[
        float | None,
        typer.Option(
            "--megapixels",
            min=0.001,
            help="Frames of a mean video times their area, where it is another than so far: 10 s of 720p are 221.",
            show_default=False,
        ),
    ] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Tell what any number of videos takes on a cluster of any size.

    Out of what earlier runs of the job measured, by the arithmetic of
    `plan`: time, core-hours, GPU-hours and cost, how many workers decode,
    score and drive (each driver takes a shard), and which of them bounds
    the rest. The videos are taken to be like those scored so far.

    Examples:

      $ kvq-batch forecast nightly.toml --videos 1e8 --cores 4096
      $ kvq-batch forecast nightly.toml --videos 1e6 --cores 64 --gpus 2
    """
    from kvq_batch.config.load import load_job
    from kvq_batch.planning.estimate import Cluster
    from kvq_batch.planning.job_plan import estimate_cluster

    asked, num_videos = load_job(job), round(videos)
    found = estimate_cluster(asked, num_videos, Cluster(cores, gpus), megapixels)
    written = Output(output)
    idle = {
        "cores": cores - sum(stage.max_workers * stage.cores for stage in found.stages),
        "GPUs": gpus - sum(stage.max_workers * stage.gpus for stage in found.stages),
    }
    match output:
        case Format.JSON:
            cluster = {"cores": cores, "gpus": gpus, "idle_cores": idle["cores"], "idle_gpus": idle["GPUs"]}
            shape = {"job": asked.name, "videos": num_videos, "megapixels": megapixels, "cluster": cluster}
            written.record(shape | {"expected": expected_record(found)})
        case Format.CSV:
            written.rows(stage_rows(found))
        case Format.TABLE:
            written.rows(stage_rows_for_people(found), title=f"{asked.name}: {num_videos:,} videos")
    for sentence in expected_sentences(found):
        written.note(sentence)
    for name, number in idle.items():
        if number >= 1:
            written.note(f"{number:g} of the {name} have nothing to do: they are not in the hours")
