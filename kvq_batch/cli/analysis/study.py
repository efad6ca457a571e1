"""The command `study`: regressors of opinion scores on features of videos."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvq_batch.cli.options import EndpointOption, IdColumnOption, MosColumnOption, OutputOption, RegionOption
from kvq_batch.cli.output import Format, Output
from kvq_batch.cli.progress import ProgressBar
from kvq_batch.domain.errors import SpecError

if TYPE_CHECKING:
    from kvq_batch.evaluation.feature_sets import FeatureSet

_COLUMNS = ("set", "system", "videos", "dim", "srcc", "srcc_std", "krcc", "plcc", "rmse")


def study(
    sources: Annotated[
        list[str], typer.Argument(metavar="FEATURES", help="npz files, or the tables.", show_default=False)
    ],
    systems: Annotated[
        list[str] | None,
        typer.Option("--system", help="System of features. Repeatable. Default: all.", show_default=False),
    ] = None,
    chosen_sets: Annotated[
        list[str] | None, typer.Option("--set", help="Set of videos. Repeatable. Default: all.", show_default=False)
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", help="Tables: list of labels. Default: imported opinions.", show_default=False),
    ] = None,
    mappings: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="SET=A,B,LOW..HIGH", help="Map opinions of a set to 1..5.", show_default=False),
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Merge all sets into one.")] = False,
    splits: Annotated[int, typer.Option("--splits", min=0, max=1000, help="Number of splits; 0: none.")] = 100,
    save: Annotated[
        Path | None,
        typer.Option("--save", help="Train on all videos and write the regressor here.", show_default=False),
    ] = None,
    cost: Annotated[
        float | None, typer.Option("--cost", help="C for --save, with --gamma. Default: selected.", show_default=False)
    ] = None,
    gamma: Annotated[float | None, typer.Option("--gamma", help="gamma for --save.", show_default=False)] = None,
    apply: Annotated[
        str | None,
        typer.Option("--apply", metavar="FILE", help="Predict with a saved regressor, or videval.", show_default=False),
    ] = None,
    id_column: IdColumnOption = None,
    mos_column: MosColumnOption = None,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Train regressors on features of videos and compare with opinion scores.

    FEATURES are tables with stored features (`score --features`), where a
    system is a model; or npz files with an array of features for each system,
    one row a video, and an array mos. With several sets in a file, the names
    are SET.SYSTEM and SET.mos. Figures are medians over random splits (80%
    training). --save needs one set (or --merge) and one --system. --apply
    prints a prediction for each video instead. --map computes
    5 - 4 (A (HIGH - mos) / (HIGH - LOW) + B), so that sets can be merged.

    Examples:

      $ kvq-batch study quality/ --labels mos.csv --system nss
      $ kvq-batch study features.npz --system brisque --save model.npz
      $ kvq-batch study quality/ --system brisque --apply model.npz
    """
    from kvq_batch.evaluation.feature_sets import Mapping, map_labels, merge_sets
    from kvq_batch.evaluation.study import predicted_rows, prediction_metrics, predictor, study_rows

    out, chosen = Output(output), tuple(systems or ())
    if (cost is None) != (gamma is None) or (cost is not None and save is None):
        raise SpecError("--cost and --gamma belong together, and to --save.")
    if apply is not None and (save is not None or len(chosen) != 1):
        raise SpecError("--apply needs one --system, and no --save.")
    sets = _read(sources, labels, chosen, (id_column, mos_column), (endpoint_url, region))
    if chosen_sets:
        unknown = sorted(set(chosen_sets) - {item.name for item in sets})
        if unknown:
            raise SpecError(f"No set {', '.join(unknown)}. Sets are {', '.join(item.name for item in sets)}.")
        sets = [item for item in sets if item.name in chosen_sets]
    sets = map_labels(sets, [Mapping.from_text(text) for text in mappings or ()])
    if merge:
        sets = [merge_sets(sets)]
    if apply is not None:
        predict, rows = predictor(apply), []
        for item in sets:
            found = predicted_rows(item, chosen[0], predict)
            rows += found
            metrics = prediction_metrics(found)
            if metrics is not None:
                shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
                out.note(f"{item.name}: {len(found)} videos, {shown}")
        out.rows(rows, ["set", "video", "mos", "predicted"])
        return
    if save is not None and (len(sets) != 1 or len(chosen or sets[0].systems) != 1):
        raise SpecError("--save needs one set (--set, or --merge), and one --system.")
    if splits:
        total = splits * sum(len(chosen or item.systems) for item in sets)
        with ProgressBar("splits", total) as progress:
            done = iter(range(1, total + 1))
            rows = list(study_rows(sets, chosen, splits, lambda: progress.update(next(done))))
        out.rows(rows, list(_COLUMNS) if output in (Format.TABLE, Format.MARKDOWN) else None)
    if save is not None:
        parameters = None if cost is None or gamma is None else (cost, gamma)
        _save(sets[0], chosen[0] if chosen else next(iter(sets[0].systems)), parameters, save, out)


def _read(
    sources: list[str],
    labels: str | None,
    systems: tuple[str, ...],
    columns: tuple[str | None, str | None],
    store: tuple[str | None, str | None],
) -> "list[FeatureSet]":
    """Return the sets of npz files, or of tables."""
    from kvq_batch.evaluation.feature_sets import read_feature_sets, read_stored_features
    from kvq_batch.labels.files import read_labels
    from kvq_batch.storage.options import StorageOptions
    from kvq_batch.tables.session import open_session

    if all(source.lower().endswith(".npz") for source in sources):
        if labels is not None:
            raise SpecError("--labels belongs to tables: an npz file has its opinions in the array mos.")
        return [item for source in sources for item in read_feature_sets(Path(source))]
    if len(sources) > 1:
        raise SpecError("Name npz files, or the address of one set of tables.")
    storage = StorageOptions(*store)
    listed = None if labels is None else read_labels(labels, storage, *columns)
    with open_session(sources[0], storage) as session:
        return read_stored_features(session, listed, systems)


def _save(item: "FeatureSet", system: str, parameters: tuple[float, float] | None, file: Path, out: Output) -> None:
    """Train on all videos of a set, and write the regressor."""
    from kvq_batch.evaluation.study import train_on_all
    from kvq_batch.evaluation.svr_protocol import replace_undefined
    from kvq_batch.models.support_vectors import save_regressor

    regressor, cost, gamma = train_on_all(replace_undefined(item.system(system)), item.opinions, parameters)
    save_regressor(regressor, file)
    num = len(regressor.vectors)
    out.note(f"{file}: trained on {len(item.opinions)} videos, C = {cost:g}, gamma = {gamma:g}, {num} vectors")
