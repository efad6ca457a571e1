"""Measure what a GPU makes of KVQ, and what half precision costs.

    OMP_NUM_THREADS=1 python -m benchmarks.kvq_gpu [--output markdown|json] [--batch 8] [--batches 12] [--clips 8]

Two parts run on any machine. Errors of half precision, with random weights: root mean square error of the scores of
different clips, as a share of the standard deviation of these scores. And kernels and host synchronisations of a
batch, counted on the device "meta", which takes the path of a GPU and computes nothing.

The rest needs a GPU, and says so without one: milliseconds a clip of the network alone, of batches in turn and of
overlapped batches; the share of the copies that overlap hides; kernels and synchronisations that a profiler sees.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.operator_counts import OperatorCounts
from kvq_batch.domain.scorer import ModelOptions, PipelinedScorer, Precision
from kvq_batch.models import registry
from kvq_batch.models.cuda_graphs import WARM_UPS, GraphedForward, record_graph
from kvq_batch.models.kvq.config import PUBLISHED, KvqConfig
from kvq_batch.models.kvq.network import KvqNetwork, build_network
from kvq_batch.models.kvq.pixels import normalise
from kvq_batch.models.kvq.scorer import network_maps
from kvq_batch.models.kvq.untrained import untrained_tensors

# A quarter of the frame and of the frames, because a CPU emulates half precision slowly.
DEVIATION_SHAPE = (8, 224, 224)
NO_GPU = "not measured: torch finds no GPU on this machine"
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

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


def network_of(dtype: torch.dtype, device: torch.device, config: KvqConfig = PUBLISHED) -> KvqNetwork:
    """Return a network with random weights."""
    tensors = {name: torch.tensor(array, device=device) for name, array in untrained_tensors(config).items()}
    return build_network(config, tensors, dtype, is_frozen=True)


def deviation(
    num_clips: int,
    device: torch.device,
    config: KvqConfig = PUBLISHED,
    shape: tuple[int, int, int] = DEVIATION_SHAPE,
) -> list[Row]:
    """Compare half precisions with fp32 on the same clips."""
    clips = [torch.from_numpy(synthetic_clip(seed, shape))[None].to(device) for seed in range(num_clips)]
    scores = {}
    with torch.inference_mode():
        for name, dtype in DTYPES.items():
            network = network_of(dtype, device, config)
            scores[name] = np.array([network(normalise(clip)).scores().item() for clip in clips])
    spread = scores["fp32"].std()
    return [
        {
            "row": f"error of {name} scores on {device.type}, {num_clips} clips of {list(shape)}",
            "share_of_spread": float(np.sqrt(np.mean((scores[name] - scores["fp32"]) ** 2)) / spread),
            "largest_share": float(np.abs(scores[name] - scores["fp32"]).max() / spread),
        }
        for name in ("fp16", "bf16")
    ]


def counted(num_clips: int) -> Row:
    """Count the kernels and host synchronisations of a batch without a GPU."""
    meta = torch.device("meta")
    with meta:
        tensors = dict(KvqNetwork(PUBLISHED).state_dict())
    network = build_network(PUBLISHED, tensors, torch.float16, is_frozen=True)
    batch = torch.empty(num_clips, PUBLISHED.num_frames, *PUBLISHED.input_size, 3, dtype=torch.uint8, device=meta)
    with torch.inference_mode():
        network_maps(network, batch)
        with OperatorCounts() as counts:
            network_maps(network, batch)
    syncs = counts.host_syncs.total() + counts.uploads.total()
    return {"row": f"batch of {num_clips}, counted without a GPU", "kernels": counts.kernels.total(), "syncs": syncs}


def measured(num_clips: int, num_batches: int) -> list[Row]:
    """Measure batches of the published network on the GPU."""
    shape = (PUBLISHED.num_frames, *PUBLISHED.input_size)
    clips = [synthetic_clip(seed, shape) for seed in range(num_clips)]
    rows = [network_alone(precision, clips, num_batches) for precision in ("fp16", "bf16", "fp32")]
    scorer = registry.build(ModelOptions("kvq", "untrained", precision="fp16", device="cuda"))
    assert isinstance(scorer, PipelinedScorer)
    # The graph is recorded after the warm-up, so that is part of it.
    for _ in range(WARM_UPS + 2):
        scorer.score(clips)
    in_turn = milliseconds(lambda: [scorer.score(clips) for _ in range(num_batches)]) / num_batches
    overlapped = milliseconds(partial(overlap, scorer, clips, num_batches)) / num_batches
    alone = rows[0]["ms_per_clip_graph"] * num_clips
    copies = in_turn - alone
    rows.append(
        {
            "row": f"fp16 from frames in memory, batches of {num_clips}",
            "ms_per_clip_in_turn": in_turn / num_clips,
            "ms_per_clip_overlapped": overlapped / num_clips,
            "share_of_copies_hidden": (in_turn - overlapped) / copies if copies > 0 else 0.0,
        }
    )
    return [*rows, profiled(scorer, clips)]


def network_alone(precision: Precision, clips: list[NDArray[np.uint8]], num_batches: int) -> Row:
    """Measure the network on a batch that is on the GPU: kernel by kernel, and as a graph."""
    network = network_of(DTYPES[precision], torch.device("cuda"))
    batch = torch.from_numpy(np.stack(clips)).cuda()
    graphed = GraphedForward(partial(network_maps, network), record_graph)
    found: Row = {"row": f"network alone, {precision}, batch of {len(clips)}"}
    with torch.inference_mode():
        for name, forward in (("kernels", partial(network_maps, network)), ("graph", graphed)):
            for _ in range(WARM_UPS + 2):
                forward(batch)
            taken = milliseconds(lambda forward=forward: [forward(batch) for _ in range(num_batches)])  # type: ignore[misc]
            found[f"ms_per_clip_{name}"] = taken / num_batches / len(clips)
    found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def milliseconds(action: Callable[[], object]) -> float:
    """Return the duration of an action, including what it queued on the GPU."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    action()
    torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - started)


def overlap(scorer: PipelinedScorer, clips: list[NDArray[np.uint8]], num_batches: int) -> None:
    """Score batches as the score worker does: each is started before the one before is fetched."""
    pending = scorer.start(clips)
    for _ in range(num_batches - 1):
        following = scorer.start(clips)
        pending()
        pending = following
    pending()


def profiled(scorer: PipelinedScorer, clips: list[NDArray[np.uint8]]) -> Row:
    """Count what a profiler sees of one batch. A graph is one launch of many kernels."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        scorer.score(clips)
        torch.cuda.synchronize()
    names = [event.name for event in profile.events() or ()]
    on_device = [
        event.name
        for event in profile.events() or ()
        if str(event.device_type).endswith("CUDA") and not event.name.startswith(("Memcpy", "Memset"))
    ]
    return {
        "row": f"one batch of {len(clips)}, profiled",
        "kernels": len(on_device),
        "launches": sum(name.startswith(("cudaLaunchKernel", "cudaGraphLaunch", "cuLaunchKernel")) for name in names),
        # The last one is that of this function.
        "syncs": sum(name.startswith("cuda") and name.endswith("Synchronize") for name in names) - 1,
    }


def markdown(rows: list[Row]) -> str:
    """Return a table of all rows."""
    lines = ["| measured | result |", "|---|---|"]
    for row in rows:
        parts = [f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()]
        lines.append(f"| {row['row']} | {', '.join(parts[1:])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", choices=("markdown", "json"), default="markdown")
    parser.add_argument("--batch", type=int, default=8, help="Clips of a batch.")
    parser.add_argument("--batches", type=int, default=12, help="Batches that are timed.")
    parser.add_argument("--clips", type=int, default=8, help="Clips whose scores are compared; 0 skips that.")
    options = parser.parse_args()
    has_gpu = torch.cuda.is_available()
    rows = deviation(options.clips, torch.device("cuda" if has_gpu else "cpu")) if options.clips else []
    rows += [counted(1), counted(options.batch)]
    if has_gpu:
        rows.append({"row": "device", "name": torch.cuda.get_device_name(), "torch": torch.__version__})
        rows += measured(options.batch, options.batches)
    else:
        rows.append({"row": "time, overlap and profile", "result": NO_GPU})
    print(json.dumps(rows, indent=2) if options.output == "json" else markdown(rows))


if __name__ == "__main__":
    main()
