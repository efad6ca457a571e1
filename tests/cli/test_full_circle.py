"""Labels, a training set, a model, its evaluation, scores and their differences, end to end."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from kvq_batch.metrics.logistic import Logistic, fit_logistic
from kvq_batch.models.kvq.checkpoint import load
from tests.cli.test_commands import call

LABELS = """
name = "versions"
tables = "{folder}/labels"
keep = "{folder}/versions"
seed = 3
[[references]]
source = "synthetic:glow"
count = 2
[[references]]
source = "synthetic:landscape"
count = 2
[segments]
num_frames = 8
height_px = 96
width_px = 128
[renditions]
ladders = {{ h264 = [22, 34, 46], blur = [3] }}
combinations = []
regions = 2
mixes = 0
[make.workers]
max = 2
num_cpus = 0.5
"""

TRAIN = """
name = "circle"
version = "{version}"
out = "{folder}/training-{version}"
training_data = "procedural scenes, VMAF"
[data]
videos = "{folder}/versions"
labels = "{folder}/set/labels.csv"
scale = [0, 100]
cells_column = "cells"
calibration_columns = ["psnr_db"]
frames = "{folder}/frames"
[views]
slots = 2
mix = 0.5
[model]
embed_dim = 8
depths = [1, 1]
num_heads = [1, 2]
top_k = [0, 2]
patch = [2, 4, 4]
window = [1, 4, 4]
head_hidden = 8
num_frames = 4
num_segments = 2
input_size = [32, 32]
num_bands = 1
stem_width = 8
fragments = [4, 4]
slot_by_slot = 1
initialisation = "fan-in"
[loss]
lpc = 0
score = 1
cells = 1
[optimiser]
learning_rate = 3e-3
backbone_factor = 1.0
ema_decay = 0.5
[training]
steps = {steps}
batch_size = 4
dropout = 0.1
validate_every = {steps}
[machine]
num_threads = 1
checkpoint_every = 4
"""

SPLIT = "CASE WHEN scene_id LIKE '%-0001' THEN 'validation' ELSE 'train' END"

DIFFERENCES = """
SELECT a.video_id, b.raw_score - a.raw_score AS change, a.model_origin FROM scores a JOIN scores b USING (video_id)
WHERE a.model_id = '{first}' AND b.model_id = '{second}'
"""


def trained(folder: Path, version: str, steps: int) -> Path:
    job = folder / f"train-{version}.toml"
    job.write_text(TRAIN.format(folder=folder, version=version, steps=steps))
    facts = json.loads(call("train", job, "-o", "json").stdout)
    assert facts["steps"] == steps
    return Path(facts["checkpoint"])


def _check_calibrations(found: Mapping[str, tuple[float, ...]], predictions: Path, labels: Path) -> None:
    """Check that each curve is that of the validation scores and of the labels of its column."""
    with labels.open(newline="") as file:
        rows = {row["video_id"]: row for row in csv.DictReader(file)}
    with predictions.open(newline="") as file:
        scores = {row["sample_id"]: float(row["raw_score"]) for row in csv.DictReader(file)}
    for name, column in (("validation", "mos"), ("psnr_db", "psnr_db")):
        wanted = fit_logistic(
            np.array(list(scores.values())), np.array([float(rows[key][column]) for key in scores]), scale=(0, 100)
        )
        assert isinstance(wanted, Logistic)
        assert found[name] == pytest.approx(wanted.parameters)


def test_labels_train_a_model_that_scores(tmp_path: Path) -> None:
    job = tmp_path / "labels.toml"
    job.write_text(LABELS.format(folder=tmp_path))
    made = json.loads(call("labels", "make", job, "-o", "json").stdout)
    # For each of four scenes: the clean clip, three H.264 rates, one blur, two regions.
    assert (made["labelled"], made["failed"]) == (28, 0)

    tables, folder = tmp_path / "labels", tmp_path / "set"
    call(
        "labels",
        "export",
        tables,
        "--out",
        folder,
        "--format",
        "csv",
        "--split-sql",
        SPLIT,
        "--where",
        "kind <> 'region'",
    )
    wrong = call(
        "labels", "export", tables, "--out", tmp_path / "no", "--format", "csv", "--split-sql", "name", exit_code=2
    )
    assert "has the unknown split" in wrong.stderr

    weights = [trained(tmp_path, "1", 4), trained(tmp_path, "2", 12)]
    cards = [load(path).card for path in weights]
    _check_calibrations(cards[1].calibrations, tmp_path / "training-2" / "predictions.csv", folder / "labels.csv")
    text = (tmp_path / "train-1.toml").read_text().replace("psnr_db", "kind").replace("training-1", "training-3")
    (tmp_path / "train-3.toml").write_text(text)
    rejected = " ".join(call("train", tmp_path / "train-3.toml", "--dry-run", exit_code=2).stderr.split())
    assert "column 'kind' of" in rejected
    assert "expected a number from 0 to 100" in rejected

    command = (
        *("evaluate", "renditions", tables, "--model", "kvq", "--weights", weights[1]),
        *("--bootstrap-samples", "100", "-o", "json"),
    )
    figures = {(row["metric"], row["of"]): row for row in json.loads(call(*command, "--out", tmp_path / "f").stdout)}
    assert figures["srcc", "(all)"]["clips"] == 20
    assert figures["falling_steps", "h264"]["clips"] == 8
    assert figures["auc", "(all), alone"]["clips"] > 0
    assert -1 <= figures["srcc", "(all)"]["value"] <= 1
    assert {path.name for path in (tmp_path / "f").iterdir()} > {"metrics.csv", "renditions.parquet"}

    for path in weights:
        call("score", tmp_path / "versions", "--tables", tmp_path / "scores", "--model", "kvq", "--weights", path)
    sql = DIFFERENCES.format(first=cards[0].model_id, second=cards[1].model_id)
    rows = json.loads(call("query", tmp_path / "scores", sql, "-o", "json").stdout)
    assert len(rows) == 28
    assert {row["model_origin"] for row in rows} == {"trained"}
    assert any(abs(row["change"]) > 1e-4 for row in rows)
