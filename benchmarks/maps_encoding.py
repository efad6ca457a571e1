"""Compare encodings of stored maps: bytes per video, and errors of cells, time slots and scores.

    python benchmarks/maps_encoding.py [--model kvq-tiny] [--scenes 4]

Maps are those of the untrained model for synthetic scenes, clean and degraded. Criterion: the score that SQL recomputes
from the stored maps is within 0.1% of the spread (standard deviation) of the scores. The spread of a trained model may
differ: run it again with one. Prints Markdown tables.
"""

import argparse
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kvq_batch.domain.maps import quantise
from kvq_batch.domain.scorer import ModelOptions, Prediction
from kvq_batch.media.synthesis import SCENES, ClipShape
from kvq_batch.models import registry

SHAPE = ClipShape(width_px=448, height_px=448, num_frames=32)
Reals = NDArray[np.float64]
Levels = NDArray[np.integer[Any]]
Coder = Callable[[Reals], tuple[Levels, Reals]]


def predictions(model: str, num_scenes: int) -> list[Prediction]:
    scorer = registry.build(ModelOptions(name=model, num_threads=2))
    found = []
    for number in range(num_scenes):
        kind = list(SCENES)[number % len(SCENES)]
        clip = np.stack(list(SCENES[kind](SHAPE, np.random.default_rng([0, number]))))
        noise = np.random.default_rng(number).normal(0, 24, clip.shape)
        coarse = clip[:, ::8, ::8].repeat(8, axis=1).repeat(8, axis=2)
        for version in (clip, (clip + noise).clip(0, 255).astype(np.uint8), coarse):
            found += scorer.score([version])
    return found


def linear(bits: int) -> Coder:
    """Return a coder that quantises a map linearly over its own range."""
    top, kind = 2 ** (bits - 1) - 1, np.int8 if bits == 8 else np.int16

    def code(values: Reals) -> tuple[Levels, Reals]:
        low, high = values.min(), values.max()
        scale, offset = (high - low) / (2 * top), (high + low) / 2
        levels = np.rint((values - offset) / scale).astype(kind)
        return levels, levels * scale + offset

    return code


def root(bits: int) -> Coder:
    """Return a coder that quantises the square root of a map linearly."""

    def code(values: Reals) -> tuple[Levels, Reals]:
        levels, roots = linear(bits)(np.sqrt(values))
        return levels, roots**2

    return code


def shifted(maps: tuple[Reals, Reals]) -> tuple[tuple[Levels, Reals], tuple[Levels, Reals]]:
    """Return the levels that `kvq_batch.domain.maps` stores, and their values."""
    row = quantise(maps[0].astype(np.float32), maps[1].astype(np.float32)).row()
    shape = maps[0].shape
    texture = (row["texture"] * row["texture_scale"] + row["texture_offset"]).reshape(shape)
    saliency = ((row["saliency"] * row["saliency_scale"] + row["saliency_offset"]) ** 2).reshape(shape)
    return (row["texture"], texture), (row["saliency"], saliency)


def num_bytes(columns: Sequence[Sequence[NDArray[Any]]], encoding: str | None = None) -> float:
    """Return the bytes per video in a zstd Parquet file with both maps."""
    arrays = [pa.array([levels.ravel() for levels in column]) for column in columns]
    sink = pa.BufferOutputStream()
    options: dict[str, Any] = {"use_dictionary": False, "column_encoding": encoding} if encoding else {}
    pq.write_table(pa.table(arrays, names=["texture", "saliency"]), sink, compression="zstd", **options)
    return float(sink.tell() / len(columns[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="kvq-tiny")
    parser.add_argument("--scenes", type=int, default=4)
    arguments = parser.parse_args()
    found = predictions(arguments.model, arguments.scenes)
    maps = [
        (p.texture.astype(np.float64), p.saliency.astype(np.float64))
        for p in found
        if p.texture is not None and p.saliency is not None
    ]
    scores = np.array([np.mean(texture * saliency) for texture, saliency in maps])
    slots = np.array([(texture * saliency).mean(axis=(1, 2)) for texture, saliency in maps])
    spread = scores.std()
    print(f"{len(maps)} clips of {arguments.model}, spread of scores {spread:.4g}; errors are the largest\n")
    print("| texture | saliency | bytes per video | texture | saliency | slot, % of spread | score, % of spread |")
    print("|---|---|---:|---:|---:|---:|---:|")
    plain = {"int8": linear(8), "int16": linear(16)}
    roots = {"int8": linear(8), "int8 of root": root(8), "int16 of root": root(16)}
    rows: list[tuple[str, str, list[Any]]] = [
        (first, second, [(plain[first](t), roots[second](s)) for t, s in maps])
        for first, second in itertools.product(plain, roots)
    ]
    rows.append(("int8, offset shifted (stored)", "int8 of root (stored)", [shifted(pair) for pair in maps]))
    for first, second, coded in rows:
        errors = [[np.abs(values - true).max() for (_, values), true in zip(pair, given, strict=True)]
                  for pair, given in zip(coded, maps, strict=True)]  # fmt: skip
        products = [texture[1] * saliency[1] for texture, saliency in coded]
        score = np.abs([p.mean() for p in products] - scores).max() / spread * 100
        slot = np.abs(np.array([p.mean(axis=(1, 2)) for p in products]) - slots).max() / spread * 100
        texture_error, saliency_error = np.max(errors, axis=0)
        size = num_bytes([[pair[0][0] for pair in coded], [pair[1][0] for pair in coded]])
        print(
            f"| {first} | {second} | {size:.0f} | {texture_error:.2g} | {saliency_error:.2g} "
            f"| {slot:.2g} | {score:.2g} |"
        )
    stored = rows[-1][2]
    columns = [[pair[0][0] for pair in stored], [pair[1][0] for pair in stored]]
    floats = [[t.astype(np.float32) for t, _ in maps], [s.astype(np.float32) for _, s in maps]]
    print("\n| encoding of the stored levels | bytes per video |\n|---|---:|")
    print(f"| dictionary (pyarrow's default, stored) | {num_bytes(columns):.0f} |")
    for encoding in ("PLAIN", "BYTE_STREAM_SPLIT", "DELTA_BINARY_PACKED"):
        print(f"| {encoding} | {num_bytes(columns, encoding):.0f} |")
    print(f"| float32 maps, for comparison | {num_bytes(floats):.0f} |")


if __name__ == "__main__":
    main()
