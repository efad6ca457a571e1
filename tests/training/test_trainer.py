"""Trainings: a small network learns, and a stopped or killed training resumes to equal bits."""

import csv
import dataclasses
import itertools
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from kvq_batch.domain.errors import FatalError, SpecError
from kvq_batch.domain.scorer import ModelOptions
from kvq_batch.models import registry
from kvq_batch.models.kvq.checkpoint import load
from kvq_batch.training.samples import Views
from kvq_batch.training.settings import LossWeights, Machine, TrainSettings
from kvq_batch.training.state import read_curve
from kvq_batch.training.trainer import NullObserver, Trainer
from kvq_batch.training.validation import Validation, correlations
from tests.support.synthetic import CARD, Stripes, toy_settings, toy_trainer


def bits(folder: Path) -> dict[str, object]:
    """Return all results of a training, except durations."""
    with safe_open(folder / "state.safetensors", framework="numpy") as file:
        header = json.loads(file.metadata()["kvq_batch.training"])
    curve = [{k: v for k, v in row.items() if k != "seconds"} for row in read_curve(folder / "curve.csv")]
    tensors = {
        f"{name}:{key}": value.tobytes()
        for name in ("state", "best")
        for key, value in load_file(folder / f"{name}.safetensors").items()
    }
    predictions = (folder / "predictions.csv").read_text()
    return {
        "header": header,
        "curve": curve,
        "validation": (folder / "validation.csv").read_text(),
        "predictions": predictions,
        **tensors,
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training without interruptions."""
    folder = tmp_path_factory.mktemp("whole") / "training"
    outcome = toy_trainer(folder, toy_settings()).train()
    assert outcome.progress.is_finished
    assert outcome.progress.step == 12
    return folder


def test_training_improves_on_unseen_scenes(tmp_path: Path) -> None:
    settings = toy_settings(steps=60, loss=LossWeights(plcc=1, rank=0.5, lpc=0, score=1), dropout=0.0)
    outcome = toy_trainer(tmp_path, settings, Machine(num_threads=2, checkpoint_every=60)).train()
    curve = read_curve(tmp_path / "curve.csv")
    losses = [row["loss"] for row in curve]
    assert [row["step"] for row in curve] == list(range(1, 61))
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])
    validations = read_curve(tmp_path / "validation.csv")
    best = max(row["srcc"] + row["plcc"] for row in validations)
    assert outcome.progress.best_agreement == pytest.approx(best)
    assert best > 1.6
    # The saved checkpoint is that of the best validation, and gives the same scores.
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    scorer = registry.build(ModelOptions("kvq", str(outcome.best)))
    stripes = Stripes()
    by_id = {sample.sample_id: index for index, sample in enumerate(stripes.samples)}
    clips = stripes.read([by_id[row["sample_id"]] for row in rows], None).clips
    found = [prediction.raw_score for prediction in scorer.score(list(clips))]
    assert np.allclose(found, [float(row["raw_score"]) for row in rows], atol=1e-6)
    assert {row["scene_id"] for row in rows} == {stripes.samples[by_id[row["sample_id"]]].scene_id for row in rows}
    assert len({row["scene_id"] for row in rows}) == 2


def test_checkpoint_has_its_card(whole: Path) -> None:
    card = load(whole / "best.safetensors").card
    assert (card.name, card.version, card.origin) == ("toy", "1", "trained")
    assert card.training_data == "stripes under noise"
    assert card.licence == "Apache-2.0"
    assert len(card.digest) == 64


def test_equal_seeds_give_equal_bits(whole: Path, tmp_path: Path) -> None:
    toy_trainer(tmp_path, toy_settings()).train()
    assert bits(tmp_path) == bits(whole)
    other = tmp_path / "other"
    toy_trainer(other, toy_settings(seed=1)).train()
    assert bits(other) != bits(whole)


@pytest.mark.parametrize("stops_after", [0, 3, 4, 7])
def test_stopped_training_resumes_to_equal_bits(whole: Path, tmp_path: Path, stops_after: int) -> None:
    calls = itertools.count()
    outcome = toy_trainer(tmp_path, toy_settings()).train(should_stop=lambda: next(calls) >= stops_after)
    assert not outcome.progress.is_finished
    assert outcome.progress.step == stops_after + 1
    assert toy_trainer(tmp_path, toy_settings()).train(resume=True).progress.is_finished
    assert bits(tmp_path) == bits(whole)
    # Resuming a finished training changes nothing.
    assert toy_trainer(tmp_path, toy_settings()).train(resume=True).progress.step == 12
    assert bits(tmp_path) == bits(whole)


@pytest.mark.slow
def test_killed_training_resumes_to_equal_bits(whole: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.support.training_driver", str(tmp_path)]
    for step, more in ((2, []), (8, ["--resume"])):
        with subprocess.Popen([*command, *more], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line == f"step {step}\n":
                    process.kill()
                    break
        assert process.returncode == -signal.SIGKILL
    subprocess.run([*command, "--resume"], check=True, stdout=subprocess.DEVNULL)
    assert bits(tmp_path) == bits(whole)


def test_finished_training_is_not_overwritten(whole: Path) -> None:
    before = bits(whole)
    with pytest.raises(SpecError, match="Continue it with --resume"):
        toy_trainer(whole, toy_settings()).train()
    assert bits(whole) == before


def test_resume_without_state_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no training to resume"):
        toy_trainer(tmp_path, toy_settings()).train(resume=True)
    assert not list(tmp_path.iterdir())


def test_changed_settings_are_not_resumed(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    with pytest.raises(SpecError, match="other values of the settings"):
        toy_trainer(tmp_path / "copy", toy_settings(dropout=0.1)).train(resume=True)
    trainer = Trainer(toy_settings(), Machine(), Stripes(num_scenes=9), tmp_path / "copy", CARD)
    with pytest.raises(SpecError, match="other values of the labels"):
        trainer.train(resume=True)
    assert bits(tmp_path / "copy") == bits(whole)


@pytest.mark.parametrize("keep", [0, 40, 2000])
def test_damaged_state_is_rejected(whole: Path, tmp_path: Path, keep: int) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    state = tmp_path / "copy" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:keep])
    with pytest.raises(SpecError, match="state of the training cannot be read"):
        toy_trainer(tmp_path / "copy", toy_settings()).train(resume=True)
    assert state.stat().st_size == keep


class ValidationLog(NullObserver):
    """Records validations."""

    def __init__(self) -> None:
        self.found: list[tuple[int, bool]] = []

    def validated(self, validation: Validation, is_best: bool) -> None:
        self.found.append((validation.step, is_best))


def test_patience_ends_the_training(tmp_path: Path) -> None:
    observer = ValidationLog()
    settings = toy_settings(steps=200, patience=2)
    outcome = toy_trainer(tmp_path, settings, Machine(checkpoint_every=500), observer=observer).train()
    assert outcome.progress.is_finished
    assert outcome.progress.step < 200
    assert [is_best for _, is_best in observer.found[-3:]] == [True, False, False]
    assert outcome.progress.best_step == observer.found[-3][0]
    assert toy_trainer(tmp_path, settings).train(resume=True).progress == outcome.progress


def test_last_weights_are_kept_without_validation(tmp_path: Path) -> None:
    outcome = toy_trainer(tmp_path, toy_settings(validation_share=0.0)).train()
    state = load_file(tmp_path / "state.safetensors")
    for name, tensor in load(outcome.best).tensors.items():
        assert np.array_equal(tensor, state[f"average/{name}"]), name


def test_bf16_training_improves(tmp_path: Path) -> None:
    settings = toy_settings(steps=40, loss=LossWeights(lpc=0, score=1), dropout=0.0)
    values = {name: getattr(settings, name) for name in TrainSettings.__dataclass_fields__}
    toy_trainer(tmp_path, TrainSettings(**values | {"precision": "bf16"})).train()
    losses = [row["loss"] for row in read_curve(tmp_path / "curve.csv")]
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])


class WithoutFramesId(Stripes):
    """A clip source whose samples have no frames_id."""

    def __init__(self) -> None:
        super().__init__()
        self.samples = [dataclasses.replace(sample, frames_id=None) for sample in self.samples]


class Mislabelled(Stripes):
    """A clip source whose views have labels outside the scale."""

    def read(self, indices: Sequence[int], draw: int | None) -> Views:
        views = super().read(indices, draw)
        return Views(views.clips, np.full(len(indices), 101.0))


def test_view_labels_outside_scale_end_training(tmp_path: Path) -> None:
    with pytest.raises(FatalError, match="labels outside the scale"):
        Trainer(toy_settings(), Machine(), Mislabelled(), tmp_path, CARD).train()


def test_batch_must_divide_among_workers(tmp_path: Path) -> None:
    class Five:
        rank, size = 0, 5

    with pytest.raises(SpecError, match="must be a multiple of 5 workers"):
        toy_trainer(tmp_path, toy_settings(), group=Five())  # type: ignore[arg-type]


def test_invalid_renditions_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"batch_size 6 is not a multiple of training.renditions = 4"):
        toy_settings(renditions=4)
    with pytest.raises(SpecError, match=r"loss.pairs compares .* Set training.renditions to 2 or more"):
        toy_settings(loss=LossWeights(pairs=1.0))
    with pytest.raises(SpecError, match="sample '0-0' has no frames_id"):
        Trainer(toy_settings(renditions=2), Machine(), WithoutFramesId(), tmp_path, CARD)


def test_pair_loss_decreases(tmp_path: Path) -> None:
    settings = toy_settings(steps=60, loss=LossWeights(plcc=0, rank=0, lpc=0, pairs=1), dropout=0.0, renditions=2)
    toy_trainer(tmp_path, settings).train()
    pairs = [row["pairs"] for row in read_curve(tmp_path / "curve.csv")]
    assert np.mean(pairs[-10:]) < 0.6 * np.mean(pairs[:10])


def test_correlations_equal_numpy() -> None:
    scores, labels = np.array([1.0, 2.0, 2.0, 5.0]), np.array([10.0, 40.0, 20.0, 50.0])
    srcc, plcc = correlations(scores, labels)
    assert plcc == pytest.approx(np.corrcoef(scores, labels)[0, 1])
    assert srcc == pytest.approx(np.corrcoef([1, 2.5, 2.5, 4], [1, 3, 2, 4])[0, 1])
    assert correlations(np.ones(4), labels) == (0.0, 0.0)


def test_curve_drops_incomplete_last_line(whole: Path, tmp_path: Path) -> None:
    text = (whole / "curve.csv").read_text()
    (tmp_path / "curve.csv").write_text(text[: -len(text.splitlines()[-1]) // 2])
    rows: list[Mapping[str, float]] = list(read_curve(tmp_path / "curve.csv"))
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) < 12


def test_num_threads_is_set(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        toy_trainer(tmp_path, toy_settings(), Machine(num_threads=1))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
