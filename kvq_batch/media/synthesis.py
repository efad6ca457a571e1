"""Synthetic clips at known degradations, for the demonstration and for tests.

Scenes are computed with numpy from a seed and encoded with the ffmpeg of `imageio-ffmpeg`: the same seed and ffmpeg
give the same bytes. Their spectra resemble those of photographs (1/f). Scores of them do not show how good a model is
on real video.

Legend: T frames, H rows, W columns, 3 = RGB.
"""

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.errors import FatalError

Frames = Iterator[NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class Degradation:
    """A degradation: its name, level (0 = none, higher is worse), ffmpeg filter and x264 CRF."""

    name: str
    level: int
    filters: str = "null"
    crf: int = 16


DEGRADATIONS = (
    Degradation("none", 0),
    Degradation("compression", 1, crf=32),
    Degradation("compression", 2, crf=42),
    Degradation("blur", 1, "gblur=sigma=2.5", 20),
    Degradation("noise", 1, "noise=alls=24:allf=t:all_seed=7", 26),
    Degradation("downscale", 1, "scale=iw/4:ih/4:flags=area,scale=4*iw:4*ih:flags=bilinear", 20),
)


@dataclass(frozen=True, slots=True)
class DemoClip:
    """A clip in a file: its path, scene, degradation and CRF."""

    path: Path
    scene: str
    degradation: str
    level: int
    crf: int


@dataclass(frozen=True, slots=True)
class ClipShape:
    """Size, frame rate and length of clips; width and height are multiples of 8."""

    width_px: int = 640
    height_px: int = 360
    frame_rate: int = 24
    num_frames: int = 72


def write_demo_clips(
    folder: Path,
    num_scenes: int = 4,
    shape: ClipShape | None = None,
    degradations: tuple[Degradation, ...] = DEGRADATIONS,
    seed: int = 0,
) -> list[DemoClip]:
    """Write each scene at each degradation as H.264 MP4 into `folder`: SCENE/DEGRADATION-LEVEL.mp4.

    Raises:
        FatalError: ffmpeg fails, for example because the disk is full.
    """
    shape = shape or ClipShape()
    clips = []
    kinds = list(SCENES)
    for number in range(num_scenes):
        kind = kinds[number % len(kinds)]
        scene = kind if number < len(kinds) else f"{kind}-{number // len(kinds) + 1}"
        (folder / scene).mkdir(parents=True, exist_ok=True)
        paths = [folder / scene / f"{d.name}-{d.level}.mp4" for d in degradations]
        frames = SCENES[kind](shape, np.random.default_rng([seed, number]))
        _encode(frames, shape, degradations, paths)
        clips += [DemoClip(p, scene, d.name, d.level, d.crf) for p, d in zip(paths, degradations, strict=True)]
    return clips


def landscape(shape: ClipShape, rng: np.random.Generator) -> Frames:
    """Yield a pan over fractal hills under a sky; uint8 [H, W, 3] each."""
    height, width = shape.height_px, shape.width_px
    travel = 2 * shape.num_frames
    relief = fractal(rng, height, width + travel, 1.6)
    detail = fractal(rng, height, width + travel, 1.1)
    rows = np.linspace(0.0, 1.0, height, dtype=np.float32)[:, None]
    ground = np.clip((rows + 0.35 * relief - 0.45) * 8, 0, 1)[..., None]
    sky = (
        np.stack([0.45 + 0.35 * rows, 0.6 + 0.25 * rows, np.full_like(rows, 0.92)], axis=-1) + 0.06 * relief[..., None]
    )
    soil = np.array([0.42, 0.38, 0.22], np.float32) * (1 + 0.4 * detail[..., None]) + 0.08 * relief[..., None]
    picture = to_uint8(sky * (1 - ground) + soil * ground)
    for frame in range(shape.num_frames):
        yield picture[:, 2 * frame : 2 * frame + width]


def plate(shape: ClipShape, rng: np.random.Generator) -> Frames:
    """Yield a rotating zone plate in two colours, which has every spatial frequency; uint8 [H, W, 3] each."""
    y, x = _grid(shape)
    colours = rng.uniform(0.2, 1.0, (2, 3)).astype(np.float32)
    for frame in range(shape.num_frames):
        angle = 2 * np.pi * frame / 120
        u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        wave = 0.5 + 0.5 * np.cos(90 * (u * u + 0.55 * v * v) - 0.25 * frame)
        yield to_uint8(wave[..., None] * colours[0] + (1 - wave[..., None]) * 0.35 * colours[1])


def bodies(shape: ClipShape, rng: np.random.Generator) -> Frames:
    """Yield shaded balls that bounce in front of a soft background, with film grain; uint8 [H, W, 3] each."""
    y, x = _grid(shape)
    backdrop = 0.35 + 0.12 * fractal(rng, shape.height_px, shape.width_px, 2.2)[..., None] + 0.2 * y[..., None]
    count = 7
    radius = rng.uniform(0.12, 0.3, count)
    start, speed = rng.uniform(-1, 1, (count, 2)), rng.uniform(-0.03, 0.03, (count, 2))
    colours = rng.uniform(0.15, 1.0, (count, 3)).astype(np.float32)
    skin = 1 + 0.25 * fractal(rng, shape.height_px, shape.width_px, 1.0)
    aspect = shape.width_px / shape.height_px
    for frame in range(shape.num_frames):
        picture = np.broadcast_to(backdrop, (*y.shape, 3)).copy()
        for ball in range(count):
            # A triangle wave reflects the path at the walls.
            centre = np.abs((start[ball] + speed[ball] * frame + 1) % 4 - 2) - 1
            left, top, size = float(centre[0]) * aspect, float(centre[1]), float(radius[ball])
            columns = slice(*np.searchsorted(x[0], (left - size, left + size)))
            rows = slice(*np.searchsorted(y[:, 0], (top - size, top + size)))
            dx, dy = (x[rows, columns] - left) / size, (y[rows, columns] - top) / size
            depth = np.sqrt(np.clip(1 - dx * dx - dy * dy, 0, None))
            light = np.clip(0.25 + 0.75 * depth - 0.35 * dx - 0.3 * dy, 0, 1.3) * skin[rows, columns]
            inside = np.clip(depth * 12, 0, 1)[..., None]
            behind = picture[rows, columns]
            picture[rows, columns] = behind * (1 - inside) + inside * light[..., None] * colours[ball]
        picture += 0.012 * rng.standard_normal(y.shape, np.float32)[..., None]
        yield to_uint8(picture)


def lettering(shape: ClipShape, rng: np.random.Generator) -> Frames:
    """Yield lines of letter-like signs that scroll over checked paper; uint8 [H, W, 3] each."""
    height, width = shape.height_px, shape.width_px
    scale = 3
    tall = height + shape.num_frames
    glyphs = rng.random((64, 7, 5)) < 0.45
    rows, columns = tall // (10 * scale) + 1, width // (6 * scale) + 1
    page = np.zeros((rows * 10, columns * 6), bool)
    for row in range(rows):
        for column in np.flatnonzero(rng.random(columns) > 0.15):
            page[row * 10 + 1 : row * 10 + 8, column * 6 : column * 6 + 5] = glyphs[rng.integers(64)]
    ink = page.repeat(scale, 0).repeat(scale, 1)[:tall, :width].astype(np.float32)[..., None]
    checks = (np.add.outer(np.arange(height) // 40, np.arange(width) // 40) % 2)[..., None]
    paper = np.array([0.93, 0.9, 0.8], np.float32) - 0.1 * checks
    for frame in range(shape.num_frames):
        mask = ink[frame : frame + height]
        yield to_uint8(paper * (1 - mask) + mask * np.array([0.1, 0.12, 0.3], np.float32))


SCENES: dict[str, Callable[[ClipShape, np.random.Generator], Frames]] = {
    "landscape": landscape,
    "bodies": bodies,
    "lettering": lettering,
    "plate": plate,
}


def _grid(shape: ClipShape) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return rows in [-1, 1] and columns in [-aspect, aspect], float32 [H, W] both."""
    aspect = shape.width_px / shape.height_px
    y, x = np.meshgrid(
        np.linspace(-1, 1, shape.height_px, dtype=np.float32),
        np.linspace(-aspect, aspect, shape.width_px, dtype=np.float32),
        indexing="ij",
    )
    return y, x


def fractal(rng: np.random.Generator, height: int, width: int, power: float) -> NDArray[np.float32]:
    """Return noise of unit variance with an amplitude of 1 / frequency ** power; float32 [height, width]."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None] * height)
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((height, width))) / frequency**power
    noise = np.fft.irfft2(spectrum, (height, width))
    unit: NDArray[np.float32] = (noise / noise.std()).astype(np.float32)
    return unit


def to_uint8(picture: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Return the pixels of a picture in [0, 1]; other values are clipped."""
    pixels: NDArray[np.uint8] = np.clip(picture * 255 + 0.5, 0, 255).astype(np.uint8)
    return pixels


def _encode(frames: Frames, shape: ClipShape, degradations: tuple[Degradation, ...], paths: list[Path]) -> None:
    """Encode a scene at all degradations with one ffmpeg, which reads it once."""
    branches = "".join(f"[s{i}]" for i in range(len(paths)))
    graph = [f"[0:v]split={len(paths)}{branches}"]
    graph += [f"[s{i}]{d.filters},format=yuv420p[v{i}]" for i, d in enumerate(degradations)]
    size = f"{shape.width_px}x{shape.height_px}"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", size, "-r", str(shape.frame_rate), "-i", "-", "-filter_complex", ";".join(graph)]
    for i, (degradation, path) in enumerate(zip(degradations, paths, strict=True)):
        # One thread each: x264 writes other bytes if it divides a picture among threads.
        command += ["-map", f"[v{i}]", "-c:v", "libx264", "-preset", "veryfast", "-threads", "1"]
        command += ["-crf", str(degradation.crf), "-colorspace", "smpte170m", "-color_range", "tv"]
        command += ["-movflags", "+faststart", str(path)]
    data = b"".join(np.ascontiguousarray(frame).tobytes() for frame in frames)
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise FatalError(f"ffmpeg cannot write the clips of {paths[0].parent}: {lines[-1] if lines else 'no message'}.")
