"""The Triton kernels of saliency compute what float64 computes; run by Triton's interpreter, without a GPU.

They are skipped without Triton, which comes with the CUDA builds of torch. `pip install triton` is enough to run them.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from kvq_batch.models.kvq import attention

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

# Interpreted kernels must be imported with this variable, so they run in a process of their own.
INTERPRETED = """
import json, torch
from kvq_batch.models.kvq.saliency_kernel import column_sums, is_usable

gaps = {}
for length, channels, dtype in ((1, 8, "float32"), (130, 40, "float32"), (300, 96, "float32"), (140, 24, "float16")):
    generator = torch.Generator().manual_seed(length)
    both = torch.randn(2, length, 2 * channels, generator=generator).to(getattr(torch, dtype))
    # Views with a longer stride, as the network passes them.
    query, key = both.chunk(2, dim=-1)
    expected = torch.softmax(0.4 * (query.double() @ key.double().mT), -1).sum(1)
    found = column_sums(query, key, 0.4)
    gaps[f"{length} {channels} {dtype}"] = ((found - expected).abs().max() / expected.max()).item()
print(json.dumps([gaps, is_usable(torch.device("cpu"))]))
"""


@needs_triton
def test_column_sums_equal_float64() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], check=True, capture_output=True, text=True, env=environment
    )
    gaps, is_usable = json.loads(done.stdout)
    assert is_usable
    assert max(gaps.values()) < 1e-5, gaps


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@needs_triton
def test_fused_saliency_is_used_on_a_gpu_and_equals_float64() -> None:
    device = torch.device("cuda")
    assert attention._fused_column_sums(device) is not None
    query, key = torch.randn(2, 3, 12544, 384, device=device, dtype=torch.float16)
    found = attention.saliencies(query, key, 32**-0.5)
    for clip in range(3):
        expected = torch.zeros(12544, dtype=torch.float64, device=device)
        for rows in query[clip].double().split(1024):
            expected += torch.softmax(32**-0.5 * (rows @ key[clip].double().mT), -1).sum(0)
        assert (found[clip] - expected).abs().max() < 1e-4 * expected.max()


@pytest.mark.skipif(importlib.util.find_spec("triton") is not None, reason="Triton is installed")
def test_saliency_needs_no_triton() -> None:
    assert attention._fused_column_sums(torch.device("cpu")) is None
