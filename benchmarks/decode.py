"""Measure core-seconds per standard clip (32 of 240 frames) of both decoders, and of a plain decode of the whole file.

    python -m benchmarks.decode [--repeats 2] [--files FILE ...]

Without files it encodes noisy scenes (8 s, 30 frames/s). Each figure is the processor time of one process with one
thread, the best of several turns, so other load matters little; compare ratios. The last columns are the resize of the
32 frames to 448 x 448 by this package and by torch. Passing frames between processes is not included.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import imageio_ffmpeg
import numpy as np
import torch

from kvq_batch.domain.errors import DecodeError
from kvq_batch.domain.frames import Sampling
from kvq_batch.media.decoders import DecoderName, choose_decoder, open_reader
from kvq_batch.media.packets import best_stream
from kvq_batch.media.probe import VideoLimits, probe
from kvq_batch.media.resize import resize

_NOISE = "mandelbrot=size={size}:rate=30,noise=alls=12:allf=t:all_seed=3"
_X265 = ("-c:v", "libx265", "-preset", "fast", "-x265-params", "log-level=error:pools=2")
FILES = {
    "h264-1080p.mp4": ("1920x1080", ("-c:v", "libx264", "-b:v", "27M")),
    "h264-720p.mp4": ("1280x720", ("-c:v", "libx264", "-b:v", "10M")),
    "hevc-1080p.mp4": ("1920x1080", (*_X265, "-b:v", "12M")),
    "vp9-720p.webm": ("1280x720", ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-b:v", "8M")),
}


def write_file(folder: Path, name: str) -> Path:
    """Encode one of `FILES`."""
    size, options = FILES[name]
    path = folder / name
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-threads", "2", "-f", "lavfi"]
    command += ["-i", _NOISE.format(size=size), "-t", "8", *options, "-pix_fmt", "yuv420p", str(path)]
    subprocess.run(command, check=True)
    return path


def measure(path: Path, repeats: int) -> dict[str, Any]:
    """Return core-seconds of one file by step; None if decord is rejected for it."""
    torch.set_num_threads(1)
    probed = probe(path, VideoLimits())
    indices = np.unique(Sampling().indices(probed.facts.num_frames))

    def whole() -> None:
        with av.open(str(path)) as container:
            stream = best_stream(container)
            stream.codec_context.thread_count = 1
            for _ in container.decode(stream):
                pass

    def clip(decoder: DecoderName) -> None:
        reader, _ = open_reader(decoder)
        for _ in reader.frames(path, probed, indices, 1):
            pass

    reader, _ = open_reader("pyav")
    frames = np.stack([rgb for _, rgb in reader.frames(path, probed, indices, 1)])

    def torch_resize() -> None:
        for frame in frames:
            planes = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
            resized = torch.nn.functional.interpolate(planes, (448, 448), mode="bicubic", antialias=False)
            resized.clamp_(0, 255).round_().to(torch.uint8).permute(0, 2, 3, 1).numpy()

    row: dict[str, Any] = {"frames": len(indices), "of": probed.facts.num_frames}
    row["whole_s"] = best(whole, repeats)
    row["pyav_s"] = best(lambda: clip("pyav"), repeats)
    try:
        choose_decoder(probed, "decord")
        row["decord_s"] = best(lambda: clip("decord"), repeats)
    except DecodeError:
        row["decord_s"] = None
    row["probe_s"] = best(lambda: probe(path, VideoLimits()), repeats)
    row["resize_s"] = best(lambda: resize(frames, (448, 448)), repeats)
    row["torch_resize_s"] = best(torch_resize, repeats)
    return row


def best(action: Callable[[], object], repeats: int) -> float:
    """Return the least processor time of several turns, in seconds over all threads."""
    spent = []
    for _ in range(repeats):
        started = time.process_time()
        action()
        spent.append(time.process_time() - started)
    return min(spent)


def in_a_process(path: Path, repeats: int) -> dict[str, Any]:
    """Run `measure` in a separate process with one BLAS thread, as in a decoding process."""
    command = [sys.executable, "-m", "benchmarks.decode", "--one", str(path), "--repeats", str(repeats)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--files", type=Path, nargs="*", default=[])
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.repeats)))
        return
    print("| file | frames | whole | PyAV | PyAV / whole | decord | decord / whole | probe | resize | torch's resize |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for path in arguments.files or (write_file(Path(folder), name) for name in FILES):
            row = in_a_process(path, arguments.repeats)
            whole = row["whole_s"]
            cells = [path.name, f"{row['frames']} of {row['of']}", f"{whole:.2f} s"]
            for decoder in ("pyav_s", "decord_s"):
                cost = row[decoder]
                cells += ["rejected", "-"] if cost is None else [f"{cost:.2f} s", f"{cost / whole:.2f}"]
            cells += [f"{row[column]:.2f} s" for column in ("probe_s", "resize_s", "torch_resize_s")]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
