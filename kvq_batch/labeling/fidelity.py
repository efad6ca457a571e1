"""Full-reference measures of a rendition: VMAF, PSNR and SSIM of every frame, by libvmaf in one pass.

Both clips are sent as one, with the frames stacked vertically, and get the same time base and time stamps, so frames
never get out of step. The measures compare with a reference. They are not opinions of people.
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
    """Measures of every frame of a rendition against its reference, float64 [T] each.

    `vmaf` is 0 to 100 (the reference itself gets 97 to 100), `psnr_db` is of luma and at most 60, `ssim` is of luma and
    at most 1. `libvmaf` is the version of the library.
    """

    vmaf: NDArray[np.float64]
    psnr_db: NDArray[np.float64]
    ssim: NDArray[np.float64]
    libvmaf: str


def measure(source: Planes, rendition: Planes) -> Fidelity:
    """Return the measures of `rendition`, which has as many frames and the same size as `source`.

    Raises:
        LabelError: ffmpeg fails, or its log does not contain every frame (measure_failed).
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
    """Return the mean over the frames of each time slot, float32 [S]; the last slot may be shorter."""
    starts = np.arange(0, len(frames), SLOT_FRAMES)
    counts = np.diff([*starts, len(frames)])
    means: NDArray[np.float32] = (np.add.reduceat(frames, starts) / counts).astype(np.float32)
    return means
