"""Two processes of a real Ray train what one would, and one that is lost costs the steps since the last state."""

import os
import signal
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from kvq_batch.domain.errors import SpecError
from kvq_batch.engine.ray_train import train_together
from kvq_batch.training.curve import read_curve
from kvq_batch.training.plan import TrainingPlan, train_as_member
from kvq_batch.training.settings import Machine, TrainSettings
from kvq_batch.training.trainer import STATE
from tests.support.synthetic import CARD, Stripes, toy_settings

pytestmark = pytest.mark.slow


def plan(folder: Path, settings: TrainSettings) -> TrainingPlan:
    return TrainingPlan(settings, Machine(num_threads=1, checkpoint_every=4), Stripes(), folder, CARD)


class Dying(Stripes):
    """One of its readers dies in the middle of the training, once."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._mark = folder / "died"
        self._reads = 0

    def read(self, indices, draw):  # type: ignore[no-untyped-def]
        self._reads += draw is not None
        if self._reads == 7 and not self._mark.exists():
            self._mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(indices, draw)


@pytest.mark.faults
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    # Dropout draws in each process for itself; without it, only sums are added in another order.
    settings = toy_settings(dropout=0.0)
    alone = plan(tmp_path / "alone", settings)
    alone.trainer().train()
    together = plan(tmp_path / "together", settings)
    train_together(partial(train_as_member, together), 2, "cpu", together.folder)
    expected, found = (read_curve(p.folder / "curve.csv") for p in (alone, together))
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for name in ("loss", "plcc", "rank", "lpc", "score", "cells", "gradient_norm"):
        assert np.allclose([row[name] for row in found], [row[name] for row in expected], rtol=2e-3), name
    weights = [load_file(p.folder / "best.safetensors") for p in (alone, together)]
    for name, tensor in weights[0].items():
        assert np.allclose(tensor, weights[1][name], atol=2e-3), name
    assert not (together.folder / "ray").exists()


@pytest.mark.faults
def test_a_lost_process_is_replaced_and_the_training_goes_on(tmp_path: Path) -> None:
    settings = toy_settings()
    undisturbed = plan(tmp_path / "undisturbed", settings)
    train_together(partial(train_as_member, undisturbed), 2, "cpu", undisturbed.folder)
    values: Mapping[str, object] = {f: getattr(undisturbed, f) for f in TrainingPlan.__dataclass_fields__}
    folder = tmp_path / "disturbed"
    folder.mkdir()
    disturbed = TrainingPlan(**{**values, "folder": folder, "source": Dying(tmp_path)})  # type: ignore[arg-type]
    train_together(partial(train_as_member, disturbed), 2, "cpu", folder)
    assert (tmp_path / "died").exists()
    expected, found = (load_file(p / STATE) for p in (undisturbed.folder, folder))
    for name, tensor in expected.items():
        assert np.allclose(tensor, found[name], atol=1e-6), name


def translate_storage_errors() -> None:
    raise SpecError("no such thing")


@pytest.mark.parametrize("member", [translate_storage_errors])
def test_what_a_process_refuses_is_said(tmp_path: Path, member: Callable[[], None]) -> None:
    with pytest.raises(SpecError, match="no such thing"):
        train_together(member, 2, "cpu", tmp_path, max_restarts=0)
