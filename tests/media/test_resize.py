"""Resize compared with stored goldens, and with torch, which the published code calls."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kvq_batch.media.resize import bicubic_taps, resize
from kvq_batch.media.synthesis import SCENES, ClipShape
from tests.goldens import golden_recipe

GOLDENS = np.load(Path(__file__).parents[1] / "goldens" / "golden_media.npz")
CASES = [("30x50", 71), ("720x1280", 72), ("1080x606", 73), ("448x448", 74)]


def test_resize_uses_one_blas_thread() -> None:
    # In a process of its own, without the variables that limit threads at the start.
    program = """
import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits
from kvq_batch.media.resize import resize
threadpool_limits(2, user_api="blas")
blas = lambda: {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}
assert blas() == {2}, blas()
resize(np.zeros((32, 32, 3), np.uint8), (16, 16))
assert blas() == {1}, blas()
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def torch_resize(frames: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    planes = torch.from_numpy(np.moveaxis(frames, -1, -3).copy()).float()
    resized = torch.nn.functional.interpolate(planes, size=size, mode="bicubic", align_corners=False, antialias=False)
    return np.moveaxis(resized.clamp(0, 255).round().to(torch.uint8).numpy(), -3, -1)


@pytest.mark.parametrize(("name", "seed"), CASES)
def test_golden_resizes(name: str, seed: int) -> None:
    height, width = map(int, name.split("x"))
    video = golden_recipe.video(seed, 2, height, width, cell=max(4, min(height, width) // 8), tcell=1)
    frames = np.ascontiguousarray(np.moveaxis(video, 0, -1))
    resized = resize(frames, (448, 448))
    probe = np.moveaxis(resized, -1, 0)[:, :, ::37, ::41]
    golden = GOLDENS[f"resize.{name}.seed{seed}.probe"]
    assert np.abs(probe.astype(int) - golden).max() <= 1
    assert np.mean(probe != golden) < 2e-3
    wanted = GOLDENS[f"resize.{name}.seed{seed}.sum"][0]
    assert abs(int(resized.sum(dtype=np.int64)) - int(wanted)) <= 1e-4 * resized.size


@pytest.mark.parametrize("shape", [(1080, 1920), (720, 1280), (240, 426), (31, 7), (1, 1), (448, 1000)])
def test_equals_torch_but_for_ties(shape: tuple[int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, *shape, 3), dtype=np.uint8)
    ours, theirs = resize(frames, (448, 448)), torch_resize(frames, (448, 448))
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= 1
    assert np.mean(difference > 0) < 1e-4


@pytest.mark.parametrize("scene", list(SCENES))
@pytest.mark.parametrize("shape", [ClipShape(640, 360, num_frames=1), ClipShape(1920, 1080, num_frames=1)])
def test_pictures_differ_from_torch_in_ties_only(scene: str, shape: ClipShape) -> None:
    # Flat colours and soft pictures come closer to ties, and more often, than noise does.
    frames = np.stack(list(SCENES[scene](shape, np.random.default_rng(0))))
    ours, theirs = resize(frames, (448, 448)), torch_resize(frames, (448, 448))
    differs = ours != theirs
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert np.mean(differs) < 5e-3
    planes = torch.from_numpy(np.moveaxis(frames, -1, -3).copy()).double()
    exact = torch.nn.functional.interpolate(planes, (448, 448), mode="bicubic", antialias=False).numpy()
    from_tie = np.abs(np.moveaxis(exact, -3, -1) % 1 - 0.5)
    assert from_tie[differs].max(initial=0.0) < 0.01


def test_other_sizes_than_square() -> None:
    frames = np.random.default_rng(1).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    ours, theirs = resize(frames, (33, 131)), torch_resize(frames[None], (33, 131))[0]
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_frame_of_the_size_is_unchanged() -> None:
    frame = np.random.default_rng(2).integers(0, 256, (448, 448, 3), dtype=np.uint8)
    assert resize(frame, (448, 448)) is frame
    out = np.empty_like(frame)
    assert resize(frame, (448, 448), out) is out
    assert np.array_equal(out, frame)


def test_output_array_and_views() -> None:
    frames = np.random.default_rng(3).integers(0, 256, (1, 50, 60, 3), dtype=np.uint8)
    turned = np.rot90(frames[0])
    out = np.empty((20, 30, 3), np.uint8)
    assert resize(turned, (20, 30), out) is out
    assert np.array_equal(out, resize(np.ascontiguousarray(turned), (20, 30)))


def test_weights_of_a_position_sum_to_one() -> None:
    positions, weights = bicubic_taps(1080, 448)
    assert positions.min() == 0
    assert positions.max() == 1079
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
