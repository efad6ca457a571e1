"""Distributed training on a real Ray: same result as one process, and recovery after a lost process."""

import os
import signal
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from kvq_batch.domain.errors import SpecError
from kvq_batch.engine.ray_train import train_distributed
from kvq_batch.training.settings import Machine, TrainSettings
from kvq_batch.training.state import read_curve
from kvq_batch.training.trainer import STATE, TrainingPlan, train_in_group
from tests.support.synthetic import CARD, Stripes, toy_settings

pytestmark = pytest.mark.slow

# These shift all logits of a softmax alike, so no score depends on them. Their gradient is rounding, which Adam scales
# to whole steps.
SHIFTS = {"weight_conv.bias", "weight_head.fc_last.bias"}


def plan(folder: Path, settings: TrainSettings) -> TrainingPlan:
    return TrainingPlan(settings, Machine(num_threads=1, checkpoint_every=4), Stripes(), folder, CARD)


class CrashingOnce(Stripes):
    """Kills its process once, in the middle of the training."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._marker = folder / "crashed"
        self._reads = 0

    def read(self, indices, draw):  # type: ignore[no-untyped-def]
        self._reads += draw is not None
        if self._reads == 7 and not self._marker.exists():
            self._marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(indices, draw)


@pytest.mark.faults
def test_two_processes_match_one(tmp_path: Path) -> None:
    # Each process draws its own dropout mask. Without dropout, only the order of additions differs.
    settings = toy_settings(dropout=0.0)
    single = plan(tmp_path / "single", settings)
    single.trainer().train()
    distributed = plan(tmp_path / "distributed", settings)
    train_distributed(partial(train_in_group, distributed), 2, "cpu", distributed.folder)
    expected, actual = (read_curve(p.folder / "curve.csv") for p in (single, distributed))
    assert [row["step"] for row in actual] == [row["step"] for row in expected]
    for name in ("loss", "plcc", "rank", "lpc", "score", "cells", "gradient_norm"):
        assert np.allclose([row[name] for row in actual], [row[name] for row in expected], rtol=2e-3), name
    weights = [load_file(p.folder / "best.safetensors") for p in (single, distributed)]
    assert weights[0].keys() > SHIFTS
    for name in weights[0].keys() - SHIFTS:
        assert np.allclose(weights[0][name], weights[1][name], atol=2e-3), name
    assert not (distributed.folder / "ray").exists()


@pytest.mark.faults
def test_lost_process_is_replaced_and_training_resumes(tmp_path: Path) -> None:
    settings = toy_settings()
    undisturbed = plan(tmp_path / "undisturbed", settings)
    train_distributed(partial(train_in_group, undisturbed), 2, "cpu", undisturbed.folder)
    values: Mapping[str, object] = {f: getattr(undisturbed, f) for f in TrainingPlan.__dataclass_fields__}
    folder = tmp_path / "disturbed"
    folder.mkdir()
    disturbed = TrainingPlan(**{**values, "folder": folder, "source": CrashingOnce(tmp_path)})  # type: ignore[arg-type]
    train_distributed(partial(train_in_group, disturbed), 2, "cpu", folder)
    assert (tmp_path / "crashed").exists()
    expected, actual = (load_file(p / STATE) for p in (undisturbed.folder, folder))
    for name, tensor in expected.items():
        assert np.allclose(tensor, actual[name], atol=1e-6), name


def raise_spec_error() -> None:
    raise SpecError("invalid setting")


def test_error_of_a_process_is_raised(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="invalid setting"):
        train_distributed(raise_spec_error, 2, "cpu", tmp_path, max_restarts=0)
