"""The command that holds a model against labels that a label job made: its versions, its ladders, its regions."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvq_batch.cli.evaluation import DrawsOption, SeedOption
from kvq_batch.cli.options import DeviceOption, EndpointOption, OutputOption, RegionOption, TablesArgument, WhereOption
from kvq_batch.cli.output import Format, Output
from kvq_batch.domain.errors import ItemError, SpecError

if TYPE_CHECKING:
    from kvq_batch.domain.scorer import Scorer
    from kvq_batch.evaluation.renditions import ScoredRendition
    from kvq_batch.storage.options import StorageOptions


def evaluate_renditions(
    tables: TablesArgument,
    model: Annotated[str, typer.Option("--model", help="Model; see `kvq-batch models`.")] = "kvq-lite",
    weights: Annotated[
        str | None, typer.Option("--weights", help="File with the model's weights.", show_default=False)
    ] = None,
    where: WhereOption = None,
    device: DeviceOption = "cpu",
    bootstrap: DrawsOption = 1000,
    seed: SeedOption = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the table.", show_default=False)] = None,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Hold a model against versions that `labels make` has made and kept.

    SRCC and its kin against VMAF, over all and within a source; the share of
    steps of codec ladders at which the score falls; and how well the texture
    map tells distorted cells, from a clip alone and against the clean one.
    Ask only for sources that the model was not trained on.

    Example:

      $ kvq-batch evaluate-versions labels-tables --model kvq-lite \\
          --where "scene_id IN ('car', 'kodim05')"
    """
    from kvq_batch.domain.scorer import ModelOptions
    from kvq_batch.evaluation.renditions import COLUMNS, rendition_rows, write_renditions
    from kvq_batch.labels.training_rows import training_rows
    from kvq_batch.models.registry import build
    from kvq_batch.storage.options import StorageOptions
    from kvq_batch.tables.delta import Tables
    from kvq_batch.tables.session import Session

    scorer, shown = build(ModelOptions(model, weights, device=device)), Output(output)
    if "texture" not in scorer.spec.maps:
        raise SpecError(f"model {scorer.spec.card.model_id} makes no texture map; choose one that does")
    options = StorageOptions(endpoint_url=endpoint_url, region=region)
    with Session(Tables.open(tables, options)) as session:
        rows = training_rows(session, "labels", where, None).to_pylist()
    unkept = [row["label_id"] for row in rows if row["uri"] is None]
    if unkept:
        raise SpecError(f"{len(unkept)} versions are kept nowhere, the first {unkept[0]!r}; make them with keep = ...")
    versions = _scored(scorer, rows, options)
    found = rendition_rows(versions, bootstrap, seed)
    card = scorer.spec.card
    shown.note(f"{card.model_id} on {len(rows)} versions of {len({row['scene_id'] for row in rows})} sources")
    if output is Format.TABLE:
        shown.rows([_short(row) for row in found])
    else:
        shown.rows(found, COLUMNS)
    if out is not None:
        shown.note(f"wrote {', '.join(path.name for path in write_renditions(versions, found, out))} to {out}")
    shown.warn_untrained([card.model_id] if card.origin == "untrained" else [])


def _scored(scorer: "Scorer", rows: list[dict[str, Any]], options: "StorageOptions") -> "list[ScoredRendition]":
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with (
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
        tempfile.TemporaryDirectory(prefix="kvq-batch-") as scratch,
    ):
        task = progress.add_task("versions", total=len(rows))
        versions = []
        for row in rows:
            versions.append(_scored_rendition(scorer, row, options, Path(scratch)))
            progress.update(task, completed=len(versions))
        return versions


def _scored_rendition(
    scorer: "Scorer", row: dict[str, Any], options: "StorageOptions", scratch: Path
) -> "ScoredRendition":
    import numpy as np

    from kvq_batch.config.recipe import Recipe
    from kvq_batch.evaluation.renditions import ScoredRendition
    from kvq_batch.labels.rendition_store import read_rendition
    from kvq_batch.media.file_clip import clip_of_file

    path = scratch / row["video_id"]
    try:
        path.write_bytes(read_rendition(row["uri"], options))
        clip = clip_of_file(path, scorer.spec.frames, scorer.spec.frames.sampling.num_frames)
        (prediction,) = scorer.score([clip])
    except ItemError as error:
        raise SpecError(f"version {row['video_id']!r} cannot be scored: {error}") from error
    finally:
        path.unlink(missing_ok=True)
    texture = prediction.texture
    if texture is None or not np.isfinite(texture).all():
        raise SpecError(f"version {row['video_id']!r}: the model gave no texture, or NaN")
    cells = np.array(row["cells"], np.float64).reshape(row["num_slots"], row["num_rows"], row["num_cols"])
    return ScoredRendition(
        scene_id=row["scene_id"],
        pixels=f"{row['scene_id']}/{row['segment']}",
        recipe=Recipe.from_json(row["recipe"]),
        label=row["mos"],
        cells=cells.mean(0),
        score=prediction.raw_score,
        texture=texture.astype(np.float64).mean(0),
    )


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """A row for people: the figure with its interval in one cell."""
    value = None
    if row["value"] is not None:
        value = f"{row['value']:.3f}"
        value += "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return {name: row[name] for name in ("figure", "of", "clips", "sources")} | {
        "value": value,
        "remarks": row["remarks"],
    }
