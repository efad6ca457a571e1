"""Deterministic weights and inputs of the golden tests of the saliency study's networks, without code of a reference.

They are bit-identical on every platform: only the frozen MT19937 streams of numpy's `RandomState`, integer arithmetic,
exact float64 arithmetic and one rounding to float32 are used.
"""

import csv
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).parent
FRAMES = {"d224": (501, 224, 224, 28), "d96x160": (502, 96, 160, 16), "d97x131": (503, 97, 131, 13)}
"""Name of a frame: seed, height, width, side of its blocks."""
_MEAN = np.array([0.485, 0.456, 0.406])
_STD = np.array([0.229, 0.224, 0.225])


def plane(seed: int, height: int, width: int, cell: int, noise: int) -> NDArray[np.uint8]:
    """Return a plane, uint8 [H, W]: coarse random blocks, blurred with integers, and pixel noise."""
    rs = np.random.RandomState(seed)
    grid = -(-height // cell) + 2, -(-width // cell) + 2
    coarse = rs.randint(24, 232, size=grid).repeat(cell, 0).repeat(cell, 1)
    padded = np.pad(coarse, 2, mode="edge").astype(np.int64)
    total = np.zeros(coarse.shape, np.int64)
    for row in range(5):
        for column in range(5):
            total += padded[row : row + coarse.shape[0], column : column + coarse.shape[1]]
    added = np.random.RandomState(seed + 1000).randint(-noise, noise + 1, size=(height, width))
    noisy: NDArray[np.uint8] = np.clip((total // 25)[:height, :width] + added, 0, 255).astype(np.uint8)
    return noisy


def rgb(seed: int, height: int, width: int, cell: int, noise: int = 20) -> NDArray[np.uint8]:
    """Return a frame, uint8 RGB [H, W, 3]."""
    return np.stack([plane(seed + 7 * channel, height, width, cell, noise) for channel in range(3)], -1)


def normalised(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return a frame as torchvision's transforms give it, float32 [1, 3, H, W]."""
    x = (frame.astype(np.float32) / np.float32(255) - _MEAN.astype(np.float32)) / _STD.astype(np.float32)
    planes: NDArray[np.float32] = np.ascontiguousarray(x.transpose(2, 0, 1), np.float32)[None]
    return planes


def uniform(name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return uniform numbers in [-1, 1), float64, that depend on the name only."""
    return 2.0 * np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF).random_sample(shape) - 1.0


def weight(net: str, key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return one tensor of "resnet50", "vgg16" or "vsfa" by its published name."""
    name = f"{net}/{key}"
    leaf, parent = key.rsplit(".", 1)[-1], key.split(".")[-2]
    if leaf == "running_var":
        w = 1.0 + 0.5 * uniform(name, shape)
    elif leaf == "running_mean" or leaf.startswith("bias"):
        w = 0.1 * uniform(name, shape)
    elif len(shape) == 1:  # smaller on the last norm of a residual branch
        w = (0.4 if parent == "bn3" else 1.0) * (1.0 + 0.2 * uniform(name, shape))
    else:
        gain = np.sqrt(2.0)
        if net == "vsfa":
            gain = {"fc0": 0.25, "rnn": 1.0, "q": 2.0}.get(parent, 1.0)
        elif key == "classifier.6.weight":
            gain = 4.0
        scale = gain * np.sqrt(3.0 / int(np.prod(shape[1:])))
        if key != "features.0.weight":
            return scaled_uniform(name, shape, float(scale))
        u = uniform(name, shape)
        w = scale * (u - u.mean(axis=(1, 2, 3), keepdims=True))
    found: NDArray[np.float32] = np.asarray(w, np.float32)
    return found


def scaled_uniform(name: str, shape: tuple[int, ...], scale: float) -> NDArray[np.float32]:
    """Return `scale * uniform(name, shape)` as float32, a quarter of a million numbers at a time.

    VGG-16 has 138 million: whole arrays of float64 took 17 s.
    """
    rs = np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF)
    found = np.empty(int(np.prod(shape)), np.float32)
    for start in range(0, found.size, 1 << 18):
        part = found[start : start + (1 << 18)]
        u = rs.random_sample(part.size)
        u *= 2.0
        u -= 1.0
        u *= scale
        part[:] = u
    return found.reshape(shape)


def layout(net: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of every entry of a published state dict by name, () for a counter."""
    with (FOLDER / "state_dict_keys.tsv").open() as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["net"] == net]
    return {r["key"]: () if r["shape"] == "scalar" else tuple(map(int, r["shape"].split("x"))) for r in rows}


def weights(net: str) -> dict[str, NDArray[np.float32]]:
    """Return every tensor of a network by its published name, without counters."""
    return {key: weight(net, key, shape) for key, shape in layout(net).items() if shape}


def vsfa_features(num_frames: int) -> NDArray[np.float32]:
    """Return features [T, 4096], not negative, as means and standard deviations of a ResNet are."""
    base = np.abs(uniform("vsfa.features", (1, 4096)))
    change = 1.0 + 0.5 * uniform(f"vsfa.features.{num_frames}", (num_frames, 4096))
    return (base * change).astype(np.float32)


def similarity_inputs() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return features [2048], not negative, and a saliency map [224, 224] in 0..1."""
    deep = np.maximum(0.0, uniform("alg3.deep", (2048,)) + 0.4)
    y, x = np.mgrid[0:224, 0:224] / 223.0
    noise = (uniform("alg3.map", (224, 224)) + 1) * 0.5
    saliency = 0.6 * np.maximum(0, 1 - 4 * ((x - 0.6) ** 2 + (y - 0.4) ** 2)) + 0.2 * noise
    return deep.astype(np.float32), (saliency / saliency.max()).astype(np.float32)
