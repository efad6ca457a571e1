"""The coarse-to-fine network trains on ladders: batches of levels, falling losses, a checkpoint that scores."""

import csv
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from kvq_batch.domain.errors import CheckpointError, SpecError
from kvq_batch.domain.scorer import ModelOptions
from kvq_batch.models import registry
from kvq_batch.models.kvq.config import TINY
from kvq_batch.models.swinv2_ctf.checkpoint import FORMAT, tensor_shapes
from kvq_batch.models.swinv2_ctf.config import CtfConfig, SwinV2Config
from kvq_batch.training.coarse_to_fine import CtfArchitecture, correlation_loss
from kvq_batch.training.frame_files import CroppedFiles
from kvq_batch.training.samples import Sample, Views, ladders
from kvq_batch.training.settings import GroupLoss, LossWeights, Machine, Optimiser, TrainSettings
from kvq_batch.training.state import read_curve
from kvq_batch.training.trainer import Trainer
from tests.support.synthetic import CARD

NETWORK = CtfConfig(
    SwinV2Config(8, (1, 1), (1, 2), 4, 2, 0.0),
    dim=16,
    num_heads=2,
    fusion_layers=1,
    time_layers=1,
    grid=2,
    head_hidden=8,
    num_frames=2,
    input_size=(32, 32),
    view="native",
)
LEVELS = ("crf-20", "crf-30", "crf-40")


def sigma(scene: int, level: int) -> int:
    """Return the standard deviation of the noise: it depends on the level and, less, on the scene."""
    return 24 * level + scene


class Ladder:
    """A `ClipSource` of striped scenes with two segments each, at three levels of noise; labels fall with the noise."""

    def __init__(self, num_scenes: int = 8) -> None:
        named = [(s, part, level) for s in range(num_scenes) for part in "ab" for level in range(3)]
        self.samples: Sequence[Sample] = [
            Sample(f"{s}{part}-{level}", f"s{s}", 95 - 1.4 * sigma(s, level), None, f"s{s}/{part}", LEVELS[level])
            for s, part, level in named
        ]

    def read(self, indices: Sequence[int], draw: int | None) -> Views:
        return Views(
            np.stack([self._clip(index) for index in indices]), np.array([self.samples[i].label for i in indices])
        )

    def _clip(self, index: int) -> NDArray[np.uint8]:
        scene = np.random.default_rng(index // 3)
        stripes = scene.integers(60, 196, (1, 1, 32, 3)).repeat(2, 0).repeat(32, 1)
        strength = sigma(index // 6, index % 3)
        noise = np.random.default_rng(1000 + index).normal(0, strength, (2, 32, 32, 3))
        return np.clip(stripes + noise, 0, 255).astype(np.uint8)


def settings(steps: int = 70, **group_loss: Any) -> TrainSettings:
    return TrainSettings(
        config=NETWORK,
        scale=(0.0, 100.0),
        steps=steps,
        batch_size=12,
        optimiser=Optimiser(learning_rate=6e-3, backbone_factor=1.0, warmup_steps=2, clip_norm=1.0, ema_decay=0.8),
        initialisation="fan-in",
        dropout=0.0,
        validation_share=0.25,
        validate_every=20,
        group_loss=GroupLoss(**{"levels": 3, **group_loss}),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ctf")
    Trainer(settings(), Machine(num_threads=1), Ladder(), folder, CARD).train()
    return folder


def test_all_three_terms_fall(trained: Path) -> None:
    curve = read_curve(trained / "curve.csv")
    for term in ("loss", "quality", "contrast"):
        values = [row[term] for row in curve]
        assert np.mean(values[-8:]) < 0.7 * np.mean(values[:8]), term
    # Equal scores have a rank loss of the margin.
    assert np.mean([row["rank"] for row in curve][-24:]) < 0.045
    # The total is the weighted sum (section 4.4).
    for row in curve:
        assert row["loss"] == pytest.approx(row["quality"] + 0.1 * row["contrast"] + row["rank"], abs=1e-6)
    assert read_curve(trained / "validation.csv")[-1]["srcc"] > 0.3


def test_checkpoint_loads_and_scores(trained: Path) -> None:
    scorer = registry.build(ModelOptions("swinv2-ctf", str(trained / "best.safetensors"), num_threads=1))
    card = scorer.spec.card
    assert (card.name, card.origin) == ("toy", "trained")
    assert scorer.spec.frames.size == (32, 32)
    assert scorer.spec.frames.sampling.num_frames == 2
    ladder = Ladder()
    index = {sample.sample_id: number for number, sample in enumerate(ladder.samples)}
    with (trained / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    clips = ladder.read([index[row["sample_id"]] for row in rows], None).clips
    together = [prediction.raw_score for prediction in scorer.score(list(clips))]
    assert np.allclose(together, [float(row["raw_score"]) for row in rows], atol=1e-3)
    assert together == [scorer.score([clip])[0].raw_score for clip in clips]


@pytest.mark.parametrize("weights", [None, "untrained"])
def test_model_without_weights_is_rejected(weights: str | None) -> None:
    with pytest.raises(SpecError, match="nobody has published weights"):
        registry.describe(ModelOptions("swinv2-ctf", weights))


def test_weights_of_another_network_are_rejected(trained: Path) -> None:
    with pytest.raises(CheckpointError, match="of the network 'swinv2-ctf', expected 'kvq'"):
        registry.describe(ModelOptions("kvq", str(trained / "best.safetensors")))
    lite = registry.summary("kvq-lite") and Path(registry.__file__).parent / "kvq" / "kvq-lite.safetensors"
    with pytest.raises(CheckpointError, match="of the network 'kvq', expected 'swinv2-ctf'"):
        registry.describe(ModelOptions("swinv2-ctf", str(lite)))


def test_sizes_survive_a_file(trained: Path) -> None:
    assert FORMAT.load(trained / "best.safetensors").config == NETWORK
    with pytest.raises(SpecError, match="num_frames = '2'"):
        CtfConfig.from_json(NETWORK.as_json() | {"num_frames": "2"})
    with pytest.raises(SpecError, match="unknown keys: extra"):
        CtfConfig.from_json(NETWORK.as_json() | {"extra": 1})


@pytest.mark.parametrize(("off", "left"), [("contrast", ("quality", "rank")), ("rank", ("quality", "contrast"))])
def test_term_of_weight_0_is_not_computed(off: str, left: tuple[str, ...], tmp_path: Path) -> None:
    Trainer(settings(2, **{off: 0.0}), Machine(num_threads=1), Ladder(), tmp_path, CARD).train()
    row = read_curve(tmp_path / "curve.csv")[0]
    assert set(left) <= set(row)
    assert off not in row


def test_stopped_training_resumes_to_equal_bits(tmp_path: Path) -> None:
    def trainer(folder: str) -> Trainer:
        return Trainer(settings(6), Machine(num_threads=1), Ladder(), tmp_path / folder, CARD)

    trainer("whole").train()
    stops = iter([False, False, True])
    assert trainer("parts").train(should_stop=lambda: next(stops)).progress.step == 3
    trainer("parts").train(resume=True)
    before, after = (load_file(tmp_path / folder / "best.safetensors") for folder in ("whole", "parts"))
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_batch_has_the_same_references_at_every_level() -> None:
    samples = Ladder(6).samples
    found = ladders(samples, np.arange(len(samples)), 2, 6)
    assert found is not None
    seen = []
    for step in range(4):
        batch = [samples[index] for index in found.batch(6, step, 0).tolist()]
        assert np.array_equal(found.batch(6, step, 0), found.batch(6, step, 0))
        by_level = {level: [s.frames_id for s in batch if s.level == level] for level in {s.level for s in batch}}
        assert len(by_level) == 2
        first, second = by_level.values()
        assert first == second
        assert len({s.scene_id for s in batch}) == 3
        seen.append({s.scene_id for s in batch})
    # Two batches are an epoch of six scenes.
    assert seen[0] | seen[1] == seen[2] | seen[3] == {f"s{number}" for number in range(6)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level": None}, "lacks them"),
        ({"level": "crf-99"}, "lacks the levels"),
        ({"level": "crf-30"}, "Two renditions"),
    ],
)
def test_incomplete_ladder_is_rejected(change: dict[str, Any], message: str) -> None:
    samples = list(Ladder().samples)
    samples[0] = dataclasses.replace(samples[0], **change)
    with pytest.raises(SpecError, match=message):
        ladders(samples, np.arange(len(samples)), 3, 6)


def test_too_few_scenes_are_rejected() -> None:
    samples = Ladder(2).samples
    with pytest.raises(SpecError, match="3 levels of 4 scenes, but the training set has 3 levels of 2 scenes"):
        ladders(samples, np.arange(len(samples)), 3, 12)


def test_crops_are_shared_by_renditions(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)
    other = 255 - clip
    paths = [(tmp_path / "a.npy",), (tmp_path / "b.npy",)]
    for (path,), pixels in zip(paths, (clip, other), strict=True):
        np.save(path, pixels)
    samples = [Sample("a", "s", 1.0, frames_id="f"), Sample("b", "s", 2.0, frames_id="f")]
    source = CroppedFiles(samples, paths, 2, (32, 32))
    source.check()
    fixed = source.read([0], None).clips[0]
    assert np.array_equal(fixed, clip[:, 4:36, 9:41])
    areas = set()
    for draw in range(12):
        first, second = source.read([0, 1], draw).clips
        assert np.array_equal(first, 255 - second)
        areas.add(first.tobytes())
    assert len(areas) > 6
    with pytest.raises(SpecError, match="at least 64x64"):
        CroppedFiles(samples, paths, 2, (64, 64)).check()


def test_correlation_loss_is_of_pearson() -> None:
    rng = np.random.default_rng(1)
    scores, labels = rng.normal(size=(2, 9))
    expected = (1 - np.corrcoef(scores, labels)[0, 1]) / 2
    assert float(correlation_loss(torch.tensor(scores), torch.tensor(labels))) == pytest.approx(expected)
    assert float(correlation_loss(torch.ones(3), torch.tensor([1.0, 2, 3]))) == 0.5


def test_initial_weights_are_those_of_the_specification() -> None:
    config = CtfConfig()
    published = dataclasses.replace(settings(), config=config, initialisation="published")
    small = dataclasses.replace(NETWORK, spatial=SwinV2Config(32, (2, 2), (1, 2), 4))
    tensors = CtfArchitecture(small).initial_tensors(dataclasses.replace(published, config=small), None, None)
    assert set(tensors) == set(tensor_shapes(small))
    assert not tensors["spatial.features.1.0.norm1.weight"].any()
    assert bool((tensors["fusion.layers.0.norm1.weight"] == 1).all())
    assert float(tensors["spatial.features.1.0.attn.logit_scale"][0]) == pytest.approx(math.log(10))
    assert float(tensors["spatial.features.1.0.mlp.0.weight"].std()) == pytest.approx(0.02, rel=0.05)
    assert not tensors["spatial.features.1.0.mlp.0.bias"].any()


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("spatial.features.1.0.mlp.0.weight", (True, True)),
        ("spatial.features.0.2.weight", (True, False)),
        ("spatial.features.1.0.attn.cpb_mlp.0.weight", (True, False)),
        ("spatial.features.1.0.attn.logit_scale", (True, False)),
        ("fusion.pos_embed", (False, False)),
        ("fusion.layers.0.self_attn.in_proj_weight", (False, True)),
        ("head.fc1.bias", (False, False)),
    ],
)
def test_update_rule(name: str, rule: tuple[bool, bool]) -> None:
    assert CtfArchitecture(NETWORK).update_rule(name) == rule


def test_settings_must_fit_the_network() -> None:
    with pytest.raises(SpecError, match="group_loss belongs to"):
        dataclasses.replace(settings(), group_loss=None)
    with pytest.raises(SpecError, match="group_loss belongs to"):
        TrainSettings(TINY, (0, 1), 1, 4, LossWeights(), group_loss=GroupLoss())
    with pytest.raises(SpecError, match="not a multiple of group_loss"):
        settings(levels=5)
    with pytest.raises(SpecError, match="contrast compares levels"):
        GroupLoss(levels=0)
    with pytest.raises(SpecError, match="fp32"):
        CtfArchitecture(NETWORK).check(dataclasses.replace(settings(), precision="bf16"), False)
