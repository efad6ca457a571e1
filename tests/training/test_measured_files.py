"""Measured clips: stored once, equal to what the network measures, drawn like views of pixels, and trained on."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kvq_batch.domain.errors import SpecError
from kvq_batch.models.kvq.checkpoint import load
from kvq_batch.models.kvq.config import KvqConfig
from kvq_batch.models.kvq.network import build_network
from kvq_batch.models.kvq.pixels import normalise
from kvq_batch.training.architectures import architecture_of
from kvq_batch.training.frame_files import RenditionFiles, ViewLayout
from kvq_batch.training.measured_files import MeasuredFiles, measure_files
from kvq_batch.training.samples import Sample
from kvq_batch.training.settings import LossWeights, Machine, Optimiser, TrainSettings
from kvq_batch.training.trainer import Trainer
from tests.support.efficientnet_lite import ReferenceLite0
from tests.support.synthetic import CARD

CONFIG = KvqConfig(
    embed_dim=8,
    depths=(1, 1),
    num_heads=(1, 2),
    top_k=(1, 1),
    patch=(2, 16, 16),
    window=(1, 2, 2),
    head_hidden=8,
    num_frames=4,
    num_segments=2,
    input_size=(64, 64),
    num_bands=1,
    statistics=1,
    convolutions=11,
    fragments=(2, 2),
    slot_by_slot=1,
)
SETTINGS = TrainSettings(
    config=CONFIG,
    scale=(0.0, 100.0),
    steps=3,
    batch_size=4,
    loss=LossWeights(lpc=0, score=1, cells=1, pairs=1),
    optimiser=Optimiser(learning_rate=3e-3, backbone_factor=1.0, ema_decay=0.5),
    initialisation="fan-in",
    renditions=2,
    dropout=0.1,
    validation_share=0.5,
    validate_every=3,
    measured=True,
)
LAYOUT = ViewLayout((64, 64), (2, 2), True, slot_frames=2, num_slots=2, frame_slots=(0, 0, 1, 1), mix=1.0, flip=False)


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    file = ReferenceLite0().save(tmp_path_factory.mktemp("lite0") / "lite0.pth")
    return architecture_of(CONFIG).initial_tensors(SETTINGS, None, file)


@pytest.fixture
def pixels(tmp_path: Path) -> RenditionFiles:
    """Two scenes with two renditions each: noise of another strength, and its label."""
    samples, frames, cells = [], [], []
    for number, label in enumerate((90.0, 30.0, 80.0, 20.0)):
        rng = np.random.default_rng(number)
        noisy = 128 + rng.normal(0, 110 - label, (4, 80, 90, 3))
        frames.append(tmp_path / f"{number}.npy")
        np.save(frames[-1], np.clip(noisy, 0, 255).astype(np.uint8))
        cells.append(tmp_path / f"{number}-cells.npy")
        np.save(cells[-1], np.full((2, 2, 3), label, np.float32))
        scene = f"scene-{number // 2}"
        samples.append(Sample(f"v{number}", scene, label, frames_id=scene))
    return RenditionFiles(samples, frames, cells, LAYOUT)


def files(pixels: RenditionFiles, tensors: dict[str, Tensor], folder: Path, placements: int = 1) -> MeasuredFiles:
    return measure_files(pixels, CONFIG, tensors, folder / "measured", placements, lambda what, done, total: None)


def test_files_hold_what_the_network_measures(
    pixels: RenditionFiles, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    source = files(pixels, tensors, tmp_path)
    network = build_network(CONFIG, tensors)
    with torch.inference_mode():
        expected = network.measure(normalise(torch.from_numpy(pixels.read([2], None).clips)))
    found = source.read([2], None)
    assert found.clips.shape == (1, 2, 4, 4, CONFIG.num_measurements)
    assert np.allclose(found.clips, expected.numpy(), atol=2e-3)
    assert found.labels.tolist() == [80.0]
    before = [path.stat().st_mtime_ns for (path,) in source.measured]
    assert [path.stat().st_mtime_ns for (path,) in files(pixels, tensors, tmp_path).measured] == before
    # Other frozen weights are other files.
    name = next(key for key in tensors if ".convolutions." in key)
    changed = tensors | {name: tensors[name] + 1}
    assert not {*files(pixels, changed, tmp_path).measured} & {*source.measured}


def test_clips_are_measured_side_by_side_and_counted(
    pixels: RenditionFiles, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    found, counted = {}, []
    for number in (1, 3):
        torch.set_num_threads(number)
        try:
            source = measure_files(
                pixels, CONFIG, tensors, tmp_path / str(number), 2, lambda *count: counted.append(count)
            )
        finally:
            torch.set_num_threads(threads)
        found[number] = [np.load(path) for paths in source.measured for path in paths]
    assert len(found[1]) == 8
    assert all(np.allclose(one, three, atol=2e-3) for one, three in zip(found[1], found[3], strict=True))
    assert counted == 2 * [("measuring", done, 8) for done in range(8)]


def test_a_folder_that_cannot_be_written_is_an_error_with_its_name(
    pixels: RenditionFiles, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    (tmp_path / "measured").write_text("a file")
    with pytest.raises(SpecError, match=r"measured cannot be written .* data\.frames"):
        files(pixels, tensors, tmp_path)


def test_a_mixed_view_keeps_the_label_of_each_cell(
    pixels: RenditionFiles, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    source = files(pixels, tensors, tmp_path)
    stored = [np.load(path) for (path,) in source.measured]
    seen = set()
    for draw in range(20):
        views = source.read([0], draw)
        assert views.clips.shape == (1, 1, 4, 4, CONFIG.num_measurements)
        assert views.cells is not None
        assert set(np.unique(views.cells)) <= {90.0, 30.0}
        assert views.labels[0] == pytest.approx(views.cells.mean())
        is_other = (views.cells[0, 0] == 30).repeat(2, 0).repeat(2, 1)[..., None]
        mixed = [np.where(is_other, stored[1][slot], stored[0][slot]) for slot in (0, 1)]
        equal = [np.array_equal(views.clips[0, 0], view) for view in mixed]
        assert equal.count(True) == 1
        seen.add((equal.index(True), float(views.labels[0])))
    assert {slot for slot, _ in seen} == {0, 1}
    assert len(seen) > 3


def test_placements_move_the_patches_of_all_renditions_alike(
    pixels: RenditionFiles, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    still = dataclasses.replace(pixels, layout=dataclasses.replace(LAYOUT, mix=0.0))
    held_out = [
        dataclasses.replace(s, split="validation" if s.scene_id == "scene-1" else "train") for s in still.samples
    ]
    source = files(dataclasses.replace(still, samples=held_out), tensors, tmp_path, placements=3)
    assert [len(paths) for paths in source.measured] == [3, 3, 1, 1]
    # Columns and rows of the frame that a placement shows, from a picture of its own coordinates.
    frames = np.zeros((4, 80, 90, 3), np.uint8)
    frames[..., 0], frames[..., 1] = np.arange(80)[:, None], np.arange(90)
    for path in still.frames:
        np.save(path, frames)
    views = [[still.placed_view(index, placement)[0, :, :, :2] for placement in range(3)] for index in (0, 1)]
    for first, second in zip(*views, strict=True):
        assert np.array_equal(first, second)
    assert not np.array_equal(views[0][1], views[0][2])
    assert views[0][0][0, 0].tolist() == [4, 6], "in the middle of the first cell, 40 x 45 pixels"
    seen = set()
    for draw in range(40):
        clips = source.read([0], draw).clips
        seen |= {
            k
            for k, path in enumerate(source.measured[0])
            for view in np.load(path)
            if np.array_equal(clips[0, 0], view)
        }
    assert seen == {0, 1, 2}


def test_views_are_mirrored_with_their_cells(
    pixels: RenditionFiles, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    np.save(pixels.cells[0], np.arange(8, dtype=np.float32).reshape(2, 2, 2))
    flipping = dataclasses.replace(pixels, layout=dataclasses.replace(LAYOUT, mix=0.0, flip=True))
    source = files(flipping, tensors, tmp_path)
    stored = np.load(source.measured[0][0])
    kinds = set()
    for draw in range(30):
        views = source.read([0], draw)
        assert views.cells is not None
        slot = int(views.cells.min() // 4)
        rows, columns = (int(np.diff(views.cells[0, 0], axis=axis).flat[0]) for axis in (0, 1))
        expected = stored[slot][:: 1 if rows > 0 else -1, :: 1 if columns > 0 else -1]
        assert np.array_equal(views.clips[0, 0], expected)
        kinds.add((rows > 0, columns > 0))
    assert len(kinds) == 4


def test_training_on_measured_clips_keeps_frozen_tensors(
    pixels: RenditionFiles, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    source = files(pixels, tensors, tmp_path)
    trainer = Trainer(SETTINGS, Machine(num_threads=1), source, tmp_path / "training", CARD, tensors)
    outcome = trainer.train()
    assert outcome.progress.is_finished
    saved = load(outcome.best).tensors
    assert set(saved) == set(tensors)
    for name, tensor in tensors.items():
        is_frozen = ".convolutions." in name or ".scaling." in name
        assert np.array_equal(saved[name], tensor.numpy()) == is_frozen or name.endswith(".bias"), name
    # Stopped after every step and resumed, the weights are the same.
    again = Trainer(SETTINGS, Machine(num_threads=1), source, tmp_path / "again", CARD, tensors)
    again.train(should_stop=lambda: True)
    for _ in range(2):
        resumed = Trainer(SETTINGS, Machine(num_threads=1), source, tmp_path / "again", CARD, tensors)
        result = resumed.train(resume=True, should_stop=lambda: True)
    assert result.progress.is_finished
    other = load(result.best).tensors
    assert all(np.array_equal(saved[name], other[name]) for name in saved)


def test_settings_that_cannot_be_measured_are_rejected() -> None:
    with pytest.raises(SpecError, match=r"statistics = 1"):
        dataclasses.replace(SETTINGS, config=KvqConfig())
    with pytest.raises(SpecError, match=r"loss\.lpc"):
        dataclasses.replace(SETTINGS, loss=LossWeights())
