"""Deterministic weights and inputs of the golden tests of FAST-VQA, FasterVQA and DOVER, without code of the authors.

They are bit-identical on every platform: only the frozen MT19937 streams of numpy's `RandomState`, exact float64
arithmetic and one rounding to float32 are used. `golden.npz` holds what the official code computes from them (its
repositories VQAssessment/FAST-VQA-and-FasterVQA and VQAssessment/DOVER, on a CPU).
"""

import csv
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).parent
MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)


def uniform(name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return uniform numbers in [-1, 1), float64, that depend on the name only."""
    seed = zlib.crc32(name.encode("utf-8")) & 0xFFFFFFFF
    return 2.0 * np.random.RandomState(seed).random_sample(shape) - 1.0


def weight(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the value of one learnable tensor, by its published name (without "module.")."""
    u = uniform(name, shape)
    leaf, parent = name.rsplit(".", 1)[-1], name.rsplit(".", 2)[-2]
    if leaf.endswith("position_bias_table"):
        w = 0.5 * u
    elif parent == "grn":
        w = 0.3 * u
    elif leaf == "gamma":
        w = 0.4 + 0.2 * u
    elif leaf == "bias":
        w = 0.1 * u
    elif len(shape) == 1:
        w = 1.0 + 0.2 * u
    else:
        gain = {"fc_hid": 2.0, "fc_last": 4.0}.get(parent, 1.0)
        w = gain * np.sqrt(3.0 / int(np.prod(shape[1:]))) * u
    return w.astype(np.float32)


def layout(file: str, variant: str) -> list[tuple[str, tuple[int, ...], str]]:
    """Return (name, shape, kind) of every entry of one variant in a list of names."""
    with (FOLDER / file).open() as rows:
        return [
            (row["key"], tuple(int(n) for n in row["shape"].split("x")), row["kind"])
            for row in csv.DictReader(rows, delimiter="\t")
            if variant in row["variants"].split(",")
        ]


def weights(variant: str) -> dict[str, NDArray[np.float32]]:
    """Return the learnable tensors of a published variant or of a reduced network, by name."""
    rows = layout("state_dict_keys.tsv", variant) or layout("golden_keys.tsv", variant)
    return {key: weight(key, shape) for key, shape, kind in rows if kind == "param"}


def video(seed: int, T: int, H: int, W: int, cell: int = 32, tcell: int = 4) -> NDArray[np.uint8]:
    """Return an RGB clip, uint8 [3, T, H, W]: coarse random blocks and pixel noise, in integer arithmetic."""
    rs = np.random.RandomState(seed)
    coarse = rs.randint(0, 256, size=(3, -(-T // tcell), -(-H // cell), -(-W // cell)))
    coarse = coarse.repeat(tcell, 1).repeat(cell, 2).repeat(cell, 3)[:, :T, :H, :W]
    noise = rs.randint(-48, 49, size=(3, T, H, W))
    clip: NDArray[np.uint8] = np.clip(coarse + noise, 0, 255).astype(np.uint8)
    return clip


def frame(seed: int, i: int, H: int, W: int, cell: int = 24) -> NDArray[np.uint8]:
    """Return frame i of an endless made-up film: uint8 RGB [H, W, 3], as a decoder returns it."""
    coarse = np.random.RandomState(seed * 10007 + i // 4).randint(0, 256, size=(-(-H // cell), -(-W // cell), 3))
    coarse = coarse.repeat(cell, 0).repeat(cell, 1)[:H, :W]
    noise = np.random.RandomState(seed * 10007 + 5000 + i).randint(-48, 49, size=(H, W, 3))
    clip: NDArray[np.uint8] = np.clip(coarse + noise, 0, 255).astype(np.uint8)
    return clip


def normalise(v: NDArray[Any]) -> NDArray[np.float32]:
    """Return a normalised clip, float32 [3, T, H, W]."""
    return ((v.astype(np.float32) - MEAN.reshape(3, 1, 1, 1)) / STD.reshape(3, 1, 1, 1)).astype(np.float32)


def offsets(seed: int, bound: int, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Return whole numbers in [0, bound), zeros where bound <= 0: in place of the random draws of the samplers."""
    if bound <= 0:
        return np.zeros(shape, np.int64)
    return np.random.RandomState(seed).randint(0, bound, size=shape).astype(np.int64)


LENGTHS = [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 71, 72, 73, 79, 80, 81, 95, 96, 97, 100,
           127, 128, 129, 150, 191, 192, 240, 255, 256, 257, 259, 260, 261, 300, 500, 601, 1000]  # fmt: skip

# Clip length, interval, number of clips.
SAMPLE_FRAMES = [(32, 1, 4), (32, 1, 1), (16, 1, 4), (16, 1, 1), (32, 2, 4), (32, 2, 1)]

# Name: frames of a segment, segments, interval, clips.
FRAGMENT_FRAMES = {
    "b_test": (32, 4, 2, 1), "b_train": (32, 1, 2, 1), "m_test": (16, 4, 2, 1), "m_train": (16, 1, 2, 1),
    "faster": (4, 8, 2, 1), "mt": (4, 4, 2, 1), "faster_2clips": (4, 8, 2, 2), "dover_t": (32, 3, 2, 1),
    "dover_a": (1, 32, 2, 1),
}  # fmt: skip


def time_bound(n: int, fsize_t: int, fragments_t: int, interval: int) -> int:
    """Return the upper end, excluded, of the offset of a segment."""
    return n // fragments_t - fsize_t * interval


def time_offsets(name: str, n: int) -> NDArray[np.int64]:
    """Return the offsets of the segments, int64 [clips, segments]."""
    fsize_t, fragments_t, interval, num_clips = FRAGMENT_FRAMES[name]
    return offsets(n + 17, time_bound(n, fsize_t, fragments_t, interval), (num_clips, fragments_t))


# Name: frames, height, width, rows, columns, patch height, patch width, frames that share an offset. "up" cases are
# smaller than the fragments.
FRAG_CASES = {
    "exact224": (4, 224, 224, 7, 7, 32, 32, 4),
    "p270x480": (8, 270, 480, 7, 7, 32, 32, 4),
    "p360x640": (8, 360, 640, 7, 7, 32, 32, 8),
    "p540x960": (4, 540, 960, 7, 7, 32, 32, 2),
    "tall640x360": (4, 640, 360, 7, 7, 32, 32, 4),
    "p1080x1920": (2, 1080, 1920, 7, 7, 32, 32, 2),
    "odd239x333": (6, 239, 333, 7, 7, 32, 32, 3),
    "one230x231": (2, 230, 231, 7, 7, 32, 32, 1),
    "ms5x5": (8, 270, 480, 5, 5, 32, 32, 8),
    "m4x4": (8, 270, 480, 4, 4, 32, 32, 8),
    "rect3x6": (2, 150, 400, 3, 6, 32, 48, 2),
    "up200x300": (2, 200, 300, 7, 7, 32, 32, 2),
    "up223x500": (2, 223, 500, 7, 7, 32, 32, 2),
    "up120x160": (4, 120, 160, 7, 7, 32, 32, 2),
    "up90x500": (2, 90, 500, 7, 7, 32, 32, 2),
    "up32x48": (2, 32, 48, 7, 7, 32, 32, 2),
    "up150m4": (2, 100, 150, 4, 4, 32, 32, 1),
    "image1": (1, 240, 320, 7, 7, 32, 32, 32),
}


def frag_input(name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Return a clip uint8 [3, T, H, W], and the row and column offsets of its fragments [rows, columns, groups]."""
    T, H, W, fh, fw, sh, sw, al = FRAG_CASES[name]
    al = 1 if T == 1 else al
    shape = (fh, fw, T // al)
    k = zlib.crc32(name.encode()) % 100000
    return video(k, T, H, W, cell=16, tcell=1), offsets(k + 1, H // fh - sh, shape), offsets(k + 2, W // fw - sw, shape)


def patch_sums(out: NDArray[Any], fh: int, fw: int, sh: int, sw: int, al: int) -> NDArray[np.int64]:
    """Return position-weighted sums over channels, frames, rows and columns of every patch, [rows, columns, groups]."""
    C, T = out.shape[:2]
    v = np.asarray(out).astype(np.int64).reshape(C, T // al, al, fh, sh, fw, sw)
    c, t, y, x = np.ogrid[:C, :al, :sh, :sw]
    w = (1 + (5 * y + 3 * x + 7 * c + 11 * t) % 13).reshape(C, 1, al, 1, sh, 1, sw)
    sums: NDArray[np.int64] = (v * w).sum((0, 2, 4, 6)).transpose(1, 2, 0)
    return sums


# Slots, rows, columns (already padded), window, shift.
GATE_CASES = [
    (2, 56, 56, (2, 7, 7), (0, 0, 0)), (2, 56, 56, (2, 7, 7), (0, 3, 3)), (2, 28, 28, (2, 7, 7), (0, 3, 3)),
    (2, 14, 14, (2, 7, 7), (0, 0, 0)), (2, 14, 14, (2, 7, 7), (0, 3, 3)), (2, 7, 7, (2, 7, 7), (0, 0, 0)),
    (4, 20, 20, (2, 5, 5), (1, 3, 3)), (4, 10, 10, (2, 5, 5), (2, 3, 3)), (2, 63, 63, (1, 7, 7), (0, 3, 3)),
    (2, 21, 42, (1, 7, 6), (0, 3, 3)), (3, 8, 8, (1, 2, 2), (0, 3, 3)), (2, 4, 6, (1, 1, 1), (4, 3, 3)),
    (4, 12, 15, (2, 4, 5), (2, 3, 0)),
]  # fmt: skip

# One stage alone: clips, channels, heads, slots, rows, columns, window of the table, scaled window or None, fragment
# table, merging. "corner" has a window that is smaller than that of its table.
LAYER_CASES: dict[str, tuple[int, int, int, int, int, int, tuple[int, ...], tuple[int, ...] | None, bool, bool]] = {
    "plain": (1, 16, 2, 4, 8, 8, (2, 4, 4), None, False, True),
    "grpb": (1, 16, 2, 4, 8, 8, (2, 4, 4), (2, 4, 4), True, True),
    "grpb_pad": (2, 16, 2, 5, 10, 9, (4, 4, 4), (3, 4, 4), True, True),
    "grpb_small": (1, 16, 2, 3, 6, 5, (4, 4, 4), (2, 3, 2), True, False),
    "corner": (1, 16, 2, 3, 3, 9, (4, 4, 4), None, True, False),
    "bigshift": (1, 16, 2, 4, 6, 6, (4, 4, 4), (2, 1, 2), True, False),
}

# Name: weights of, is the window scaled, seeds of the videos, frames, height, width.
MODEL_CASES = {
    "t224": ("tiny", True, [11], 32, 224, 224),
    "t_ms160": ("tiny", True, [12], 32, 160, 160),
    "t_mt": ("tiny", True, [13], 16, 224, 224),
    "t_odd": ("tiny", True, [14], 12, 200, 184),
    "t_pad": ("tiny", True, [15], 7, 230, 250),
    "t_t5": ("tiny", True, [16, 17], 5, 96, 64),
    "t_32": ("tiny", True, [18, 19], 4, 32, 32),
    "t_fixed": ("tiny", False, [20], 8, 160, 96),
    "t_fixed448": ("tiny", False, [21], 4, 448, 320),
    "m_128": ("tiny_m", True, [22], 16, 128, 128),
    "m_128fixed": ("tiny_m", False, [22], 16, 128, 128),
}


def model_input(name: str) -> NDArray[np.float32]:
    """Return normalised clips, float32 [B, 3, T, H, W]."""
    _, _, seeds, T, H, W = MODEL_CASES[name]
    return np.stack([normalise(video(s, T, H, W)) for s in seeds])


# Name: weights of, version, dims, depths, hidden, seeds of the videos, frames, height, width.
CONV_CASES = {
    "conv1": ("tiny_conv1", 1, (8, 16, 32, 64), (3, 2, 4, 1), 16, [31, 32], 6, 64, 96),
    "conv2": ("tiny_conv2", 2, (8, 16, 32, 64), (2, 2, 4, 2), 16, [33, 34], 6, 64, 96),
    "conv1_full": ("dover_aesthetic", 1, (96, 192, 384, 768), (3, 3, 9, 3), 64, [35], 8, 224, 224),
    "conv2_full": ("dover_mobile_aesthetic", 2, (48, 96, 192, 384), (2, 2, 6, 2), 32, [36], 8, 224, 224),
}


def conv_input(name: str) -> NDArray[np.float32]:
    """Return normalised clips, float32 [B, 3, T, H, W]."""
    seeds, T, H, W = CONV_CASES[name][-4:]
    return np.stack([normalise(video(s, T, H, W)) for s in seeds])


# From frames to score at full size. Name: weights of, sampler, frames, height, width, fragments per axis, frames that
# share an offset, clips, film.
E2E_CASES = {
    "FAST-VQA": ("fast_vqa_b", "b_test", 300, 270, 480, 7, 32, 4, 1),
    "FasterVQA": ("fast_vqa_b", "faster", 150, 288, 512, 7, 8, 1, 2),
    "FasterVQA-MS": ("fast_vqa_b", "faster", 150, 288, 512, 5, 8, 1, 2),
    "FasterVQA-MT": ("fast_vqa_b", "mt", 150, 288, 512, 7, 8, 1, 2),
    "FAST-VQA-M": ("fast_vqa_m", "m_test", 200, 270, 480, 4, 8, 4, 3),
}


def e2e_offsets(name: str) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the offsets of segments [1, segments], and of rows and columns of fragments [f, f, groups]."""
    _, sampler, n, H, W, f, al, _, film = E2E_CASES[name]
    fsize_t, fragments_t, _, _ = FRAGMENT_FRAMES[sampler]
    shape = (f, f, fsize_t * fragments_t // al)
    return time_offsets(sampler, n), offsets(film + 50, H // f - 32, shape), offsets(film + 60, W // f - 32, shape)


def probe(a: NDArray[Any], k: int = 64) -> NDArray[np.float64]:
    """Return k elements that are spread evenly over an array."""
    flat = np.asarray(a, np.float64).reshape(-1)
    return flat[np.arange(k) * (flat.size - 1) // (k - 1)]
