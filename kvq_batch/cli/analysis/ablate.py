"""The command `ablate`: train variants of a training job with several seeds, and print one table of their tests."""

import csv
import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvq_batch.cli.options import DryRunOption, OutputOption
from kvq_batch.cli.output import Format, Output
from kvq_batch.domain.errors import SpecError

if TYPE_CHECKING:
    from kvq_batch.config.train import TrainJob
    from kvq_batch.domain.scorer import Scorer
    from kvq_batch.labels.training_set import LabelledVideo

RESULTS = "results.csv"
_FIGURES = ("srcc", "krcc", "plcc", "in_level", "neighbours")
_REGION_FIGURES = ("inter_srcc", "inter_plcc", "intra_srcc", "intra_plcc")
_BATCH = 16


def ablate(
    job: Annotated[
        Path, typer.Argument(metavar="JOB", help="Ablation job (TOML); see jobs/ablations.", show_default=False)
    ],
    dry_run: DryRunOption = False,
    output: OutputOption = Format.TABLE,
) -> None:
    """Train variants of a training job and compare them on its test split.

    Trains each variant with each seed and scores the videos whose split is
    "test" in the list of labels. Prints mean and standard deviation over
    seeds. Run it again to continue: what is finished is not trained again.

    Examples:

      $ kvq-batch ablate jobs/ablations/kvq.toml --dry-run
      $ kvq-batch ablate jobs/ablations/swinv2.toml

    Ctrl-C saves the training that runs (exit code 130).
    """
    from kvq_batch.cli.train import settings_of
    from kvq_batch.config.ablation import load_ablation
    from kvq_batch.training.architectures import architecture_of

    planned, trainings = load_ablation(job)
    shown, out = Output(output), Path(planned.out)
    rows = []
    for (name, seed), training in trainings.items():
        settings = settings_of(training)
        if dry_run:
            parameters = architecture_of(settings.config).num_parameters
            rows.append({"variant": name, "seed": seed, "parameters": parameters, "settings": settings.digest()[:12]})
            continue
        rows.append(_result(training, name, seed, out, planned.regions, shown))
        _write(out / RESULTS, rows)
    if dry_run:
        return shown.rows(rows)
    figures = (*_FIGURES, *(_REGION_FIGURES if planned.regions else ()))
    summaries = [_summary(name, rows, figures) for name in dict.fromkeys(name for name, _ in trainings)]
    is_for_people = output in (Format.TABLE, Format.MARKDOWN)
    shown.rows([_short(summary, figures) for summary in summaries] if is_for_people else summaries)
    shown.note(f"mean and standard deviation of {len(planned.seeds)} seeds; wrote {out / RESULTS}")
    return None


def _result(
    training: "TrainJob", name: str, seed: int, out: Path, regions: str | None, shown: Output
) -> dict[str, Any]:
    """Return the row of a variant and seed: the stored one, or that of a training and its test."""
    import json

    from kvq_batch.cli.train import run_training, settings_of
    from kvq_batch.domain.scorer import ModelOptions
    from kvq_batch.models import registry

    folder = Path(training.out)
    stored, digest = folder / "test.json", settings_of(training).digest()
    if stored.exists():
        row: dict[str, Any] = json.loads(stored.read_text(encoding="utf-8"))
        if row.pop("settings") != digest:
            raise SpecError(f"{folder} holds a training with other settings. Set another folder in `out`.")
        return row
    shown.note(f"{name}, seed {seed}")
    tests = run_training(training)
    family = "kvq" if training.swinv2 is None else "swinv2-ctf"
    options = ModelOptions(family, str(folder / "best.safetensors"), num_threads=training.machine.num_threads)
    scorer = registry.build(options)
    row = {"variant": name, "seed": seed, "model_id": scorer.spec.card.model_id} | _tested(scorer, training, tests)
    if regions is not None:
        row |= _regions(scorer, Path(regions))
    stored.write_text(json.dumps(row | {"settings": digest}, indent=1), encoding="utf-8")
    return row


def _tested(scorer: "Scorer", training: "TrainJob", tests: "Sequence[LabelledVideo]") -> dict[str, Any]:
    """Score the test videos as a job would, and return the agreement with their labels."""
    import numpy as np

    from kvq_batch.cli.train import settings_of
    from kvq_batch.metrics.agreement import correlate
    from kvq_batch.metrics.ladders import share_in_level, share_of_neighbours
    from kvq_batch.training.dataset import build_clip_source

    # Scored on the fixed view, so one view is enough.
    one_view = training.model_copy(update={"data": training.data.model_copy(update={"views": 1})})
    videos = [dataclasses.replace(video, split=None) for video in tests]
    source = build_clip_source(
        one_view, settings_of(training).config, videos, Path(training.out), lambda what, done, total: None
    )
    scores: list[float] = []
    for first in range(0, len(videos), _BATCH):
        indices = list(range(first, min(first + _BATCH, len(videos))))
        scores += [prediction.raw_score for prediction in scorer.score(list(source.read(indices, None).clips))]
    found, labels = np.array(scores), np.array([video.label for video in videos])
    levels = [video.level for video in videos]
    frames = [f"{video.scene_id}/{video.pixels}" if video.pixels else None for video in videos]
    return correlate(found, labels) | {
        "in_level": share_in_level(found, labels, levels),
        "neighbours": share_of_neighbours(found, labels, frames),
        "videos": len(videos),
        "scenes": len({video.scene_id for video in videos}),
    }


def _regions(scorer: "Scorer", folder: Path) -> dict[str, Any]:
    """Return the agreement of texture maps with labelled cells; None for a model without maps."""
    from kvq_batch.evaluation.regions import ALONE, read_region_set, region_rows, score_regions

    if "texture" not in scorer.spec.maps:
        return dict.fromkeys(_REGION_FIGURES)
    rows = region_rows(score_regions(scorer, read_region_set(folder)), n_resamples=0)
    alone = {row["cells_of"].partition("-")[0]: row for row in rows if row["texture"] == ALONE}
    return {f"{kind}_{metric}": alone[kind][metric] for kind in ("inter", "intra") for metric in ("srcc", "plcc")}


def _summary(name: str, rows: Sequence[Mapping[str, Any]], figures: Sequence[str]) -> dict[str, Any]:
    own = [row for row in rows if row["variant"] == name]
    summary: dict[str, Any] = {"variant": name, "seeds": len(own)}
    for figure in figures:
        values = [row[figure] for row in own if row[figure] is not None]
        summary[figure] = statistics.mean(values) if values else None
        summary[f"{figure}_sd"] = statistics.stdev(values) if len(values) > 1 else None
    return summary


def _short(summary: Mapping[str, Any], figures: Sequence[str]) -> dict[str, Any]:
    """Return a summary with mean and deviation as one text."""
    row = {"variant": summary["variant"]}
    for figure in figures:
        mean, deviation = summary[figure], summary[f"{figure}_sd"]
        row[figure] = None if mean is None else f"{mean:.3f}" + (f" ± {deviation:.3f}" if deviation is not None else "")
    return row


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
