"""One clip of one local file, still or moving, as a model asks for it: for sets that are measured file by file.

It runs in the process that calls it, so that it is for files of one's own; what comes from elsewhere is decoded in a
child (`isolation`).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from kvq_batch.domain.errors import DecodeError
from kvq_batch.domain.frames import FrameRequest
from kvq_batch.domain.video import Window
from kvq_batch.media.decode import Decoding, decode_clips, place_frame
from kvq_batch.media.decoders import choose_decoder, open_reader
from kvq_batch.media.probe import VideoLimits, probe

STILL_EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")

# What a conversion to 8 bit RGB changes in nothing but form; a transparent pixel keeps its colour, as OpenCV has it.
_MODES = ("RGB", "RGBA", "RGBX", "L", "LA", "P", "1")


def clip_of_file(path: Path, request: FrameRequest, num_still_frames: int) -> NDArray[np.uint8]:
    """The clip, uint8 RGB [T, H, W, 3]: a still `num_still_frames` times, of a video the frames that `request` draws.

    Raises:
        ProbeError, DecodeError: a file that is missing, damaged, or of a kind that is not read.
    """
    if path.suffix.lower() in STILL_EXTENSIONS:
        frame = _still(path)
        out = np.empty((*(request.size or frame.shape[:2]), 3), np.uint8)
        place_frame(frame, 0, request, out)
        return np.repeat(out[None], num_still_frames, axis=0)
    probed = probe(path, VideoLimits())
    reader, _ = open_reader(choose_decoder(probed))
    # Frame times are exact to their time base, the duration may be rounded below the last of them.
    whole = [Window(0.0, max(probed.facts.duration_s, float(probed.times_s[-1]) + 1e-6))]
    (clip,) = decode_clips(path, probed, whole, [request], path.name, range(1), Decoding(reader))
    return clip.frames[0].pixels


def read_frames(path: Path, indices: Sequence[int]) -> list[NDArray[np.uint8]]:
    """The frames `indices` (presentation order, repeats allowed), uint8 RGB [H, W, 3], upright, native size.

    Raises:
        ProbeError, DecodeError: as `probe` and the readers.
    """
    probed = probe(path, VideoLimits(hdr="as-is"))
    reader, _ = open_reader(choose_decoder(probed))
    wanted = np.unique(np.asarray(indices, np.int64))
    frames = {number: rgb.copy() for number, rgb in reader.frames(path, probed, wanted, num_threads=1)}
    return [frames[int(index)] for index in indices]


def _still(path: Path) -> NDArray[np.uint8]:
    """The upright picture, uint8 RGB [H, W, 3]."""
    try:
        with Image.open(path) as picture:
            if picture.mode not in _MODES:
                raise DecodeError(
                    "still_mode", f"{path}: a picture of mode {picture.mode}; store it as 8 bit RGB", True
                )
            return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise DecodeError("still", f"{path}: cannot be read as a picture ({error})", True) from error
