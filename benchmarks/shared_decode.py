"""Measure what one decode for several models costs, in core-seconds, against the decode of its costliest model.

    python -m benchmarks.shared_decode [--repeats 3] [--files FILE ...]

Frames are decoded and resized as in a job, without scoring, in one process with one thread. Streamed models get native
frames in chunks. Each figure is the least processor time of the repeats, which take turns, so the ratios are of one
run. No weights are needed: what a model requests does not depend on them.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.decode import write_file
from benchmarks.tables import print_table
from kvq_batch.domain.frames import EveryFrame, FrameRequest, RateSampling, Sampling
from kvq_batch.domain.scorer import ModelOptions
from kvq_batch.domain.video import Window
from kvq_batch.media.decode import Decoding, decode_clips
from kvq_batch.media.decoders import choose_decoder, open_reader
from kvq_batch.media.probe import VideoLimits, probe
from kvq_batch.models.dover.config import DOVER
from kvq_batch.models.dover.family import frame_requests
from kvq_batch.models.fastvqa.config import FASTERVQA
from kvq_batch.models.fastvqa.family import frame_request
from kvq_batch.models.registry import describe

EVERY_FRAME = FrameRequest(EveryFrame(), None, is_streamed=True)
GROUPS = (
    ("kvq-lite", "fastervqa", "luma-sharpness"),
    ("kvq-lite", "fastervqa", "dover"),
    ("vsfa", "kvq-lite", "uvq-1.5"),
)


def requests_of(model: str) -> tuple[FrameRequest, ...]:
    """Return the frame requests of a model, also without its weights."""
    published = {
        "fastervqa": (frame_request(FASTERVQA),),
        "dover": frame_requests(DOVER),
        "vsfa": (EVERY_FRAME,),
        "uvq-1.5": (FrameRequest(RateSampling(1.0), None, is_streamed=True),),
        "kvq": (FrameRequest(Sampling()),),
    }
    return published.get(model) or describe(ModelOptions(model)).requests


def core_seconds(path: Path, models: Sequence[str]) -> float:
    """Return the core-seconds of one decode for all models."""
    requests = tuple(dict.fromkeys(request for model in models for request in requests_of(model)))
    probed = probe(path, VideoLimits())
    reader, _ = open_reader(choose_decoder(probed))
    started = time.process_time()
    windows = [Window(0.0, probed.facts.duration_s)]
    for part in decode_clips(path, probed, windows, requests, "benchmark", range(1), Decoding(reader)):
        del part
    return time.process_time() - started


def measure(path: Path, repeats: int) -> list[dict[str, object]]:
    """Return a row for each group of models."""
    rows: list[dict[str, object]] = []
    for group in GROUPS:
        kinds = [(model,) for model in group] + [group]
        best = {kind: float("inf") for kind in kinds}
        for _ in range(repeats):
            for kind in kinds:
                best[kind] = min(best[kind], core_seconds(path, kind))
        alone = [best[kind] for kind in kinds[:-1]]
        rows.append(
            {
                "file": path.name,
                "models": ", ".join(group),
                "each alone, core-s": " ".join(f"{seconds:.2f}" for seconds in alone),
                "together, core-s": f"{best[group]:.2f}",
                "against the costliest": f"{best[group] / max(alone):.2f}",
                "against all decodes": f"{best[group] / sum(alone):.2f}",
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--files", type=Path, nargs="*", help="videos; default: an encoded scene of 720p and 8 s")
    parser.add_argument("--output", choices=("markdown", "json"), default="markdown")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shared-decode-") as folder:
        files = arguments.files or [write_file(Path(folder), "h264-720p.mp4")]
        print_table([row for path in files for row in measure(path, arguments.repeats)], arguments.output)


if __name__ == "__main__":
    main()
