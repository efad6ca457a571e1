"""Ablations of KVQ-Lite: short trainings with one change each, three seeds, evaluated on scenes of the test split.

    python -m research.lite.ablations jobs/lite/train.toml --out ablations

The job is the one that trained the included weights, with fewer steps; its label list must have a split "test". Results
are appended to OUT/runs.jsonl, and runs in that file are not repeated, so the command can be stopped and started again.
Prints Markdown: mean and standard deviation over seeds.
"""

import argparse
import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.tables import print_table
from kvq_batch.cli.train import kvq_network_of, settings_of
from kvq_batch.config.load import load_train_job
from kvq_batch.config.recipe import Recipe
from kvq_batch.config.train import TrainJob
from kvq_batch.domain.scorer import ModelCard
from kvq_batch.evaluation.renditions import ScoredRendition, rendition_rows
from kvq_batch.labels.training_set import LabelledVideo, read_training_set
from kvq_batch.media.resize import resize
from kvq_batch.models.kvq.checkpoint import load
from kvq_batch.models.kvq.network import build_network
from kvq_batch.models.kvq.pixels import normalise
from kvq_batch.storage.options import StorageOptions
from kvq_batch.training.dataset import build_clip_source, mix_column
from kvq_batch.training.frame_files import RenditionFiles
from kvq_batch.training.settings import Machine
from kvq_batch.training.trainer import Trainer

SEEDS = (0, 1, 2)

# Changes to the job, by section.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "KVQ-Lite": {},
    "no statistics: a stem of two convolutions": {
        "model": {
            "statistics": 0,
            "stem_width": 24,
            "patch": (2, 4, 4),
            "embed_dim": 32,
            "depths": (1, 1, 2, 1),
            "num_heads": (1, 2, 4, 8),
            "top_k": (0, 0, 4, 1),
        }
    },
    "one band": {"model": {"num_bands": 1}},
    "no mixing": {"views": {"mix": 0.0}},
    "single renditions, no pairs": {"training": {"renditions": 1}, "loss": {"pairs": 0.0}},
    "with the lpc loss (0.02)": {"loss": {"lpc": 0.02}},
    "no cross-window attention": {"model": {"top_k": (1, 1)}},
    "saliency of the last stage only": {"model": {"top_k": (0, 1)}},
    "no procedural scenes": {},
    "no pre-degraded references": {},
    "half of the scenes": {},
    "a quarter of the scenes": {},
    "frames resized to 224, no fragments": {"model": {"fragments": (0, 0)}},
}


def _random_rank(row: Mapping[str, Any], seed: int) -> float:
    """Return a number from 0 to 1 that depends on the scene and the seed."""
    digest = hashlib.sha256(f"{seed}:{row['scene_id']}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


# Rows of the label list that a variant does not train on, by row and seed.
LEFT_OUT: dict[str, Callable[[Mapping[str, Any], int], bool]] = {
    "no procedural scenes": lambda row, seed: row["reference_content_id"].startswith("scene:"),
    "no pre-degraded references": lambda row, seed: '"pre_degraded"' in row["segment"],
    "half of the scenes": lambda row, seed: _random_rank(row, seed) >= 1 / 2,
    "a quarter of the scenes": lambda row, seed: _random_rank(row, seed) >= 1 / 4,
}

FIGURES = (
    ("srcc", "(all)", "SRCC"),
    ("srcc_within", "(all)", "within a scene"),
    ("falling_steps", "(all)", "falling steps"),
    ("auc", "(all), alone", "AUC alone"),
    ("auc", "(all), against the clean rendition", "AUC with clean clip"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    job = load_train_job(options.job)
    options.out.mkdir(parents=True, exist_ok=True)
    runs = options.out / "runs.jsonl"
    found = [json.loads(line) for line in runs.read_text().splitlines()] if runs.exists() else []
    known = {(row["variant"], row["seed"], row["steps"]) for row in found}
    listed, _ = read_training_set(job.data, StorageOptions(), mix_column(job))
    for seed in SEEDS:
        for name in options.only:
            if (name, seed, options.steps) in known:
                continue
            row = _run(_changed(job, name, seed, options.steps), name, listed, options.out)
            row |= {"variant": name, "seed": seed, "steps": options.steps}
            with runs.open("a") as file:
                file.write(json.dumps(row) + "\n")
            found.append(row)
    print_table(list(_summary([row for row in found if row["steps"] == options.steps])))


def _changed(job: TrainJob, name: str, seed: int, steps: int) -> TrainJob:
    values = job.model_dump()
    for section, changes in VARIANTS[name].items():
        values[section] |= changes
    values["training"] |= {"seed": seed, "steps": steps, "validate_every": steps, "patience": None}
    values["optimiser"] |= {"warmup_steps": min(60, steps // 4), "ema_decay": 0.98}
    return TrainJob.model_validate(values)


def _run(job: TrainJob, name: str, listed: list[LabelledVideo], out: Path) -> dict[str, Any]:
    """Train and test one variant; return its figures by the names in FIGURES."""
    config, settings = kvq_network_of(job), settings_of(job)
    # The validation selects nothing here, so a quarter of it is enough.
    validation = [video for video in listed if video.split == "validation"][::4]
    videos = [video for video in listed if video.split == "train"] + validation
    if name in LEFT_OUT:
        rows = zip(videos, _labels_of(job, videos), strict=True)
        is_left_out, seed = LEFT_OUT[name], job.training.seed
        videos = [video for video, row in rows if video.split == "validation" or not is_left_out(row, seed)]
    source = _source(job, videos, out)
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(num_threads=torch.get_num_threads(), checkpoint_every=settings.steps)
        card = ModelCard("ablation", "1", "", "trained", name, training_data=job.training_data, licence="none")
        best = Trainer(settings, machine, source, Path(folder), card).train().best
        tensors = {key: torch.tensor(value) for key, value in load(best).tensors.items()}
    network = build_network(config, tensors, torch.bfloat16 if job.training.precision == "bf16" else torch.float32)
    tests = [dataclasses.replace(video, split=None) for video in listed if video.split == "test"]
    labels = _labels_of(job, tests)
    # The first segment of each reference is enough to compare variants, and takes a third of the time.
    first = [index for index, row in enumerate(labels) if json.loads(row["segment"])["number"] == 0]
    source = _source(job, [tests[index] for index in first], out)
    scored = list(_scored(network, source, [labels[index] for index in first]))
    return {f"{row['metric']} {row['of']}": row["value"] for row in rendition_rows(scored, n_resamples=100)}


def _source(job: TrainJob, videos: list[LabelledVideo], out: Path) -> RenditionFiles:
    """Return the clips; resized ones are made from the files of native size."""
    config = kvq_network_of(job)
    if all(config.fragments):
        made = build_clip_source(job, config, videos, out, lambda what, done, total: None)
        assert isinstance(made, RenditionFiles)
        return made
    native = TrainJob.model_validate(job.model_dump() | {"model": job.model.model_dump() | {"fragments": (7, 7)}})
    whole = _source(native, videos, out)
    files = [_resized(path, config.input_size, out / "resized") for path in whole.frames]
    return dataclasses.replace(whole, frames=files, layout=dataclasses.replace(whole.layout, is_cut=False))


def _resized(path: Path, size: tuple[int, int], folder: Path) -> Path:
    made = folder / path.parent.name / path.name
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        frames = np.load(path, mmap_mode="r")
        out = np.empty((len(frames), *size, 3), np.uint8)
        for t, frame in enumerate(frames):
            resize(np.ascontiguousarray(frame), size, out=out[t])
        np.save(made, out)
    return made


def _labels_of(job: TrainJob, videos: list[LabelledVideo]) -> list[Mapping[str, Any]]:
    """Return the rows of these videos in the label list."""
    import pyarrow.csv

    rows = {row["video_id"]: row for row in pyarrow.csv.read_csv(job.data.labels).to_pylist()}
    return [rows[video.video_id] for video in videos]


def _scored(network: Any, source: RenditionFiles, labels: list[Mapping[str, Any]]) -> Iterator[ScoredRendition]:
    for index, row in enumerate(labels):
        clips = source.read([index], None).clips
        with torch.inference_mode():
            maps = network(normalise(torch.from_numpy(clips)))
        yield ScoredRendition(
            scene_id=row["scene_id"],
            frames_id=f"{row['scene_id']}/{row['segment']}",
            recipe=Recipe.from_json(row["recipe"]),
            label=row["mos"],
            cells=np.load(source.cells[index]).astype(np.float64).mean(0),
            score=float(maps.scores()[0]),
            texture=maps.texture[0].double().mean(0).numpy(),
        )


def _summary(found: list[dict[str, Any]]) -> Iterator[dict[str, str]]:
    for name in VARIANTS:
        own = [row for row in found if row["variant"] == name]
        if own:
            cells = {}
            for figure, of, title in FIGURES:
                values = np.array([row[f"{figure} {of}"] for row in own])
                cells[title] = f"{values.mean():.3f} ± {values.std(ddof=1) if len(values) > 1 else 0:.3f}"
            yield {"variant": name, "seeds": str(len(own)), **cells}


if __name__ == "__main__":
    main()
