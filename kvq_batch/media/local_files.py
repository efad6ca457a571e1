"""Clips and frames of trusted local files, decoded in the calling process.

Files from elsewhere are decoded in a child process (`isolation`).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from kvq_batch.domain.errors import DecodeError
from kvq_batch.domain.frames import FrameRequest
from kvq_batch.domain.video import Window
from kvq_batch.media.decode import Decoding, decode_clips, write_frame
from kvq_batch.media.decoders import choose_decoder, open_reader
from kvq_batch.media.probe import VideoLimits, probe

STILL_EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")

# Modes that become 8-bit RGB without loss. A transparent pixel keeps its colour, as in OpenCV.
_MODES = ("RGB", "RGBA", "RGBX", "L", "LA", "P", "1")


def clip_of_file(path: Path, request: FrameRequest, num_still_frames: int) -> NDArray[Any]:
    """Return a clip, uint8 RGB [T, H, W, 3]: a still `num_still_frames` times, or what `request` gets of a video.

    A still answers requests for pixels only. The chunks of a streamed request are joined.

    Raises:
        ProbeError, DecodeError: the file is missing, damaged, or not supported.
        ScoreError: its extractor rejects the video.
    """
    if path.suffix.lower() in STILL_EXTENSIONS:
        frame = _still(path)
        out = np.empty((*(request.size or frame.shape[:2]), 3), np.uint8)
        write_frame(frame, 0, request, out)
        return np.repeat(out[None], num_still_frames, axis=0)
    probed = probe(path, VideoLimits())
    reader, _ = open_reader(choose_decoder(probed))
    # The duration may be rounded to less than the time of the last frame.
    whole = [Window(0.0, max(probed.facts.duration_s, float(probed.times_s[-1]) + 1e-6))]
    parts = list(decode_clips(path, probed, whole, [request], path.name, range(1), Decoding(reader)))
    if (error := parts[0].frames[0].error) is not None:
        raise error
    arrays = [part.frames[0].pixels for part in parts if part.decode_pass == parts[-1].decode_pass]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def read_frames(path: Path, indices: Sequence[int]) -> list[NDArray[np.uint8]]:
    """Return the frames `indices` (presentation order, repeats allowed), uint8 RGB [H, W, 3], upright, native size.

    Raises:
        ProbeError, DecodeError: as `probe` and the readers.
    """
    frames = dict(iter_frames(path, indices))
    return [frames[int(index)] for index in indices]


def iter_frames(path: Path, indices: Sequence[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield (index, frame) once for each distinct index, as `read_frames` returns them; one frame is held at a time.

    Raises:
        ProbeError, DecodeError: as `probe` and the readers.
    """
    probed = probe(path, VideoLimits(hdr="as-is"))
    reader, _ = open_reader(choose_decoder(probed))
    for number, rgb in reader.frames(path, probed, np.unique(np.asarray(indices, np.int64)), num_threads=1):
        yield number, rgb.copy()


def frame_times(path: Path) -> NDArray[np.float64]:
    """Return the presentation times of all frames, seconds, float64 [N]. Raises: ProbeError."""
    return probe(path, VideoLimits(hdr="as-is")).times_s


def _still(path: Path) -> NDArray[np.uint8]:
    """Return the upright picture, uint8 RGB [H, W, 3]."""
    try:
        with Image.open(path) as picture:
            if picture.mode not in _MODES:
                raise DecodeError(
                    "still_mode",
                    f"{path} has the mode {picture.mode}, which is not supported. Store it as 8-bit RGB.",
                    True,
                )
            return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise DecodeError("still", f"{path} cannot be read as a picture: {error}.", True) from error
