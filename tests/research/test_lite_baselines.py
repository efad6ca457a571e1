"""Baselines of KVQ-Lite: features respond to their degradations, and both baselines train on a label list."""

import csv
import dataclasses
import json
import math
import shutil
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from kvq_batch.cli.train import settings_of
from kvq_batch.config.recipe import Recipe, Step
from kvq_batch.domain.errors import SpecError
from kvq_batch.labeling.degradations import apply
from kvq_batch.media.planes import encode_lossless, from_raw
from kvq_batch.models.kvq.config import LITE, tensor_shapes
from kvq_batch.training.settings import LossWeights
from research.lite import baselines
from research.lite.clips import job_for_set, read_set
from research.lite.cnn import PlainCnn, train_cnn
from research.lite.features import features_of

Clip = NDArray[np.uint8]

JOB = """
name = "baseline"
version = "1"
out = "{folder}/out"
training_data = "gratings"
[data]
videos = "{folder}/renditions"
labels = "elsewhere.csv"
scale = [0, 100]
cells_column = "cells"
[views]
slots = 2
mix = 0.5
[model]
embed_dim = 8
depths = [1, 1, 1, 1]
num_heads = [1, 1, 1, 1]
top_k = [0, 0, 0, 1]
patch = [2, 4, 4]
window = [1, 7, 7]
num_frames = 4
num_segments = 2
input_size = [64, 64]
num_bands = 2
stem_width = 8
fragments = [2, 2]
slot_by_slot = 1
[loss]
lpc = 0.0
score = 1.0
cells = 1.0
pairs = 1.0
[optimiser]
ema_decay = 0.5
[training]
steps = 1000
batch_size = 4
renditions = 2
"""


def clip_of(luma: NDArray[np.float64]) -> Clip:
    """Return grey frames [2, H, W, 3] of planes [2, H, W]."""
    frames: Clip = np.rint(luma.clip(0, 255)).astype(np.uint8)[..., None].repeat(3, -1)
    return frames


@pytest.fixture
def scene() -> NDArray[np.float64]:
    """A moving texture with detail at every scale and an edge, [2, 128, 160]."""
    rng = np.random.default_rng(1)
    still = sum(gaussian_filter(rng.normal(0, 30 * sigma, (128, 170)), sigma) for sigma in (1.0, 2.0, 4.0, 8.0))
    still = np.asarray(still) + 110
    still[40:90, 60:110] += 60
    return np.stack([still[:, :160], still[:, 3:163]])


@pytest.mark.parametrize(
    ("name", "is_higher"),
    [
        ("band0 log rms", False),
        ("native local deviation", False),
        ("gradient 98%", False),
        ("common edges", True),
        ("noise in common blocks", False),
    ],
)
def test_blur_changes_features_of_detail(scene: NDArray[np.float64], name: str, is_higher: bool) -> None:
    blurred = np.stack([gaussian_filter(plane, 2.0) for plane in scene])
    before, after = features_of(clip_of(scene), 2)[name], features_of(clip_of(blurred), 2)[name]
    assert (after > before) == is_higher


@pytest.mark.parametrize("name", ["noise in calm blocks", "fine change", "change median", "band0 calm blocks"])
def test_noise_raises_features_of_noise(scene: NDArray[np.float64], name: str) -> None:
    smooth = np.stack([gaussian_filter(plane, 1.0) for plane in scene])
    noisy = smooth + np.random.default_rng(2).normal(0, 8, scene.shape)
    assert features_of(clip_of(noisy), 2)[name] > features_of(clip_of(smooth), 2)[name] + 0.2


def test_noise_feature_is_standard_deviation() -> None:
    flat = 128 + np.random.default_rng(3).normal(0, 6, (2, 128, 160))
    found = features_of(clip_of(flat), 2)["noise in common blocks"]
    assert math.exp(found) == pytest.approx(6, rel=0.15)


def test_grids_frozen_frames_and_banding_change_features(scene: NDArray[np.float64]) -> None:
    blocks = scene.reshape(2, 16, 8, 20, 8).mean((2, 4), keepdims=True).repeat(8, 2).repeat(8, 4).reshape(scene.shape)
    plain, coarse = features_of(clip_of(scene), 2), features_of(clip_of(blocks), 2)
    assert coarse["grid of 8 at fixed phase"] > plain["grid of 8 at fixed phase"] + 1
    assert coarse["flat blocks"] == 1
    shifted = features_of(clip_of(blocks[:, 3:, 3:]), 2)
    assert shifted["grid of 8 at best phase"] > shifted["grid of 8 at fixed phase"]
    frozen = features_of(clip_of(scene[[0, 0]]), 2)
    assert frozen["no change"] == 1 > plain["no change"]
    banded = features_of(clip_of(scene // 16 * 16), 2)
    assert banded["levels used"] < plain["levels used"] / 2


@pytest.mark.parametrize("level", [0, 128, 255])
def test_features_of_flat_frames_are_finite(level: int) -> None:
    for num_frames, slot_frames in ((4, 2), (1, 1)):
        found = features_of(np.full((num_frames, 64, 96, 3), level, np.uint8), slot_frames)
        assert np.isfinite(list(found.values())).all()
        assert len(found) == 82


def test_cnn_is_not_larger_than_kvq_lite() -> None:
    network = PlainCnn(LITE, 0.1, torch.float32)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count <= sum(math.prod(shape) for shape in tensor_shapes(LITE).values())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four renditions of each of six scenes, and their label list in set/labels.csv.

    Scenes of the test split also have a rendition of a second segment.
    """
    folder = tmp_path_factory.mktemp("exported")
    (folder / "renditions").mkdir()
    (folder / "set").mkdir()
    splits = ("train", "train", "validation", "validation", "test", "test")
    rng = np.random.default_rng(5)
    rows = []
    for number, split in enumerate(splits):
        # Planar YUV 4:2:0 of 4 frames of 96 x 96, each scene with another texture.
        luma = 128 + np.stack([gaussian_filter(rng.normal(0, 60, (96, 96)), 0.7)] * 4)
        raw = b"".join(plane.clip(16, 235).astype(np.uint8).tobytes() + bytes([128]) * (2 * 48 * 48) for plane in luma)
        source = from_raw(raw, 96, 96, Fraction(25))
        for steps, label in (((), 95), ((Step("blur", 1),), 70), ((Step("blur", 2),), 40), ((Step("h264", 40),), 20)):
            name = f"scene{number}-{label}"
            (folder / "renditions" / f"{name}.mkv").write_bytes(encode_lossless(apply(source, steps, 1)))
            np.save(folder / "set" / f"{name}.npy", np.full((2, 3, 3), label, np.float32))
            recipe = Recipe(steps, (), 1).to_json()
            rows.append((f"{name}.mkv", label, f"scene{number}", '{"number": 0}', recipe, split, f"{name}.npy"))
        if split == "test":
            shutil.copy(folder / "renditions" / f"{name}.mkv", folder / "renditions" / f"scene{number}-later.mkv")
            rows.append((f"scene{number}-later.mkv", label, f"scene{number}", '{"number": 1}', *rows[-1][4:]))
    with (folder / "set" / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("video_id", "mos", "scene_id", "segment", "recipe", "split", "cells"))
        writer.writerows(rows)
    (folder / "job.toml").write_text(JOB.format(folder=folder))
    return folder


def test_baselines_report_all_figures(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(out: Path, *more: str) -> list[dict[str, object]]:
        options = ["--set", str(exported / "set"), "--frames", str(exported / "frames"), "--out", str(out)]
        monkeypatch.setattr(
            sys, "argv", ["baselines", str(exported / "job.toml"), "--bootstrap-samples", "20", *options, *more]
        )
        baselines.main()
        found: list[dict[str, object]] = json.loads(out.read_text())
        return found

    found = run(tmp_path / "all.json", "--steps", "3", "--seed", "1")
    assert [entry["baseline"] for entry in found] == [
        "hand-made features, kernel ridge",
        "hand-made features, SVR",
        "CNN",
    ]
    for entry in found:
        rows = {(row["metric"], row["of"]): row for row in entry["rows"]}  # type: ignore[attr-defined]
        assert rows["srcc", "(all)"]["clips"] == 8
        assert rows["srcc", "(all)"]["scenes"] == 2
        assert -1 <= rows["srcc_within", "(all)"]["value"] <= 1
    assert "| CNN | srcc (all) | 8 | 2 |" in capsys.readouterr().out
    # Stored frames and features are reused, and equal seeds give equal networks.
    again = run(tmp_path / "again.json", "--steps", "3", "--seed", "1", "--only", "cnn")
    assert again[0]["rows"] == found[2]["rows"]
    assert len(list((exported / "set").glob("features-*/*.npy"))) == 24


def test_missing_split_and_unsupported_loss_are_rejected(exported: Path, tmp_path: Path) -> None:
    lines = (exported / "set" / "labels.csv").read_text().splitlines()
    (tmp_path / "labels.csv").write_text("\n".join(line for line in lines if ",test," not in line))
    with pytest.raises(SpecError, match=r"splits are train, validation\. Export it"):
        read_set(job_for_set(exported / "job.toml", tmp_path, tmp_path / "frames"))
    job = job_for_set(exported / "job.toml", exported / "set", exported / "frames")
    with pytest.raises(SpecError, match=r"does not support loss\.lpc"):
        train_cnn(read_set(job).training, dataclasses.replace(settings_of(job), loss=LossWeights(lpc=0.02)))
