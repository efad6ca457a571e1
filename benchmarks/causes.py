"""How well each cause separates its renditions from pristine clips and from other renditions: AUC and false alarms.

    python -m benchmarks.causes FOLDER... [--frames 28] [--save measures.npz]
    python -m benchmarks.causes --cost
    python -m benchmarks.causes --cambi

Each clip and photograph of the folders is a pristine source, scaled to 270 to 480 rows; a photograph is panned. Every
source gets every rendition below. The severity of a cause over the whole clip separates the renditions that have it
from their sources (AUC against pristine), and from the renditions that have something else (AUC against others).

`--cost` prints the core-seconds that measuring a clip of 8 slots takes, without decoding. `--cambi` compares our
measure of banding with libvmaf's CAMBI on generated pictures.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from benchmarks.pipeline import FACTS
from kvq_batch.config.recipe import Step
from kvq_batch.domain.frames import ClipTimes, Frame, SampledClip
from kvq_batch.domain.scorer import ModelOptions
from kvq_batch.features.causes.banding import banding
from kvq_batch.features.causes.extraction import CauseExtraction
from kvq_batch.labeling.degradations import apply
from kvq_batch.media.ffmpeg import run_ffmpeg
from kvq_batch.media.planes import Planes, from_raw
from kvq_batch.media.synthesis import ClipShape, fractal, landscape
from kvq_batch.models.causes.config import CausesConfig
from kvq_batch.models.causes.family import CAUSES
from kvq_batch.models.registry import build

RATE = Fraction(25)
STILLS = (".png", ".webp", ".jpg")
BLACK = (16, 128, 128)


@dataclass(frozen=True, slots=True)
class Rendition:
    """A rendition: its name, the causes that it puts in, causes that may come with it, and how it is made."""

    name: str
    causes: tuple[str, ...]
    also: tuple[str, ...]
    make: Callable[[Planes], Planes]


def degraded(name: str, amount: float) -> Callable[[Planes], Planes]:
    return lambda clip: apply(clip, (Step(name, amount),), 0)


def coded(*encoder: str) -> Callable[[Planes], Planes]:
    def make(clip: Planes) -> Planes:
        stream = run_ffmpeg([*clip.raw_arguments, *encoder, "-f", "matroska", "-"], clip.data.tobytes())
        raw = ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "yuv420p", "-"]
        return clip.with_raw(run_ffmpeg(["-i", "-", *raw], stream), " ".join(encoder))

    return make


def filtered(graph: str) -> Callable[[Planes], Planes]:
    def make(clip: Planes) -> Planes:
        raw = ["-vf", graph, "-f", "rawvideo", "-pix_fmt", "yuv420p", "-"]
        return clip.with_raw(run_ffmpeg([*clip.raw_arguments, *raw], clip.data.tobytes()), graph)

    return make


def banded(step: int) -> Callable[[Planes], Planes]:
    """Return what smooths a clip, as a codec does, and rounds luma to multiples of `step`."""

    def make(clip: Planes) -> Planes:
        y, u, v = filtered("gblur=sigma=1.5")(clip).planes()
        return clip.with_planes([np.clip(np.rint(y / step) * step, 0, 255).astype(np.uint8), u, v])

    return make


def woven(clip: Planes) -> Planes:
    """Return frames whose odd lines show the next frame."""
    planes = []
    for plane in clip.planes():
        mixed = plane.copy()
        mixed[:-1, 1::2] = plane[1:, 1::2]
        planes.append(mixed)
    return clip.with_planes(planes)


def barred(clip: Planes) -> Planes:
    planes = [plane.copy() for plane in clip.planes()]
    for plane, level in zip(planes, BLACK, strict=True):
        rows = plane.shape[1] // 8
        plane[:, :rows] = plane[:, -rows:] = level
    return clip.with_planes(planes)


def shown(clip: Planes, order: NDArray[np.int64]) -> Planes:
    return replace(clip, data=clip.data[order])


def blackened(clip: Planes) -> Planes:
    planes = [plane.copy() for plane in clip.planes()]
    for plane, level in zip(planes, BLACK, strict=True):
        plane[clip.num_frames // 2 :] = level
    return clip.with_planes(planes)


def frozen(clip: Planes) -> Planes:
    return shown(clip, np.minimum(np.arange(clip.num_frames), clip.num_frames // 2))


def repeated(clip: Planes) -> Planes:
    frames = np.arange(clip.num_frames)
    return coded("-c:v", "libx264", "-crf", "20", "-threads", "1")(shown(clip, frames - (frames % 4 == 3)))


def mpeg(name: str, quantiser: int) -> Callable[[Planes], Planes]:
    return coded("-c:v", name, "-q:v", str(quantiser))


RENDITIONS = (
    Rendition("pristine", (), (), lambda clip: clip),
    Rendition("Gaussian blur, sigma 1.2", ("blur",), ("banding",), degraded("blur", 1.2)),
    Rendition("Gaussian blur, sigma 2", ("blur",), ("banding",), degraded("blur", 2)),
    Rendition("half size and back", ("blur",), ("banding",), degraded("downscale", 2)),
    Rendition("noise, sigma 4", ("noise",), (), degraded("noise", 4)),
    Rendition("noise, sigma 10", ("noise",), (), degraded("noise", 10)),
    Rendition("MJPEG, q 16", ("blockiness",), ("banding", "blur"), degraded("mjpeg", 16)),
    Rendition("MPEG-2, q 24", ("blockiness",), ("banding", "blur"), mpeg("mpeg2video", 24)),
    Rendition("MPEG-4, q 20", ("blockiness",), ("banding", "blur"), mpeg("mpeg4", 20)),
    Rendition("H.264, CRF 42", (), ("banding", "blur", "blockiness", "repeated_frames"), degraded("h264", 42)),
    Rendition("HEVC, CRF 42", (), ("banding", "blur", "repeated_frames"), degraded("hevc", 42)),
    Rendition("luma in steps of 4", ("banding",), ("blur",), banded(4)),
    Rendition("luma in steps of 8", ("banding",), ("blur",), banded(8)),
    Rendition("exposure +1.5", ("over_exposure",), (), degraded("exposure", 1.5)),
    Rendition("exposure +2.5", ("over_exposure",), ("banding",), degraded("exposure", 2.5)),
    Rendition("exposure -2", ("under_exposure",), ("banding",), degraded("exposure", -2)),
    Rendition("exposure -3.5", ("under_exposure",), ("banding",), degraded("exposure", -3.5)),
    Rendition("fields of two frames", ("combing",), (), woven),
    Rendition("bars of a quarter", ("letterbox",), (), barred),
    Rendition("second half black", ("black",), (), blackened),
    Rendition("second half frozen", ("freeze",), ("repeated_frames",), frozen),
    Rendition("each fourth frame repeats, CRF 20", ("repeated_frames",), ("blur",), repeated),
)


def sources(folders: Sequence[Path], num_frames: int) -> Iterator[tuple[str, Planes]]:
    """Yield the pristine clips of the folders, with 270 to 480 rows."""
    for path in sorted(path for folder in folders for path in folder.iterdir()):
        picture = path.suffix in STILLS
        loop = ["-loop", "1", "-framerate", "25"] if picture else []
        graph = "scale=w=-2:h='min(ih,480)':flags=area"
        if picture:
            # A pan of 2 pixels to the right and half a pixel down in each frame.
            graph = "scale=560:330:force_original_aspect_ratio=increase:flags=area,crop=480:270:'n*2':'n/2'"
        elif path.parent.name.endswith("2"):
            graph = "scale=426:240:flags=area"
        command = [*loop, "-i", str(path), "-map", "0:v:0", "-vf", f"{graph},format=yuv420p"]
        command += ["-frames:v", str(num_frames), "-fps_mode", "passthrough"]
        y4m = run_ffmpeg([*command, "-f", "yuv4mpegpipe", "-"])
        header, _, rest = y4m.partition(b"\n")
        size = {word[:1]: int(word[1:]) for word in header.split() if word[:1] in (b"W", b"H")}
        height, width = size[b"H"], size[b"W"]
        length = len(b"FRAME\n") + height * width * 3 // 2
        raw = b"".join(rest[at + 6 : at + length] for at in range(0, len(rest), length))
        yield path.name, from_raw(raw, height, width, RATE)


def measure(clip: Planes, config: CausesConfig) -> NDArray[np.float32]:
    """Return what the model gets for a clip that is this one."""
    luma = clip.planes()[0]
    times = np.arange(len(luma)) / float(RATE)
    indices = config.sampling.select(ClipTimes(times, float(RATE)), "")
    facts = replace(FACTS, width_px=clip.width_px, height_px=clip.height_px, num_frames=len(luma))
    sampled = SampledClip(facts, indices, times[indices], 0, len(luma), "")
    extraction = CauseExtraction(sampled, config.sampling.frames_per_slot, config.num_rows, config.num_cols)
    for row, index in enumerate(indices):
        extraction.add(Frame(int(index), float(times[index]), np.array([row]), (luma[index],)))
    return extraction.finish().astype(np.float32)


def auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Return the share of pairs in which the positive value is the larger one; ties count half."""
    larger = np.subtract.outer(np.asarray(positive), np.asarray(negative))
    return float((larger > 0).mean() + (larger == 0).mean() / 2)


def print_tables(severities: dict[tuple[str, str], dict[str, float]]) -> None:
    """Print AUC and false alarms of each cause, as Markdown. `severities` of (source, rendition)."""
    names = sorted({source for source, _ in severities})
    print(f"{len(names)} sources, {len(RENDITIONS) - 1} renditions of each.\n")
    print("| cause | put in by | AUC against pristine | severity, median | AUC against others | pristine above 0.5 |")
    print("|---|---|--:|--:|--:|--:|")
    for cause in CAUSES:
        values = {r.name: [severities[name, r.name][cause] for name in names] for r in RENDITIONS}
        others = [v for r in RENDITIONS[1:] if cause not in (*r.causes, *r.also) for v in values[r.name]]
        alarms = np.mean(np.array(values["pristine"]) > 0.5)
        for rendition in RENDITIONS:
            if cause in rendition.causes:
                severity = values[rendition.name]
                against = auc(severity, values["pristine"]), auc(severity, others)
                row = f"| {cause} | {rendition.name} | {against[0]:.3f} | {np.median(severity):.2f} "
                print(f"{row}| {against[1]:.3f} | {alarms:.1%} |")
    print("\n| pristine source | causes above 0.5 |\n|---|---|")
    for name in names:
        found = [f"{cause} {value:.2f}" for cause, value in severities[name, "pristine"].items() if value > 0.5]
        if found:
            print(f"| {name} | {', '.join(found)} |")


def print_cost() -> None:
    """Print core-seconds of a clip of 8 slots for several sizes, as Markdown; the least of three runs."""
    print("| size | core-seconds | per megapixel of a frame |\n|---|--:|--:|")
    for height, width in ((270, 480), (480, 856), (720, 1280), (1080, 1920), (2160, 3840)):
        shape = ClipShape(width, height, num_frames=7)
        pictures = [frame[..., 1] for frame in landscape(shape, np.random.default_rng(0))]
        luma = np.stack(pictures * 8).reshape(56, height, width)
        half = np.full((56, height * width // 2), 128, np.uint8)
        raw = np.concatenate([luma.reshape(56, -1), half], axis=1)
        clip = Planes(raw, height, width, RATE)
        least = min(core_seconds(clip) for _ in range(3))
        print(f"| {width}x{height} | {least:.3f} | {least / (height * width / 1e6):.3f} |", flush=True)


def smooth_pictures(count: int) -> tuple[list[NDArray[np.uint8]], list[bool], list[int]]:
    """Return smooth pictures of 480x270 in steps of 1, 2 or 4 levels, which of them have bands, and the steps.

    A third is plain: bands. A third has noise of 0.7 to 2 steps before rounding, and a third has texture: no bands.
    """
    generator = np.random.default_rng(0)
    pictures, is_banded, steps = [], [], []
    for number in range(count):
        step = 2 ** int(generator.integers(0, 3))
        smooth = 110 + generator.uniform(10, 40) * fractal(generator, 270, 480, 2.6)
        if number % 3 == 1:
            smooth += step * generator.uniform(0.7, 2) * generator.standard_normal(smooth.shape)
        elif number % 3 == 2:
            smooth += step * generator.uniform(2, 8) * fractal(generator, 270, 480, 1.0)
        pictures.append(np.clip(np.rint(smooth / step) * step, 0, 255).astype(np.uint8))
        is_banded.append(number % 3 == 0)
        steps.append(step)
    return pictures, is_banded, steps


def cambi(pictures: Sequence[NDArray[np.uint8]]) -> list[float]:
    """Return libvmaf's CAMBI of each picture, of one size."""
    height, width = pictures[0].shape
    raw = b"".join(picture.tobytes() + b"\x80" * (height * width // 2) for picture in pictures)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.json"
        graph = f"split,libvmaf=feature=name=cambi:log_fmt=json:log_path={log}"
        reading = ["-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", f"{width}x{height}", "-i", "-"]
        run_ffmpeg([*reading, "-filter_complex", graph, "-f", "null", "-"], raw)
        return [frame["metrics"]["cambi"] for frame in json.loads(log.read_text())["frames"]]


def print_cambi(count: int = 60) -> None:
    pictures, is_banded, steps = smooth_pictures(count)
    ours, theirs = [float(banding(picture, 8).mean()) for picture in pictures], cambi(pictures)
    print(f"{count} pictures: SRCC {spearmanr(ours, theirs).statistic:.3f}")
    single = np.array(steps) == 1
    pair = np.array(ours)[single], np.array(theirs)[single]
    print(f"{single.sum()} with steps of 1: SRCC {spearmanr(*pair).statistic:.3f}, r {np.corrcoef(*pair)[0, 1]:.3f}")
    for name, values in (("ours", ours), ("CAMBI", theirs)):
        sides = [[v for v, banded in zip(values, is_banded, strict=True) if banded is side] for side in (True, False)]
        print(f"AUC of {name}, bands against none: {auc(*sides):.3f}")


def core_seconds(clip: Planes) -> float:
    started = time.process_time()
    measure(clip, CausesConfig())
    return time.process_time() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--cambi", action="store_true")
    parser.add_argument("--frames", type=int, default=28)
    parser.add_argument("--every", type=int, default=1, help="use every n-th file only")
    parser.add_argument("--save", type=Path, help="also write the measures")
    options = parser.parse_args()
    if options.cost or options.cambi:
        (print_cost if options.cost else print_cambi)()
        return 0
    scorer, config = build(ModelOptions("causes")), CausesConfig()
    severities, measures = {}, {}
    for number, (name, clip) in enumerate(sources(options.folders, options.frames)):
        if number % options.every:
            continue
        for rendition in RENDITIONS:
            rows = measure(rendition.make(clip), config)
            measures[f"{name}|{rendition.name}"] = rows
            severities[name, rendition.name] = dict(scorer.score([rows])[0].outputs)
        print(f"{number + 1}: {name}", file=sys.stderr, flush=True)
    if options.save:
        np.savez(options.save, allow_pickle=False, **measures)
    print_tables(severities)
    return 0


if __name__ == "__main__":
    sys.exit(main())
