"""The commands that say what a model is worth: its scores against labels, its texture maps against labelled cells.

They change no table, but for `calibrate`, which writes down the curve that an evaluation fitted.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvq_batch.cli.options import DeviceOption, EndpointOption, OutputOption, RegionOption, TablesArgument
from kvq_batch.cli.output import Format, Output

if TYPE_CHECKING:
    from kvq_batch.domain.scorer import Scorer
    from kvq_batch.evaluation.labelled import Labelled
    from kvq_batch.evaluation.region_labels import RegionSet
    from kvq_batch.evaluation.regions import RatedFile
    from kvq_batch.labels.files import Scale

OutOption = Annotated[
    Path | None,
    typer.Option("--out", help="Folder for tables, scatter plots and calibrations.", show_default=False),
]
DrawsOption = Annotated[int, typer.Option("--draws", min=100, help="Draws of the bootstrap.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of the bootstrap.")]

# What people read; files and pipes get every figure.
_SHOWN = ("srcc", "krcc", "plcc", "rmse")


def evaluate(
    tables: TablesArgument,
    labels: Annotated[
        str,
        typer.Argument(metavar="LABELS", help="List of labels: .csv, .txt, .parquet or .jsonl.", show_default=False),
    ],
    models: Annotated[
        list[str] | None,
        typer.Option("--model", help="Name or id; may be repeated. Default: every model.", show_default=False),
    ] = None,
    scale: Annotated[
        str | None, typer.Option("--scale", help="Scale of the labels, say 0..100 or 1..5.", show_default=False)
    ] = None,
    by: Annotated[
        str | None,
        typer.Option("--by", help="Segments: a column of the labels, or SQL over the tables.", show_default=False),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--source", help="Source that videos share; as --by. Default: none do.", show_default=False),
    ] = None,
    id_column: Annotated[
        str | None, typer.Option("--id-column", help="Column of the labels with the video.", show_default=False)
    ] = None,
    mos_column: Annotated[
        str | None, typer.Option("--mos-column", help="Column of the labels with the label.", show_default=False)
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", help="Column of the catalog that the labels name, not the id.", show_default=False),
    ] = None,
    stale: Annotated[bool, typer.Option("--stale", help="Take scores that are stale, too.")] = False,
    bootstrap: DrawsOption = 1000,
    seed: SeedOption = 0,
    out: OutOption = None,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Compare scores with labels: SRCC, KRCC, PLCC, RMSE and intervals.

    PLCC and RMSE are those after a logistic of four parameters. Intervals
    (95%) come from drawing whole sources. A label finds its video by exact
    names only; what finds none is counted and named.

    Examples:

      $ kvq-batch evaluate quality/ labels.csv --scale 0..100
      $ kvq-batch evaluate quality/ labels.csv --by codec \\
          --source scene_id --out evaluation/
    """
    from rich.console import Console

    from kvq_batch.evaluation.labelled import Asked, join_labels
    from kvq_batch.evaluation.results import CALIBRATION, COLUMNS, rows_of, write_files
    from kvq_batch.evaluation.results import evaluate as agreement_of
    from kvq_batch.labels.files import Scale, read_labels
    from kvq_batch.storage.options import StorageOptions
    from kvq_batch.tables.session import open_session

    storage = StorageOptions(endpoint_url, region)
    limits = None if scale is None else Scale.from_text(scale)
    listed = read_labels(labels, storage, id_column, mos_column, limits)
    asked = Asked(tuple(models or ()), by, source, key, stale)
    with Console(stderr=True).status("comparing"):
        with open_session(tables, storage) as session:
            labelled = join_labels(session, listed, asked)
        results = agreement_of(labelled, bootstrap, seed)
        written = [] if out is None else write_files(labelled, results, out, limits)
    rows = rows_of(labelled, results)
    shown = Output(output)
    for sentence in _told(labelled, limits):
        shown.note(sentence)
    match output:
        case Format.JSON:
            shown.record({"labels": _facts(labelled, limits), "results": rows})
        case Format.CSV:
            shown.rows(rows, COLUMNS)
        case Format.TABLE:
            short = [_short(row, source is not None) for row in rows]
            shown.rows(short, list(short[0]) if short else None)
    if written:
        shown.note(f"wrote {', '.join(path.name for path in written)} to {out}")
    if any(path.name.endswith(CALIBRATION) for path in written):
        shown.note(f"`kvq-batch calibrate TABLES <model id>{CALIBRATION}` makes `mos` of a fitted curve")
    shown.warn_untrained(model.model_id for model in labelled.models if model.origin == "untrained")


def calibrate(
    tables: TablesArgument,
    calibration: Annotated[
        str,
        typer.Argument(metavar="FILE", help="<model id>.calibration.json of an evaluation.", show_default=False),
    ],
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
) -> None:
    """Compute `mos` by the curve that an evaluation fitted.

    It holds for exactly the weights that it was fitted on, at once and for
    all of their scores; nothing is scored again.

    Example:

      $ kvq-batch calibrate quality/ out/kvq@1-0123.calibration.json
    """
    from kvq_batch.storage.options import StorageOptions
    from kvq_batch.tables.calibrations import add_calibration, read_calibration

    storage = StorageOptions(endpoint_url, region)
    curve = read_calibration(calibration, storage)
    add_calibration(tables, storage, curve)
    numbers = ", ".join(f"b{i} {value:.6g}" for i, value in enumerate(curve.parameters, 1))
    Output().note(f"mos of {curve.model_id} is now by calibration {curve.name!r}: {numbers}")


def evaluate_regions(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="Holds labels/<set>.txt and <set>/ with its files.", show_default=False),
    ],
    model: Annotated[str, typer.Option("--model", help="Model; see `kvq-batch models`.")],
    weights: Annotated[
        str | None, typer.Option("--weights", help="File with the model's weights.", show_default=False)
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--set", help="Which set, where the folder holds several.", show_default=False)
    ] = None,
    by: Annotated[
        str | None,
        typer.Option("--by", help="Groups: a pattern; what it finds in a file's name.", show_default=False),
    ] = None,
    device: DeviceOption = "cpu",
    bootstrap: DrawsOption = 1000,
    seed: SeedOption = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the tables of figures and cells.", show_default=False)
    ] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Compare texture maps with labelled cells of pictures (LPVQ).

    A still becomes a clip of 16 equal frames; its texture, before saliency
    weighs it, is averaged over the cells of the labels. Figures are those of
    all cells in one pool, and the mean of each file's own.

    Example:

      $ kvq-batch evaluate-regions KVQ/ --model kvq --weights KVQ.pth
    """
    from kvq_batch.domain.scorer import ModelOptions
    from kvq_batch.evaluation.region_labels import read_region_set
    from kvq_batch.evaluation.regions import COLUMNS, groups_of, num_still_frames, region_rows, write_regions
    from kvq_batch.models.registry import build

    regions = read_region_set(folder, dataset)
    groups = None if by is None else groups_of(regions, by)
    scorer = build(ModelOptions(model, weights, device=device))
    rated = _rated(scorer, regions)
    rows = region_rows(rated, groups, bootstrap, seed)
    written = [] if out is None else write_regions(rated, rows, out)
    card, shown = scorer.spec.card, Output(output)
    shown.note(
        f"{regions.name}: {len(rated)} files, {card.model_id}; a still is {num_still_frames(scorer)} equal frames"
    )
    if output is Format.TABLE:
        shown.rows([_short_region(row) for row in rows])
    else:
        shown.rows(rows, COLUMNS)
    if written:
        shown.note(f"wrote {', '.join(path.name for path in written)} to {out}")
    shown.warn_untrained([card.model_id] if card.origin == "untrained" else [])


def _rated(scorer: "Scorer", regions: "RegionSet") -> "list[RatedFile]":
    from rich.console import Console
    from rich.progress import Progress

    from kvq_batch.evaluation.regions import rate_regions

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(regions.name, total=len(regions.items))
        return rate_regions(scorer, regions, lambda num_done: progress.update(task, completed=num_done))


def _short_region(row: dict[str, Any]) -> dict[str, Any]:
    """A row for people: each figure with its interval in one cell."""
    facts = {name: row[name] for name in ("group", "texture", "cells_of", "files", "cells")}
    return facts | {name: _cell(row, name) for name in ("srcc", "plcc", "auc")} | {"remarks": row["remarks"]}


def _told(labelled: "Labelled", scale: "Scale | None") -> list[str]:
    """What was taken for what, and everything that was left out."""
    labels, matching = labelled.labels, labelled.matching
    span = f"{labels.values.min():g} to {labels.values.max():g}"
    known = "the scale is not named (--scale 0..100)" if scale is None else f"scale {scale}"
    told = [f"{labels.dataset}: {labels.told}; {span}, {known}"]
    told.append("matched " + ", ".join(f"{count} by {rule}" for rule, count in matching.by_rule.items()))
    if matching.unmatched:
        first = "; ".join(f"{name!r}: {why}" for name, why in matching.unmatched[:3])
        told.append(_counted(len(matching.unmatched), "labels have no video", first))
    if matching.num_unlabelled:
        told.append(_counted(matching.num_unlabelled, "videos have no label", ", ".join(matching.unlabelled)))
    for model in labelled.models:
        if model.num_unscored:
            what = f"labelled videos have no score of {model.model_id}"
            told.append(_counted(model.num_unscored, what, ", ".join(model.unscored)))
        if model.num_stale:
            told.append(f"{model.num_stale} scores of {model.model_id} are stale and left out; --stale takes them")
    return told


def _counted(count: int, what: str, first: str) -> str:
    return f"{count} {what}; first: {first}"


def _facts(labelled: "Labelled", scale: "Scale | None") -> dict[str, Any]:
    labels, matching = labelled.labels, labelled.matching
    return {
        "dataset": labels.dataset,
        "num_labels": len(labels.names),
        "taken": labels.told,
        "scale": None if scale is None else [scale.low, scale.high],
        "matched_by": matching.by_rule,
        "num_unmatched": len(matching.unmatched),
        "unmatched": [{"label": name, "reason": why} for name, why in matching.unmatched],
        "num_unlabelled": matching.num_unlabelled,
        "models": [
            {
                "model_id": model.model_id,
                "model_origin": model.origin,
                "num_stale_left_out": model.num_stale,
                "num_unscored": model.num_unscored,
            }
            for model in labelled.models
        ],
    }


def _short(row: dict[str, Any], has_sources: bool) -> dict[str, Any]:
    """A row for people: each figure with its interval in one cell."""
    names: Sequence[str] = (*_SHOWN, "srcc_within") if has_sources else _SHOWN
    facts = {"model": row["model_id"], "segment": row["segment"], "videos": row["videos"]}
    if has_sources:
        facts["sources"] = row["sources"]
    return facts | {name: _cell(row, name) for name in names} | {"remarks": row["remarks"]}


def _cell(row: dict[str, Any], name: str) -> str | None:
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if value is None:
        return None
    return f"{value:.3f}" if low is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"
