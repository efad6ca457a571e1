"""How far a version is from its source: VMAF, PSNR and SSIM of every frame, by libvmaf in one pass.

Both clips travel as one, frames stacked one above the other, and get the same time base and time stamps: no frame of
one is ever compared with another frame of the other. These are measures against a source; they are not opinions of
people, and a label made of them says so.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvq_batch.config.recipe import SLOT_FRAMES
from kvq_batch.domain.errors import LabelError
from kvq_batch.media.ffmpeg import require_filter, run_ffmpeg
from kvq_batch.media.planes import Planes, stacked

VMAF_MODEL = "vmaf_v0.6.1"

_LOG = "log_fmt=json:log_path=/dev/stdout:n_threads=1"
_GRAPH = (
    "[0:v]split[a][b];"
    "[a]crop=iw:ih/2:0:0,settb=1/25,setpts=N[source];"
    "[b]crop=iw:ih/2:0:ih/2,settb=1/25,setpts=N[version];"
    f"[version][source]libvmaf={_LOG}:model=version={VMAF_MODEL}:feature='name=psnr|name=float_ssim'"
)


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Measures of every frame of a version against its source, float64 [T] each.

    `vmaf` 0 to 100 (the source itself gets 97 to 100), `psnr_db` of luma, at most 60, `ssim` of luma, at most 1.
    `libvmaf` is the version of the library.
    """

    vmaf: NDArray[np.float64]
    psnr_db: NDArray[np.float64]
    ssim: NDArray[np.float64]
    libvmaf: str


def measure(source: Planes, rendition: Planes) -> Fidelity:
    """What libvmaf says of `version`, a clip of the frames and size of `source`.

    Raises:
        LabelError: ffmpeg fails, or its log does not hold every frame (measure_failed).
        FatalError: this ffmpeg has no libvmaf.
    """
    require_filter("libvmaf")
    both = stacked(source, rendition)
    text = run_ffmpeg([*both.raw_arguments, "-lavfi", _GRAPH, "-f", "null", "-"], both.data.tobytes())
    try:
        log: dict[str, Any] = json.loads(text)
        frames = [frame["metrics"] for frame in sorted(log["frames"], key=lambda frame: frame["frameNum"])]
        vmaf, psnr, ssim = (np.array([frame[name] for frame in frames]) for name in ("vmaf", "psnr_y", "float_ssim"))
        libvmaf = str(log["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise LabelError("measure_failed", f"libvmaf's log cannot be read: {text[:200]!r}") from error
    if len(frames) != source.num_frames or not all(np.isfinite(column).all() for column in (vmaf, psnr, ssim)):
        raise LabelError("measure_failed", f"libvmaf measured {len(frames)} of {source.num_frames} frames")
    return Fidelity(vmaf, psnr, ssim, libvmaf)


def slot_means(frames: NDArray[np.float64]) -> NDArray[np.float32]:
    """The mean over the frames of each slot, float32 [S]; a last slot may be short."""
    starts = np.arange(0, len(frames), SLOT_FRAMES)
    counts = np.diff([*starts, len(frames)])
    means: NDArray[np.float32] = (np.add.reduceat(frames, starts) / counts).astype(np.float32)
    return means
