"""Deterministic weights and inputs of the golden tests of SwinV2, the coarse-to-fine network and its losses.

They are bit-identical on every platform: only the frozen MT19937 streams of numpy's `RandomState`, exact float64
arithmetic and one rounding to float32 are used.
"""

import csv
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).parent
MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])
_EMBEDDINGS = ("cls", "pos_embed", "stage_embed", "video_token", "time_embed")


def uniform(name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return uniform numbers in [-1, 1), float64, that depend on the name only."""
    return 2.0 * np.random.RandomState(zlib.crc32(name.encode("utf-8")) & 0xFFFFFFFF).random_sample(shape) - 1.0


def weight(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the value of one tensor by its name; some `logit_scale` are above the limit of ln 100."""
    u = uniform(name, shape)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "logit_scale":
        w = np.log(10.0) + 3.0 * u
    elif leaf in _EMBEDDINGS:
        w = 0.5 * u
    elif leaf.endswith("bias"):
        w = 0.1 * u
    elif len(shape) == 1:
        w = 1.0 + 0.2 * u
    else:
        gain = 1.5 if len(shape) == 4 and not name.endswith("features.0.0.weight") else 1.0
        w = gain * np.sqrt(3.0 / int(np.prod(shape[1:]))) * u
    values: NDArray[np.float32] = w.astype(np.float32)
    return values


def layout(variant: str) -> list[tuple[str, tuple[int, ...], str]]:
    """Return (name, shape, kind) of every entry of one variant."""
    with (FOLDER / "state_dict_keys.tsv").open() as rows:
        return [
            (row["key"], tuple(int(n) for n in row["shape"].split("x")) if row["shape"] else (), row["kind"])
            for row in csv.DictReader(rows, delimiter="\t")
            if variant in row["variants"].split(",")
        ]


def weights(variant: str) -> dict[str, NDArray[np.float32]]:
    """Return the learnable tensors of a variant by name."""
    return {key: weight(key, shape) for key, shape, kind in layout(variant) if kind == "param"}


def picture(seed: int, H: int, W: int, cell: int = 16) -> NDArray[np.uint8]:
    """Return a picture uint8 [H, W, 3]: coarse random blocks and pixel noise, in integer arithmetic."""
    rs = np.random.RandomState(seed)
    coarse = rs.randint(0, 256, size=(-(-H // cell), -(-W // cell), 3))
    coarse = coarse.repeat(cell, 0).repeat(cell, 1)[:H, :W]
    pixels: NDArray[np.uint8] = np.clip(coarse + rs.randint(-48, 49, size=(H, W, 3)), 0, 255).astype(np.uint8)
    return pixels


def imagenet(pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Return normalised pictures, float32 [B, 3, H, W]: (v / 255 - mean) / std in float64, one rounding."""
    x = (np.asarray(pictures, np.float64) / 255.0 - MEAN) / STD
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)).astype(np.float32)


# Weights of, seeds of the pictures, height, width. In "v2_64" the last map is smaller than its window; "v2_odd" is
# padded in every stage and every merging; "v2_32" is shifted on one axis only; "v2_t" has the published sizes.
V2_CASES = {
    "v2_128": ("swinv2_tiny_test", [11], 128, 128),
    "v2_64": ("swinv2_tiny_test", [12, 13], 64, 64),
    "v2_odd": ("swinv2_tiny_test", [14], 72, 100),
    "v2_32": ("swinv2_tiny_test", [15], 32, 40),
    "v2_t": ("swin_v2_t", [16], 256, 256),
}
# Seeds of the videos, frames, height, width.
CTF_CASES = {"ctf_5": ([21, 22], 5, 64, 64), "ctf_1": ([23], 1, 72, 100)}


def v2_input(name: str) -> NDArray[np.float32]:
    """Return normalised pictures, float32 [B, 3, H, W]."""
    _, seeds, H, W = V2_CASES[name]
    return imagenet([picture(s, H, W) for s in seeds])


def ctf_input(name: str) -> NDArray[np.float32]:
    """Return normalised videos, float32 [B, T, 3, H, W]."""
    seeds, T, H, W = CTF_CASES[name]
    return np.stack([imagenet([picture(100 * s + t, H, W) for t in range(T)]) for s in seeds])


# Groups of the samples: 4 bitrates x 2 references, groups of one member, equal labels.
LOSS_CASES = {
    "balanced": [0, 1, 2, 3, 0, 1, 2, 3],
    "uneven": [5, 5, 2, 2, 2, 9, 2, 5, 5, 7],
    "ties": [0, 0, 0, 1, 1, 1],
}


def loss_input(
    name: str, dim: int = 16
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Return features [n, dim], predictions [n], labels [n] in 0..1, and groups [n]."""
    g = np.array(LOSS_CASES[name])
    f = uniform(f"features.{name}", (len(g), dim)) + 0.7 * uniform(f"centres.{name}", (16, dim))[g]
    y = np.round(0.5 + 0.45 * uniform(f"labels.{name}", (len(g),)), 3)
    if name == "ties":
        y[1] = y[0]
        y[4] = y[3] + 0.005
    q = y + 0.6 * uniform(f"errors.{name}", (len(g),))
    return f, q, y, g


def probe(a: NDArray[np.float64], k: int = 64) -> NDArray[np.float64]:
    """Return k elements that are spread evenly over an array."""
    flat = np.asarray(a, np.float64).reshape(-1)
    return flat[np.arange(k) * (flat.size - 1) // (k - 1)]
