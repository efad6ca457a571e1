"""Measure what a GPU makes of KVQ, and what half precision costs.

    python -m benchmarks.kvq_gpu [--output markdown|json] [--batch 8] [--repeats 5] [--clips 8]

Errors of half precision are measured on any machine, with random weights: root mean square error of the scores of
different clips, as a share of the standard deviation of these scores. Everything else needs a GPU: milliseconds a clip,
kernels and host synchronisations a batch, and how much of the copies overlaps with computing. Without a GPU these rows
say so.
"""

import argparse
import json
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kvq_batch.models.kvq.config import PUBLISHED
from kvq_batch.models.kvq.network import KvqNetwork, build_network
from kvq_batch.models.kvq.pixels import normalise
from kvq_batch.models.kvq.untrained import untrained_tensors

# A quarter of the frame and of the frames, because a CPU emulates half precision slowly.
DEVIATION_SHAPE = (8, 224, 224)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

Row = dict[str, Any]


def synthetic_clip(seed: int, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return a clip [T, H, W, 3] of drifting gratings and noise, of a contrast that depends on the seed."""
    generator = np.random.default_rng(seed)
    time, row, column = np.meshgrid(*(np.arange(extent) for extent in shape), indexing="ij", sparse=True)
    angle, period, speed = generator.uniform(0, np.pi), generator.uniform(4, 60), generator.uniform(-2, 2)
    wave = np.sin(2 * np.pi / period * (row * np.sin(angle) + column * np.cos(angle) + speed * time))
    colour = generator.uniform(40, 200, 3)
    noise = generator.normal(0, generator.uniform(0, 30), (*shape, 3))
    pixels: NDArray[np.float64] = colour + generator.uniform(5, 80) * wave[..., None] + noise
    return pixels.clip(0, 255).astype(np.uint8)


def network_of(dtype: torch.dtype, device: torch.device, seed: int = 0) -> KvqNetwork:
    """Return the published network with random weights."""
    weights = untrained_tensors(PUBLISHED, seed)
    tensors = {name: torch.tensor(array, device=device) for name, array in weights.items()}
    return build_network(PUBLISHED, tensors, dtype, is_frozen=True)


def deviation(num_clips: int, device: torch.device) -> list[Row]:
    """Compare half precisions with fp32 on the same clips."""
    clips = [torch.from_numpy(synthetic_clip(seed, DEVIATION_SHAPE))[None].to(device) for seed in range(num_clips)]
    scores = {}
    with torch.inference_mode():
        for name, dtype in DTYPES.items():
            network = network_of(dtype, device)
            scores[name] = np.array([network(normalise(clip)).scores().item() for clip in clips])
    spread = scores["fp32"].std()
    return [
        {
            "row": f"error of {name} scores on {device.type}, {num_clips} clips of {list(DEVIATION_SHAPE)}",
            "share_of_spread": float(np.sqrt(np.mean((scores[name] - scores["fp32"]) ** 2)) / spread),
            "largest_share": float(np.abs(scores[name] - scores["fp32"]).max() / spread),
        }
        for name in ("fp16", "bf16")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", choices=("markdown", "json"), default="markdown")
    parser.add_argument("--clips", type=int, default=8, help="Clips whose scores are compared.")
    options = parser.parse_args()
    rows = deviation(options.clips, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
