"""Deterministic weights and inputs of the golden tests of UVQ, MDTVSFA and BVQA-2022, without code of a reference.

They are bit-identical on every platform: only the frozen MT19937 streams of numpy's `RandomState`, exact float64
arithmetic and one rounding to float32 are used.
"""

import csv
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).parent
# Keep the signal alive through 50 layers: matrices, 2D and 3D convolutions, by the number of axes.
_GAINS = {4: 1.5, 5: 1.7}


def uniform(name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return uniform numbers in [-1, 1), float64, that depend on the name only."""
    return 2.0 * np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF).random_sample(shape) - 1.0


def weight(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return one tensor by its published name."""
    u = uniform(name, shape)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "running_mean" or leaf.endswith("bias") or "bias_" in leaf:
        w = 0.1 * u
    elif leaf == "running_var":
        w = 1.0 + 0.5 * u
    elif len(shape) == 1:
        w = 1.0 + 0.2 * u
    else:
        gain = 1.0 if name.endswith("features.0.0.weight") else _GAINS.get(len(shape), 1.0)
        w = gain * np.sqrt(3.0 / int(np.prod(shape[1:]))) * u
    return w.astype(np.float32)


def layout(variant: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of every entry of a published state dict by name, () for a counter."""
    with (FOLDER / "state_dict_keys.tsv").open() as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if variant in row["variants"].split(",")]
    return {r["key"]: tuple(map(int, r["shape"].split("x"))) if r["shape"] else () for r in rows}


def weights(variant: str) -> dict[str, NDArray[np.float32]]:
    """Return every tensor of a network by its published name, without counters."""
    return {key: weight(key, shape) for key, shape in layout(variant).items() if shape}


def picture(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    """Return a picture, uint8 RGB [H, W, 3]: coarse random blocks and pixel noise."""
    rs = np.random.RandomState(seed)
    coarse = rs.randint(0, 256, size=(-(-height // 16), -(-width // 16), 3))
    coarse = coarse.repeat(16, 0).repeat(16, 1)[:height, :width]
    noisy: NDArray[np.uint8] = np.clip(coarse + rs.randint(-48, 49, (height, width, 3)), 0, 255).astype(np.uint8)
    return noisy


def in_range(pictures: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Return pictures in -1..1, float32 [B, 3, H, W]."""
    x = (np.asarray(pictures, np.float64) / 255.0 - 0.5) * 2.0
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)).astype(np.float32)


def uvq_features(kind: str, count: int) -> NDArray[np.float32]:
    """Return features in the shape that the aggregation networks of UVQ take, channels last."""
    shape = {"content15": (count, 8, 8, 128), "distortion15": (count, 24, 24, 128)}.get(kind, (count, 16, 16, 100))
    return (1.5 * uniform(f"uvq.{kind}", shape)).astype(np.float32)


def frame_features(num_frames: int, num_features: int) -> NDArray[np.float32]:
    """Return features of frames [T, F], not negative, as after a ReLU."""
    return np.abs(uniform(f"frames.{num_frames}.{num_features}", (num_frames, num_features))).astype(np.float32)


def probe(values: NDArray[np.float32], count: int = 256) -> NDArray[np.float64]:
    """Return `count` evenly spread elements."""
    flat = np.asarray(values, np.float64).reshape(-1)
    return flat[np.arange(count) * (flat.size - 1) // (count - 1)]
