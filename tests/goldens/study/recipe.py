"""Deterministic pictures, clips and tables of the golden tests of features and of the regression protocol.

They are bit-identical on every platform: frozen MT19937 streams of numpy's `RandomState` and whole-number arithmetic.
"""

import numpy as np
from numpy.typing import NDArray

from tests.goldens.golden_recipe import uniform

Real = NDArray[np.float64]
Bytes = NDArray[np.uint8]

MAPS = {"m31x40": (101, 31, 40), "m64x48": (102, 64, 48), "m9x200": (103, 9, 200)}
FRAMES = {"f48x64": (201, 48, 64), "f67x91": (202, 67, 91), "f130x98": (203, 130, 98)}
CLIPS = {"c48": (301, 40, 48, 64, 12), "c60": (302, 19, 60, 82, 10), "c540": (303, 14, 540, 524, 8)}
NIQE = {"n1": (31, 288, 384), "n2": (32, 250, 333), "n3": (33, 200, 210)}
BRISQUE = {"b1": (41, 160, 200), "b2": (42, 121, 143), "b3": (43, 96, 64)}
RESIZES: dict[str, tuple[int, int, int, float | tuple[int, int]]] = {
    "u8_half": (401, 31, 44, 0.5),
    "u8_ratio": (402, 54, 96, 512 / 540),
    "u8_to40": (403, 54, 96, (40, 40)),
    "f_half": (404, 31, 44, 0.5),
    "f_ratio": (405, 54, 96, 512 / 540),
    "f_double": (406, 15, 22, 2.0),
    "u8_up": (407, 30, 20, (40, 40)),
}


def plane(seed: int, height: int, width: int, cell: int, amp: int, shift: tuple[int, int] = (0, 0)) -> Bytes:
    """Return blurred blocks, moved by `shift`, with noise of +-amp."""
    rows, columns = -(-height // cell) + 2, -(-width // cell) + 2
    blocks = np.random.RandomState(seed).randint(24, 232, size=(rows, columns)).repeat(cell, 0).repeat(cell, 1)
    blocks = np.roll(blocks, shift, (0, 1))
    padded = np.pad(blocks, 2, mode="edge").astype(np.int64)
    h, w = blocks.shape
    smooth = sum((padded[i : i + h, j : j + w] for i in range(5) for j in range(5)), np.zeros((h, w), np.int64)) // 25
    noise = np.random.RandomState(seed + 1000 + 17 * (shift[0] + 31 * shift[1]))
    pixels = smooth[:height, :width] + noise.randint(-amp, amp + 1, size=(height, width))
    return np.asarray(np.clip(pixels, 0, 255), np.uint8)


def rgb(seed: int, height: int, width: int) -> Bytes:
    """Return an RGB frame [height, width, 3]."""
    return np.stack([plane(seed + 7 * channel, height, width, 11, 14) for channel in range(3)], -1)


def grey(seed: int, height: int, width: int) -> Bytes:
    """Return a frame whose three channels are equal."""
    return np.repeat(plane(seed, height, width, 11, 14)[..., None], 3, -1)


def clip(seed: int, num: int, height: int, width: int) -> list[tuple[Bytes, Bytes, Bytes]]:
    """Return Y, U and V of each frame; blocks move by (1, 2) pixels a frame."""
    frames = []
    for t in range(num):
        chroma = [
            ((plane(seed + n, height // 2, width // 2, 5, 3, (t % 5, t % 6)).astype(int) + 128) // 2).astype(np.uint8)
            for n in (3, 5)
        ]
        frames.append((plane(seed, height, width, 11, 10, (t % 7, 2 * t % 13)), chroma[0], chroma[1]))
    return frames


def statistics_map(seed: int, height: int, width: int) -> Real:
    """Return a map of values of about -40 to 220."""
    noise = np.random.RandomState(seed + 5).random_sample((height, width))
    return plane(seed, height, width, 9, 20).astype(np.float64) * 0.9375 + noise * 4 - 40


def resize_input(name: str) -> NDArray[np.uint8] | Real:
    """Return the input of a resize; names that start with "u8" are bytes."""
    seed, height, width, _ = RESIZES[name]
    image = plane(seed, height, width, 7, 30)
    return image if name.startswith("u8") else image.astype(np.float64) * 1.25 - 60


def natural(seed: int, height: int, width: int) -> Bytes:
    """Return a picture whose detail falls with frequency, as in photographs: sums of smooth blocks of 64 to 2."""
    random = np.random.RandomState(seed)
    total = np.zeros((height, width), np.int64)
    for octave in range(6):
        cell = 64 >> octave
        blocks = random.randint(0, 257, size=(-(-height // cell) + 1, -(-width // cell) + 1))
        a = blocks.repeat(cell, 0).repeat(cell, 1)
        for _ in range(2):
            sums = np.cumsum(np.cumsum(np.pad(a, ((1, 0), (1, 0))), 0), 1)
            a = (sums[cell:, cell:] - sums[:-cell, cell:] - sums[cell:, :-cell] + sums[:-cell, :-cell]) // (cell * cell)
            a = np.pad(a, ((0, cell - 1), (0, cell - 1)), mode="edge")
        total += (a[:height, :width] - 128) * (64 >> octave)
    pixels = 128 + total // 90 + random.randint(-2, 3, size=(height, width))
    return np.asarray(np.clip(pixels, 0, 255), np.uint8)


def svr_table() -> tuple[Real, Real]:
    """Return features [150, 12], two of them NaN and one infinite, and labels [150] of 1..5."""
    u = uniform("svr.x", (150, 12))
    z = 1.5 * u[:, 0] - u[:, 1] + 0.8 * u[:, 2] * u[:, 3] + 0.5 * u[:, 4] ** 2
    labels = 3.0 + 0.6 * z + 0.35 * uniform("svr.y", (150,))
    features = np.exp(1.5 * u) * np.array([1, 10, 0.1, 100, 1, 5, 1, 1, 2, 2, 3, 1e3])
    features[7, 5], features[31, 9], features[90, 0] = np.nan, np.nan, np.inf
    return features, np.clip(labels, 1.0, 5.0)
