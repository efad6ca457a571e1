"""The benchmark of KVQ on a GPU: half precisions are compared anywhere, and a missing GPU is reported."""

import sys

import pytest
import torch

from benchmarks import kvq_gpu
from tests.support.kvq_cases import SMALL


def test_fp16_is_closer_to_fp32_than_bf16() -> None:
    fp16, bf16 = kvq_gpu.deviation(3, torch.device("cpu"), SMALL, (4, 48, 48))
    assert 0 < fp16["share_of_spread"] < bf16["share_of_spread"] < 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_missing_gpu_is_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["kvq_gpu", "--clips", "0", "--batch", "2"])
    kvq_gpu.main()
    printed = capsys.readouterr().out
    assert "not measured: torch finds no GPU" in printed
    assert "batch of 2, counted without a GPU | kernels " in printed
    assert "syncs 0" in printed


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_every_row_of_a_gpu_is_measured() -> None:
    rows = kvq_gpu.measured(2, 2)
    assert all(value > 0 for row in rows for key, value in row.items() if key.startswith("ms_per_clip"))
