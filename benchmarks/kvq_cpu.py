"""Measure the speed of the KVQ network, relative to matrix products in the same process and to a plain implementation.

    python -m benchmarks.kvq_cpu [--output markdown|json] [--threads 2] [--repeats 3] [--skip-plain]

Takes a few minutes on 2 cores. The plain implementation runs once. The error of bf16 is measured on a quarter of the
frame and half of the frames, because emulated bf16 is slow. Each row runs in a separate process, for its peak memory.
There, products and network take turns, and the best of each is reported: their ratio depends little on other load.
Weights are random, which costs the same. Decoding is measured by `benchmarks/decode.py`.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.kvq_plain import plain_forward
from kvq_batch.models.host_memory import keep_freed_memory
from kvq_batch.models.kvq.config import PUBLISHED
from kvq_batch.models.kvq.network import KvqNetwork, build_network
from kvq_batch.models.kvq.untrained import untrained_tensors

# Multiply-adds of convolutions, linear layers and attention of the published sizes at [1, 3, 32, 448, 448] (KVQ_SPEC
# section 3.6). Each is two operations.
CLIP_GMAC = 984.6
CLIP_SHAPE = (3, 32, 448, 448)
DEVIATION_SHAPE = (3, 16, 224, 224)
# Flags of /proc/cpuinfo of CPUs that multiply bf16 in hardware. Others emulate it in fp32.
BF16_FLAGS = ("amx_bf16", "avx512_bf16")
CUDA_BATCHES = (1, 2, 4, 8)
ROWS = ("ours fp32", "ours bf16", "plain fp32")

Row = dict[str, Any]


def has_bf16_instructions() -> bool:
    """Return whether this CPU multiplies bf16 in hardware."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text().split() if info.exists() else []
    return any(flag in flags for flag in BF16_FLAGS)


def product_gflops(dtype: torch.dtype, device: str, size: int) -> float:
    """Return the best rate of several square matrix products, in GFLOP/s."""
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    best = min(seconds(lambda: a @ b, device) for _ in range(6))
    return 2 * size**3 / best / 1e9


def seconds(action: Callable[[], object], device: str) -> float:
    """Return the duration of an action, including what it queued on a GPU."""
    started = time.perf_counter()
    action()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(row: str, threads: int, repeats: int) -> Row:
    """Measure one row on the CPU, in this process: best time, best rate of products, their ratio, peak memory."""
    torch.set_num_threads(threads)
    # As a scorer does.
    keep_freed_memory()
    kind, precision = row.split()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    tensors = {name: torch.from_numpy(tensor) for name, tensor in untrained_tensors(PUBLISHED).items()}
    clip = torch.randn(1, *CLIP_SHAPE, generator=torch.Generator().manual_seed(0))
    network = build_network(PUBLISHED, tensors, dtype, is_frozen=True)

    def run() -> object:
        return plain_forward(tensors, PUBLISHED, clip) if kind == "plain" else network(clip)

    times, products = [], []
    with torch.inference_mode():
        for _ in range(repeats):
            products.append(product_gflops(dtype, "cpu", 2048))
            times.append(seconds(run, "cpu"))
        products.append(product_gflops(dtype, "cpu", 2048))
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rate = 2 * CLIP_GMAC / min(times)
    return {
        "row": row,
        "seconds": min(times),
        "products_gflops": max(products),
        "share": rate / max(products),
        # Ratios within a turn depend less on other load, because they are measured close in time.
        "median_share": sorted(2 * CLIP_GMAC / t / p for t, p in zip(times, products[:-1], strict=True))[repeats // 2],
        "peak_gib": peak_gib,
    }


def deviation() -> Row:
    """Compare bf16 with fp32 on one clip: scores, and mean and largest difference of maps in standard deviations."""
    tensors = {name: torch.from_numpy(tensor) for name, tensor in untrained_tensors(PUBLISHED).items()}
    clip = torch.randn(1, *DEVIATION_SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        maps = [build_network(PUBLISHED, tensors, dtype)(clip) for dtype in (torch.float32, torch.bfloat16)]
    exact, rough = maps

    def compare(a: Tensor, b: Tensor) -> tuple[float, float]:
        gap = (a - b).abs() / a.std()
        return gap.mean().item(), gap.max().item()

    texture, saliency = compare(exact.texture, rough.texture), compare(exact.saliency, rough.saliency)
    return {
        "row": f"bf16 compared with fp32 at {[1, *DEVIATION_SHAPE]}",
        "score_fp32": exact.scores().item(),
        "score_bf16": rough.scores().item(),
        "texture_mean_max_of_std": texture,
        "saliency_mean_max_of_std": saliency,
    }


def measure_cuda(repeats: int) -> list[Row]:
    """Measure clips per second on a GPU, and their share of the product rate, by precision and batch size."""
    rows = []
    tensors = {name: torch.from_numpy(tensor).cuda() for name, tensor in untrained_tensors(PUBLISHED).items()}
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
        network = build_network(PUBLISHED, tensors, dtype)
        product = product_gflops(dtype, "cuda", 8192)
        for batch in CUDA_BATCHES:
            clips = torch.randn(batch, *CLIP_SHAPE, device="cuda")
            with torch.inference_mode():
                network(clips)
                best = min(seconds(partial(score, network, clips), "cuda") for _ in range(repeats + 2))
            rate = batch / best
            share = 2 * CLIP_GMAC * rate / product
            rows.append(
                {"row": f"cuda {name} batch {batch}", "clips_per_s": rate, "products_gflops": product, "share": share}
            )
    return rows


def score(network: KvqNetwork, clips: Tensor) -> float:
    """Run a forward pass and copy a number to the host, as scoring does."""
    return float(network(clips).scores().sum())


def in_own_process(row: str, threads: int, repeats: int) -> Row:
    """Run `measure` or `deviation` in a separate process."""
    command = [sys.executable, "-m", "benchmarks.kvq_cpu", "--row", row, "--threads", str(threads)]
    done = subprocess.run([*command, "--repeats", str(repeats)], check=True, capture_output=True, text=True)
    found: Row = json.loads(done.stdout)
    return found


def markdown(rows: list[Row]) -> str:
    """Return the Markdown table, and a line for each other measurement."""
    lines = ["| KVQ at [1,3,32,448,448] | s per clip | products, GFLOP/s | share | median share | peak RSS, GiB |"]
    lines += ["|---|---|---|---|---|---|"]
    notes = []
    for row in rows:
        if "seconds" in row:
            lines.append(
                f"| {row['row']} | {row['seconds']:.1f} | {row['products_gflops']:.0f} | {row['share']:.0%} "
                f"| {row['median_share']:.0%} | {row['peak_gib']:.2f} |"
            )
        elif "clips_per_s" in row:
            lines.append(
                f"| {row['row']} | {1 / row['clips_per_s']:.4f} ({row['clips_per_s']:.1f} clips/s) "
                f"| {row['products_gflops']:.0f} | {row['share']:.0%} | | |"
            )
        else:
            notes.append(", ".join(f"{key} {value}" for key, value in row.items() if key != "row"))
            notes[-1] = f"{row['row']}: {notes[-1]}"
    return "\n".join([*lines, "", *notes])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", choices=("markdown", "json"), default="markdown")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--skip-plain", action="store_true", help="Skip the slow plain implementation.")
    parser.add_argument("--row", choices=(*ROWS, "deviation"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        torch.set_num_threads(options.threads)
        found = deviation() if options.row == "deviation" else measure(options.row, options.threads, options.repeats)
        print(json.dumps(found))
        return
    rows: list[Row] = []
    for row in ROWS:
        if row == "ours bf16" and not has_bf16_instructions():
            rows.append({"row": row, "speed": "not measured: CPU without bf16 matrix instructions"})
        elif row != "plain fp32" or not options.skip_plain:
            rows.append(in_own_process(row, options.threads, 1 if row == "plain fp32" else options.repeats))
    speeds = {row["row"]: row["seconds"] for row in rows if "seconds" in row}
    if "ours bf16" in speeds:
        rows.append({"row": "bf16 speed-up over our fp32", "times": speeds["ours fp32"] / speeds["ours bf16"]})
    rows.append(in_own_process("deviation", options.threads, 1))
    if torch.cuda.is_available():
        rows += measure_cuda(options.repeats)
    else:
        rows.append({"row": "cuda", "speed": "not measured: no GPU"})
    print(json.dumps(rows, indent=2) if options.output == "json" else markdown(rows))


if __name__ == "__main__":
    main()
