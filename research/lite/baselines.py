"""Baselines of KVQ-Lite: features with a kernel regressor, and a plain CNN, on the same label set.

    python -m research.lite.baselines JOB --set DIR --frames DIR --steps N --seed S --out FILE.json

The features are hand-made, or what the network of JOB measures, pooled over a clip: a regressor that the network must
beat. JOB is the job that trained the included weights; the CNN uses its views, losses and optimiser. --set is a folder
with labels.csv from `kvq-batch labels export --format csv`, with the splits train, validation and test; features are
stored there. --frames is the folder of decoded frames. The renditions of docs/model.md are tested: the first segment of
each test reference, and distorted regions. Prints Markdown and writes all rows as JSON.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from benchmarks.tables import print_table
from kvq_batch.cli.train import settings_of
from kvq_batch.config.train import TrainJob
from kvq_batch.evaluation.renditions import ScoredRendition, rendition_rows
from kvq_batch.training.validation import Validation
from research.lite.clips import LabelledSet, job_for_set, measured_sets, read_set, scored
from research.lite.cnn import cnn_scores, train_cnn
from research.lite.handcrafted import pooled_measurements, regressor_scores, rendition_features

_KINDS = ("handmade", "measured", "cnn")
# Number of validations in the training of the CNN.
_NUM_VALIDATIONS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("--set", type=Path, required=True, dest="folder")
    parser.add_argument("--frames", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000, help="Steps of the CNN.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the CNN.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bootstrap-samples", type=int, default=1000, help="Resamples of scenes for the intervals.")
    parser.add_argument("--only", choices=_KINDS)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    job = _with_steps(job_for_set(options.job, options.folder, options.frames), options.steps, options.seed)
    with threadpool_limits(options.threads):
        rows = read_set(job)
        kinds = tuple(kind for kind in _KINDS if kind != "measured" or job.views.measured)
        kinds = kinds if options.only is None else (options.only,)
        found = []
        for name, facts, renditions in _baselines(rows, job, options.folder, kinds):
            _log(f"{name}: {json.dumps(facts)}")
            figures = rendition_rows(renditions, options.bootstrap_samples)
            found.append({"baseline": name, **facts, "rows": [row for row in figures if row["value"] is not None]})
            # Written after each baseline, so that a later failure loses nothing.
            options.out.write_text(json.dumps(found, indent=1) + "\n")
    print_table([_short(entry["baseline"], row) for entry in found for row in entry["rows"]])


def _baselines(
    rows: LabelledSet, job: TrainJob, folder: Path, kinds: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, Any], list[ScoredRendition]]]:
    if "handmade" in kinds:
        features = (rendition_features(clips, folder) for clips in (rows.training, rows.test))
        for name, scores, facts in regressor_scores(rows, *features):
            yield f"hand-made features, {name}", facts, scored(rows, scores, None)
    if "measured" in kinds:
        pooled = (pooled_measurements(clips) for clips in measured_sets(job, rows))
        for name, scores, facts in regressor_scores(rows, *pooled):
            yield f"pooled measurements, {name}", facts, scored(rows, scores, None)
    if "cnn" in kinds:
        trained = train_cnn(rows.training, settings_of(job), _Progress())
        yield "CNN", trained.facts, scored(rows, *cnn_scores(trained.network, rows.test))


def _with_steps(job: TrainJob, steps: int, seed: int) -> TrainJob:
    values = job.model_dump()
    values["training"] |= {"steps": steps, "seed": seed, "validate_every": max(1, steps // _NUM_VALIDATIONS)}
    # The average covers the same share of the training, so that a short one does not average its beginning.
    forgotten = (1 - job.optimiser.ema_decay) * max(1.0, job.training.steps / steps)
    values["optimiser"] |= {
        "warmup_steps": min(job.optimiser.warmup_steps, steps // 4),
        "ema_decay": max(0.0, 1 - forgotten),
    }
    return TrainJob.model_validate(values)


class _Progress:
    """Logger of the training of the CNN."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def __call__(self, step: int, loss: float, found: Validation | None) -> None:
        if found is not None:
            _log(f"CNN, step {step}, {self._elapsed()}: validation SRCC {found.srcc:.3f}, PLCC {found.plcc:.3f}")
        elif step % 50 == 0:
            _log(f"CNN, step {step}, {self._elapsed()}: loss {loss:.4f}")

    def _elapsed(self) -> str:
        return f"{time.monotonic() - self._started:.0f} s"


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _short(name: str, row: dict[str, Any]) -> dict[str, Any]:
    value = f"{row['value']:.3f}"
    value += "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
    figure = f"{row['metric']} {row['of']}"
    return {"baseline": name, "figure": figure, "clips": row["clips"], "scenes": row["scenes"], "value": value}


if __name__ == "__main__":
    main()
