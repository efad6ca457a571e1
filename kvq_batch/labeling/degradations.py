"""The degradations that the steps of a recipe name.

Codecs run in ffmpeg, with one thread each for encoder and decoder. The others are filters of ffmpeg or numpy code. The
same segment, steps and seed give the same bytes with the same ffmpeg.
"""

import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from kvq_batch.config.recipe import Chain, Recipe, Step
from kvq_batch.media.ffmpeg import run_ffmpeg
from kvq_batch.media.planes import Planes

LOSSY_LINK_CRF = 24
_SLICES = 8

_ENCODERS: dict[str, tuple[str, ...]] = {
    "h264": ("-c:v", "libx264", "-preset", "veryfast", "-crf"),
    "hevc": ("-c:v", "libx265", "-preset", "veryfast", "-x265-params", "pools=none:frame-threads=1", "-crf"),
    "vp9": ("-c:v", "libvpx-vp9", "-deadline", "good", "-cpu-used", "5", "-row-mt", "0", "-b:v", "0", "-crf"),
    "av1": ("-c:v", "libsvtav1", "-preset", "9", "-svtav1-params", "lp=1", "-crf"),
    # -strict: the encoder expects full-range input; the pixels are not converted.
    "mjpeg": ("-c:v", "mjpeg", "-strict", "unofficial", "-q:v"),
}


def make_rendition(source: Planes, recipe: Recipe, chain_of: Callable[[Chain], Planes] | None = None) -> Planes:
    """Return the rendition of `source` by `recipe`.

    `chain_of` returns the source after a chain of steps; callers with a cache pass their own.

    Raises:
        LabelError: ffmpeg fails, or a patch lies outside the frame.
    """
    chain_of = chain_of or (lambda steps: apply(source, steps, recipe.seed))
    rendition = chain_of(recipe.steps)
    for patch in recipe.patches:
        rendition = rendition.pasted(chain_of(patch.steps), patch.cells)
    return rendition


def apply(source: Planes, steps: Chain, seed: int) -> Planes:
    """Return `source` after `steps`, applied in order.

    Raises:
        LabelError: ffmpeg fails.
    """
    rendition = source
    for position, step in enumerate(steps):
        rendition = _HOW[step.name](rendition, step, np.random.default_rng([seed, position]))
    return rendition


def _codec(clip: Planes, step: Step, rng: np.random.Generator) -> Planes:
    amount = f"{step.amount:g}"
    made = run_ffmpeg([*clip.raw_arguments, *_ENCODERS[step.name], amount, "-f", "matroska", "-"], clip.data.tobytes())
    return _decoded(clip, made, [], step)


def _packet_loss(clip: Planes, step: Step, rng: np.random.Generator) -> Planes:
    """H.264 with lost slices. The decoder's concealment propagates into later frames."""
    options = ["-c:v", "libx264", "-preset", "veryfast", "-bf", "0", "-slices", str(_SLICES)]
    options += ["-crf", str(LOSSY_LINK_CRF), "-f", "h264", "-"]
    stream = run_ffmpeg([*clip.raw_arguments, *options], clip.data.tobytes())
    reading = ["-f", "h264", "-framerate", str(clip.frame_rate), "-err_detect", "ignore_err"]
    return _decoded(clip, _lose_slices(stream, step.amount, rng), reading, step)


def _lose_slices(stream: bytes, share: float, rng: np.random.Generator) -> bytes:
    """Return an H.264 byte stream without some slices of its later frames; at least one slice is removed.

    The first slice of a frame is kept: without any slice the decoder would drop the frame, and later frames would be
    compared with the wrong frames of the source.
    """
    starts = [match.start() for match in re.finditer(rb"\x00\x00\x01", stream)]
    units = [stream[a:b] for a, b in zip(starts, [*starts[1:], len(stream)], strict=True)]
    # NAL unit type 1 is a slice of a non-IDR picture; the first bit of its header says whether it is the first slice.
    may_go = [i for i, unit in enumerate(units) if unit[3] & 31 == 1 and not unit[4] & 128]
    if not may_go:
        return stream
    lost = set(np.flatnonzero(rng.random(len(may_go)) < share).tolist()) or {int(rng.integers(len(may_go)))}
    gone = {may_go[i] for i in lost}
    return stream[: starts[0]] + b"".join(unit for i, unit in enumerate(units) if i not in gone)


def _decoded(clip: Planes, made: bytes, reading: list[str], step: Step) -> Planes:
    # passthrough: keep the number of coded frames, whatever their time stamps.
    to_raw = ["-i", "-", "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "yuv420p", "-"]
    # The encoder marks the stream as full range (JPEG); the pixels must not be converted.
    same_range = ["-vf", "scale=in_range=tv:out_range=tv"] if step.name == "mjpeg" else []
    return clip.with_raw(run_ffmpeg([*reading, *to_raw[:2], *same_range, *to_raw[2:]], made), str(step))


def _filter(clip: Planes, step: Step, rng: np.random.Generator) -> Planes:
    amount = f"{step.amount:g}"
    if step.name == "blur":
        graph = f"gblur=sigma={amount}"
    else:
        # Even sizes of at least 16 pixels.
        height, width = (max(16, 2 * round(px / step.amount / 2)) for px in (clip.height_px, clip.width_px))
        flags = "accurate_rnd+full_chroma_int+bitexact"
        enlarged = "neighbor" if step.name == "pixelate" else "bicubic"
        graph = f"scale={width}:{height}:flags=area+{flags},"
        graph += f"scale={clip.width_px}:{clip.height_px}:flags={enlarged}+{flags}"
    arguments = [*clip.raw_arguments, "-vf", graph, "-f", "rawvideo", "-pix_fmt", "yuv420p", "-"]
    return clip.with_raw(run_ffmpeg(arguments, clip.data.tobytes()), str(step))


def _motion_blur(clip: Planes, step: Step, rng: np.random.Generator) -> Planes:
    """Motion blur: the mean along a line of `amount` pixels in a random direction."""
    angle = rng.uniform(0, np.pi)
    planes = []
    for plane, scale in zip(clip.planes(), (1.0, 0.5, 0.5), strict=True):
        length = step.amount * scale
        count = max(2, round(length))
        along = np.linspace(-length / 2, length / 2, count)
        dy, dx = (np.rint(along * f).astype(int) for f in (np.sin(angle), np.cos(angle)))
        reach = int(max(abs(dy).max(), abs(dx).max()))
        padded = np.pad(plane, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
        height, width = plane.shape[1:]
        total = np.zeros(plane.shape, np.uint16)
        for y, x in zip(dy, dx, strict=True):
            total += padded[:, reach + y : reach + y + height, reach + x : reach + x + width]
        planes.append(((total + count // 2) // count).astype(np.uint8))
    return clip.with_planes(planes)


def _noise(clip: Planes, step: Step, rng: np.random.Generator) -> Planes:
    """Gaussian noise, independent per pixel and frame, half as strong in chroma, like sensor noise after coding."""
    planes = []
    for plane, scale in zip(clip.planes(), (1.0, 0.5, 0.5), strict=True):
        noisy = np.empty_like(plane)
        for t, frame in enumerate(plane):
            grain = rng.standard_normal(frame.shape, np.float32) * np.float32(step.amount * scale)
            noisy[t] = np.clip(np.rint(frame + grain), 0, 255)
        planes.append(noisy)
    return clip.with_planes(planes)


def _banding(clip: Planes, step: Step, rng: np.random.Generator) -> Planes:
    width = 256 / step.amount
    levels = np.arange(256)
    return _looked_up(clip, (np.floor(levels / width) + 0.5) * width, None)


def _exposure(clip: Planes, step: Step, rng: np.random.Generator) -> Planes:
    """Gain in linear light, with a display gamma of 2.2; chroma keeps its ratio to luma."""
    gain = 2.0 ** (step.amount / 2.2)
    levels = np.arange(256)
    return _looked_up(clip, np.minimum(16 + (levels - 16) * gain, 235), 128 + (levels - 128) * gain)


def _looked_up(clip: Planes, luma: NDArray[np.floating], chroma: NDArray[np.floating] | None) -> Planes:
    tables = [np.clip(np.rint(t), 0, 255).astype(np.uint8) for t in (luma, luma if chroma is None else chroma)]
    y, u, v = clip.planes()
    return clip.with_planes([tables[0][y], tables[1][u], tables[1][v]])


def _freeze(clip: Planes, step: Step, rng: np.random.Generator) -> Planes:
    """Dropped frames: each is replaced by the last frame that was kept; the first is always kept."""
    dropped = rng.random(clip.num_frames) < step.amount
    if not dropped[1:].any() and clip.num_frames > 1:
        dropped[rng.integers(1, clip.num_frames)] = True
    dropped[0] = False
    shown = np.maximum.accumulate(np.where(dropped, 0, np.arange(clip.num_frames)))
    return clip.with_planes([plane[shown] for plane in clip.planes()])


_HOW: dict[str, Callable[[Planes, Step, np.random.Generator], Planes]] = {
    "h264": _codec,
    "hevc": _codec,
    "vp9": _codec,
    "av1": _codec,
    "mjpeg": _codec,
    "packet_loss": _packet_loss,
    "downscale": _filter,
    "pixelate": _filter,
    "blur": _filter,
    "motion_blur": _motion_blur,
    "noise": _noise,
    "banding": _banding,
    "exposure": _exposure,
    "freeze": _freeze,
}
