"""The commands `evaluate scores`, `regions` and `renditions`, and `calibrate`: agreement with labels.

Only `calibrate` writes to the tables: it adds, selects or removes curves from raw scores to `mos`.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvq_batch.cli.logs import status
from kvq_batch.cli.options import (
    BootstrapSamplesOption,
    DeviceOption,
    EndpointOption,
    IdColumnOption,
    ModelOption,
    MosColumnOption,
    OutputOption,
    RegionOption,
    SeedOption,
    TablesArgument,
    VmafOption,
    WeightsOption,
)
from kvq_batch.cli.output import Format, Output
from kvq_batch.cli.progress import ProgressBar
from kvq_batch.domain.errors import ItemError, SpecError

if TYPE_CHECKING:
    from kvq_batch.domain.scorer import Prediction, Scorer
    from kvq_batch.evaluation.regions import RegionSet, ScoredFile
    from kvq_batch.evaluation.renditions import ScoredRendition
    from kvq_batch.evaluation.scores import Labelled
    from kvq_batch.labels.files import Scale
    from kvq_batch.storage.options import StorageOptions

OutFolderOption = Annotated[
    Path | None, typer.Option("--out", help="Folder for the tables of results.", show_default=False)
]

# Columns of a table on the terminal; JSON, CSV and files hold all of them.
_SHOWN = ("srcc", "krcc", "plcc", "rmse")
_CALIBRATION_COLUMNS = ("model_id", "calibration", "is_used", "b1", "b2", "b3", "b4", "added_at")

app = typer.Typer(no_args_is_help=True, help="Evaluate models on scores, regions and renditions with labels.")


@app.command()
def scores(
    tables: TablesArgument,
    labels: Annotated[
        str,
        typer.Argument(metavar="LABELS", help="List of labels: .csv, .txt, .parquet or .jsonl.", show_default=False),
    ],
    models: Annotated[
        list[str] | None,
        typer.Option("--model", help="Model name or id. Repeatable. Default: every model.", show_default=False),
    ] = None,
    scale: Annotated[
        str | None, typer.Option("--scale", help="Scale of the labels, such as 0..100 or 1..5.", show_default=False)
    ] = None,
    by: Annotated[
        str | None,
        typer.Option("--by", help="Segments: a column of the labels, or SQL over the tables.", show_default=False),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", help="Reference that videos share; as --by. Default: none.", show_default=False),
    ] = None,
    id_column: IdColumnOption = None,
    mos_column: MosColumnOption = None,
    key: Annotated[
        str | None,
        typer.Option("--key", help="Column of the catalog that the labels name. Default: the id.", show_default=False),
    ] = None,
    stale: Annotated[bool, typer.Option("--stale", help="Include stale scores.")] = False,
    bootstrap_samples: BootstrapSamplesOption = 1000,
    seed: SeedOption = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for tables, scatter plots and calibrations.", show_default=False),
    ] = None,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Compare scores with labels: SRCC, KRCC, PLCC, RMSE and intervals.

    PLCC and RMSE are computed after a four-parameter logistic fit. The 95%
    intervals come from a bootstrap over whole references. A label is matched
    to a video by its exact name. Unmatched labels are counted and listed.

    Examples:

      $ kvq-batch evaluate scores quality/ labels.csv --scale 0..100
      $ kvq-batch evaluate scores quality/ labels.csv --by codec \\
          --reference scene_id --out evaluation/
    """
    from kvq_batch.evaluation.scores import (
        ALL,
        CALIBRATION,
        COLUMNS,
        JoinOptions,
        evaluate,
        join_labels,
        result_rows,
        write_files,
    )
    from kvq_batch.labels.files import Scale, read_labels
    from kvq_batch.report.plots import draw_scatter, scatter_of
    from kvq_batch.storage.options import StorageOptions
    from kvq_batch.tables.calibrations import read_calibration
    from kvq_batch.tables.session import open_session

    storage = StorageOptions(endpoint_url, region)
    limits = None if scale is None else Scale.from_text(scale)
    listed = read_labels(labels, storage, id_column, mos_column, limits)
    options = JoinOptions(tuple(models or ()), by, reference, key, stale)
    with status("comparing"):
        with open_session(tables, storage) as session:
            labelled = join_labels(session, listed, options)
        results = evaluate(labelled, bootstrap_samples, seed)
        written = []
        if out is not None:
            written = write_files(labelled, results, out, limits)
            for result in results:
                if result.segment == ALL and result.agreement.num_videos:
                    written.append(out / f"{result.model.model_id}.png")
                    draw_scatter(scatter_of(result, labelled.labels.dataset, limits), written[-1])
    rows = result_rows(labelled, results)
    shown = Output(output)
    for sentence in _describe(labelled, limits):
        shown.note(sentence)
    match output:
        case Format.JSON:
            shown.record({"labels": _label_record(labelled, limits), "results": rows})
        case Format.TABLE:
            short = [_short_score_row(row, reference is not None) for row in rows]
            shown.rows(short, list(short[0]) if short else None)
        case _:
            shown.rows(rows, COLUMNS)
    if written:
        shown.note(f"wrote {', '.join(path.name for path in written)} to {out}")
    for path in written:
        if path.name.endswith(CALIBRATION):
            weaknesses = read_calibration(str(path)).find_weaknesses()
            if weaknesses:
                shown.note(f"{path.name} is too weak for `mos`: {'; '.join(weaknesses)}")
            else:
                shown.note(f"to compute `mos` by the fitted curve:  kvq-batch calibrate {tables} {path}")
    shown.warn_untrained(model.model_id for model in labelled.models if model.origin == "untrained")


@app.command()
def regions(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="Folder with labels/<set>.txt and <set>/.", show_default=False),
    ],
    model: Annotated[str, typer.Option("--model", help="Model name; see `kvq-batch models`.", show_default=False)],
    weights: WeightsOption = None,
    dataset: Annotated[
        str | None, typer.Option("--set", help="Name of the set, if the folder has several.", show_default=False)
    ] = None,
    by: Annotated[
        str | None,
        typer.Option("--by", help="Groups: what this regular expression finds in file names.", show_default=False),
    ] = None,
    device: DeviceOption = "cpu",
    bootstrap_samples: BootstrapSamplesOption = 1000,
    seed: SeedOption = 0,
    out: OutFolderOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Compare texture maps with labelled cells of pictures (LPVQ).

    A still becomes a clip of 16 equal frames. Its texture map, before it is
    weighted by saliency, is averaged over the cells of the labels. Results
    are over the cells of all files, and as the mean over files.

    Example:

      $ kvq-batch evaluate regions KVQ/ --model kvq --weights KVQ.pth
    """
    from kvq_batch.domain.scorer import ModelOptions
    from kvq_batch.evaluation.regions import (
        COLUMNS,
        groups_of,
        num_still_frames,
        read_region_set,
        region_rows,
        write_regions,
    )
    from kvq_batch.models.registry import build

    region_set = read_region_set(folder, dataset)
    groups = None if by is None else groups_of(region_set, by)
    scorer = build(ModelOptions(model, weights, device=device))
    scored = _score_files(scorer, region_set)
    rows = region_rows(scored, groups, bootstrap_samples, seed)
    written = [] if out is None else write_regions(scored, rows, out)
    card, shown = scorer.spec.card, Output(output)
    shown.note(
        f"{region_set.name}: {len(scored)} files, {card.model_id}; a still is {num_still_frames(scorer)} equal frames"
    )
    if output is Format.TABLE:
        shown.rows([_short_region_row(row) for row in rows])
    else:
        shown.rows(rows, COLUMNS)
    if written:
        shown.note(f"wrote {', '.join(path.name for path in written)} to {out}")
    shown.warn_untrained([card.model_id] if card.origin == "untrained" else [])


@app.command()
def renditions(
    tables: TablesArgument,
    model: ModelOption = "kvq-lite",
    weights: WeightsOption = None,
    where: Annotated[
        str | None,
        typer.Option("--where", help="SQL condition over the columns of the view `labels`.", show_default=False),
    ] = None,
    vmaf: VmafOption = "v0.6.1",
    device: DeviceOption = "cpu",
    bootstrap_samples: BootstrapSamplesOption = 1000,
    seed: SeedOption = 0,
    out: OutFolderOption = None,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Evaluate a model on renditions that `labels make` has stored.

    Reports agreement with VMAF, over all and within a reference; the share of
    steps of codec ladders at which the score falls; and how well the texture
    map finds distorted cells, from the clip alone and against the clean one.
    Select only scenes that the model was not trained on.

    Example:

      $ kvq-batch evaluate renditions labels-tables --model kvq-lite \\
          --where "scene_id IN ('car', 'kodim05')"
    """
    from kvq_batch.domain.scorer import ModelOptions
    from kvq_batch.evaluation.renditions import COLUMNS, rendition_rows, write_renditions
    from kvq_batch.labels.export import training_rows
    from kvq_batch.models.registry import build
    from kvq_batch.storage.options import StorageOptions
    from kvq_batch.tables.delta import Tables
    from kvq_batch.tables.session import Session

    scorer, shown = build(ModelOptions(model, weights, device=device)), Output(output)
    if "texture" not in scorer.spec.maps:
        raise SpecError(f"Model {scorer.spec.card.model_id} has no texture map. Choose a model that has one.")
    options = StorageOptions(endpoint_url=endpoint_url, region=region)
    with Session(Tables.open(tables, options)) as session:
        rows = training_rows(session, "labels", where, None, vmaf=vmaf).to_pylist()
    missing = [row["label_id"] for row in rows if row["uri"] is None]
    if missing:
        raise SpecError(
            f"{len(missing)} renditions are not stored, the first is {missing[0]!r}. "
            "Make them with `keep = ...` in the label job."
        )
    scored = _score_renditions(scorer, rows, options)
    found = rendition_rows(scored, bootstrap_samples, seed)
    card = scorer.spec.card
    num_scenes = len({row["scene_id"] for row in rows})
    shown.note(f"{card.model_id} on {len(rows)} renditions of {num_scenes} scenes, VMAF {vmaf}")
    if output is Format.TABLE:
        shown.rows([_short_rendition_row(row) for row in found])
    else:
        shown.rows(found, COLUMNS)
    if out is not None:
        shown.note(f"wrote {', '.join(path.name for path in write_renditions(scored, found, out))} to {out}")
    shown.warn_untrained([card.model_id] if card.origin == "untrained" else [])


def calibrate(
    tables: TablesArgument,
    calibration: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE]", help="<model id>.calibration.json, written by `evaluate scores`.", show_default=False
        ),
    ] = None,
    is_listed: Annotated[bool, typer.Option("--list", help="List the calibrations of all models.")] = False,
    used: Annotated[
        str | None,
        typer.Option("--use", metavar="NAME", help="Use this calibration of the tables.", show_default=False),
    ] = None,
    removed: Annotated[
        str | None, typer.Option("--remove", metavar="NAME", help="Remove this calibration.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Model name or id, for --list, --use and --remove.", show_default=False),
    ] = None,
    is_forced: Annotated[bool, typer.Option("--force", help="Use a curve that is too weak.")] = False,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Choose the curve that computes `mos` from raw scores.

    FILE adds the curve that `evaluate scores` has fitted. It applies at once
    to all scores of exactly the weights that it was fitted on. Nothing is
    scored again. A curve is rejected if the interval of its SRCC contains 0,
    if it was fitted on fewer than 30 scenes, or if over half of the fitted
    scores are within 2% of an end of the scale.

    Examples:

      $ kvq-batch calibrate quality/ out/kvq@1-0123.calibration.json
      $ kvq-batch calibrate quality/ --list
      $ kvq-batch calibrate quality/ --use lsvq --model kvq
    """
    from kvq_batch.storage.options import StorageOptions
    from kvq_batch.tables.calibrations import (
        add_calibration,
        read_calibration,
        remove_calibration,
        use_calibration,
    )

    if sum((calibration is not None, is_listed, used is not None, removed is not None)) != 1:
        raise SpecError("Give one of FILE, --list, --use and --remove.")
    if calibration is not None and model is not None:
        raise SpecError("--model does not apply to FILE, which names its model.")
    if is_forced and calibration is None:
        raise SpecError("--force applies to FILE only.")
    storage, shown = StorageOptions(endpoint_url, region), Output(output)
    if is_listed:
        shown.rows(_calibration_rows(tables, storage, model), _CALIBRATION_COLUMNS)
        return
    if calibration is not None:
        curve = read_calibration(calibration, storage)
        add_calibration(tables, storage, curve, is_forced)
        model_id = curve.model_id
        for weakness in curve.find_weaknesses():
            shown.note(f"used although it is weak: {weakness}")
    elif used is not None:
        model_id = use_calibration(tables, storage, used, model)
    else:
        assert removed is not None
        model_id = remove_calibration(tables, storage, removed, model)
        shown.note(f"removed calibration {removed!r} of {model_id}")
    in_use = [row for row in _calibration_rows(tables, storage, model_id) if row["is_used"]]
    for row in in_use:
        numbers = ", ".join(f"{name} {row[name]:.6g}" for name in ("b1", "b2", "b3", "b4"))
        shown.note(f"mos of {model_id} is now computed by calibration {row['calibration']!r}: {numbers}")
    if not in_use:
        shown.note(f"{model_id} has no calibration: its mos is null")


def _calibration_rows(tables: str, storage: "StorageOptions", model: str | None) -> list[dict[str, Any]]:
    """Return the calibrations of all models, or of one by name or id."""
    from kvq_batch.tables.session import open_session

    with open_session(tables, storage) as session:
        rows = session.sql(
            "SELECT model_id, model_name, calibration, is_default AS is_used, b1, b2, b3, b4, added_at FROM models "
            "WHERE calibration IS NOT NULL ORDER BY model_id, added_at, calibration"
        ).to_pylist()
    return [
        {name: row[name] for name in _CALIBRATION_COLUMNS}
        for row in rows
        if model is None or model in (row["model_id"], row["model_name"])
    ]


def _score_files(scorer: "Scorer", region_set: "RegionSet") -> "list[ScoredFile]":
    from kvq_batch.evaluation.regions import score_regions

    with ProgressBar(region_set.name, len(region_set.items)) as progress:
        return score_regions(scorer, region_set, progress.update)


def _score_renditions(
    scorer: "Scorer", rows: list[dict[str, Any]], options: "StorageOptions"
) -> "list[ScoredRendition]":
    with (
        ProgressBar("renditions", len(rows)) as progress,
        tempfile.TemporaryDirectory(prefix="kvq-batch-") as scratch,
    ):
        scored = []
        for row in rows:
            scored.append(_score_rendition(scorer, row, options, Path(scratch)))
            progress.update(len(scored))
        return scored


def _score_rendition(
    scorer: "Scorer", row: dict[str, Any], options: "StorageOptions", scratch: Path
) -> "ScoredRendition":
    import numpy as np

    from kvq_batch.config.recipe import Recipe
    from kvq_batch.evaluation.renditions import ScoredRendition
    from kvq_batch.labels.rendition_store import read_rendition
    from kvq_batch.media.local_files import clip_of_file

    path = scratch / row["video_id"]
    try:
        path.write_bytes(read_rendition(row["uri"], options))
        clip = clip_of_file(path, scorer.spec.pixel_request, 1)
        (prediction,) = scorer.score([clip])
    except ItemError as error:
        raise SpecError(f"Cannot score rendition {row['video_id']!r}: {error}") from error
    finally:
        path.unlink(missing_ok=True)
    texture = prediction.texture
    if texture is None or not np.isfinite(texture).all():
        raise SpecError(f"Rendition {row['video_id']!r}: the model returned no texture map, or NaN in it.")
    cells = np.array(row["cells"], np.float64).reshape(row["num_slots"], row["num_rows"], row["num_cols"])
    return ScoredRendition(
        scene_id=row["scene_id"],
        frames_id=f"{row['scene_id']}/{row['segment']}",
        recipe=Recipe.from_json(row["recipe"]),
        label=row["mos"],
        cells=cells.mean(0),
        score=prediction.raw_score,
        texture=texture.astype(np.float64).mean(0),
        deviation=_deviation(scorer, prediction, row["mos"]),
    )


def _deviation(scorer: "Scorer", prediction: "Prediction", label: float) -> float | None:
    """Return how far the label is from the calibrated score, in expected deviations; None if the model has none."""
    import numpy as np

    from kvq_batch.domain.scorer import STD
    from kvq_batch.metrics.logistic import Logistic

    # The spread of a card is measured around the curve of the same training.
    calibration = next(iter(scorer.spec.card.calibrations.values()), None)
    if calibration is None or not prediction.outputs.get(STD):
        return None
    (mos,) = Logistic(*calibration)(np.array([prediction.raw_score]))
    return float((label - mos) / prediction.outputs[STD])


def _describe(labelled: "Labelled", scale: "Scale | None") -> list[str]:
    """Say how the labels were read and matched, and what was left out."""
    labels, matching = labelled.labels, labelled.matching
    span = f"{labels.values.min():g} to {labels.values.max():g}"
    known = "scale unknown (set it with --scale 0..100)" if scale is None else f"scale {scale}"
    sentences = [f"{labels.dataset}: {labels.summary}; {span}, {known}"]
    sentences.append("matched " + ", ".join(f"{count} by {rule}" for rule, count in matching.by_rule.items()))
    if matching.unmatched:
        first = "; ".join(f"{name!r}: {why}" for name, why in matching.unmatched[:3])
        sentences.append(f"{len(matching.unmatched)} labels have no video; first: {first}")
    if matching.num_unlabelled:
        sentences.append(f"{matching.num_unlabelled} videos have no label; first: {', '.join(matching.unlabelled)}")
    for model in labelled.models:
        if model.num_unscored:
            sentences.append(
                f"{model.num_unscored} labelled videos have no score of {model.model_id}; "
                f"first: {', '.join(model.unscored)}"
            )
        if model.num_stale:
            sentences.append(f"left out {model.num_stale} stale scores of {model.model_id}; include them with --stale")
    return sentences


def _label_record(labelled: "Labelled", scale: "Scale | None") -> dict[str, Any]:
    labels, matching = labelled.labels, labelled.matching
    return {
        "dataset": labels.dataset,
        "num_labels": len(labels.names),
        "read_as": labels.summary,
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


def _short_score_row(row: dict[str, Any], has_references: bool) -> dict[str, Any]:
    """Return a row for the terminal: each metric and its interval in one cell."""
    names: Sequence[str] = (*_SHOWN, "srcc_within") if has_references else _SHOWN
    facts = {"model": row["model_id"], "segment": row["segment"], "videos": row["videos"]}
    if has_references:
        facts["references"] = row["references"]
    return facts | {name: _cell(row, name) for name in names} | {"remarks": row["remarks"]}


def _short_region_row(row: dict[str, Any]) -> dict[str, Any]:
    facts = {name: row[name] for name in ("group", "texture", "cells_of", "files", "cells")}
    return facts | {name: _cell(row, name) for name in ("srcc", "plcc", "auc")} | {"remarks": row["remarks"]}


def _short_rendition_row(row: dict[str, Any]) -> dict[str, Any]:
    facts = {name: row[name] for name in ("metric", "of", "clips", "scenes")}
    cell = _cell({"value": row["value"], "value_low": row["low"], "value_high": row["high"]}, "value")
    return facts | {"value": cell, "remarks": row["remarks"]}


def _cell(row: dict[str, Any], name: str) -> str | None:
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if value is None:
        return None
    return f"{value:.3f}" if low is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"
