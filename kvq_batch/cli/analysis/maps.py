"""The command `maps`: pictures of the maps of one video."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from kvq_batch.cli.options import EndpointOption, RegionOption, TablesArgument
from kvq_batch.cli.output import Output
from kvq_batch.cli.query import open_tables


def maps(
    tables: TablesArgument,
    video_id: Annotated[
        str, typer.Argument(metavar="VIDEO_ID", help="Video id, as in `scores_latest`.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option("--out", help="File to write: .png, .jpg, .webp, or moving: .mp4, .gif.", show_default=False)
    ],
    model: Annotated[
        str | None, typer.Option("--model", help="Model, if the video has maps of several.", show_default=False)
    ] = None,
    clip: Annotated[
        int | None, typer.Option("--clip", min=0, help="Index of a clip. Default: all clips.", show_default=False)
    ] = None,
    form: Annotated[
        Literal["sheet", "still"],
        typer.Option("--form", help="sheet: several moments, in columns. still: the worst moment, large."),
    ] = "sheet",
    slots: Annotated[int, typer.Option("--slots", min=1, max=16, help="Number of moments of a sheet.")] = 4,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
) -> None:
    """Draw the quality and saliency of each part of a video over its frames.

    The worst moments of the video, and the best one to compare with. A line
    surrounds cells that are clearly worse than the rest of the frame. Colours
    are the same for all videos of a model: mos from 0 to 100 if the model is
    calibrated. .mp4 and .gif show the whole video, in at most 15 seconds.

    Reads the video again from its URI in the catalog. Fails if the video has
    changed since it was scored.

    Examples:

      $ kvq-batch maps quality/ holiday.mp4 --out holiday.png
      $ kvq-batch maps quality/ holiday.mp4 --form still --out worst.png
      $ kvq-batch maps quality/ holiday.mp4 --out holiday.mp4
    """
    from kvq_batch.report import movie
    from kvq_batch.report.picture import draw_maps
    from kvq_batch.storage.options import StorageOptions

    storage = StorageOptions(endpoint_url, region)
    with open_tables(tables, endpoint_url, region) as session:
        if out.suffix.lower() in movie.ENCODINGS:
            drawn = movie.write_movie(session, storage, video_id, out, model, clip)
        else:
            drawn = draw_maps(session, storage, video_id, out, model, clip, slots, form)
    output = Output()
    output.note(f"wrote {out}: {drawn.score}, {drawn.model_id} ({drawn.model_origin})")
    output.warn_untrained([drawn.model_id] if drawn.model_origin == "untrained" else [])
