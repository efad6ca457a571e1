"""The frames of a file as the command line of ffmpeg shows them: the reference for our decoder."""

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.errors import FatalError
from kvq_batch.media.decoders import open_reader
from kvq_batch.media.probe import VideoLimits, probe


def reference_frames(path: Path, *options: str, stream: int | None = None) -> list[NDArray[np.uint8]]:
    """Return every frame of `path`, uint8 RGB [H, W, 3]: as stored in time, cropped and upright; none is repeated.

    `options` go before the input; `stream` is the index of the stream, else the first one with video is taken. Each
    frame has its own size, as each becomes a PPM picture.
    """
    # One thread: with more, ffmpeg decodes some frames of interlaced MPEG-4 part 2 otherwise.
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-threads", "1", *options, "-i", f"file:{path}"]
    command += ["-map", "0:v:0?" if stream is None else f"0:{stream}", "-fps_mode", "passthrough", "-noautoscale"]
    done = subprocess.run(
        [*command, "-pix_fmt", "rgb24", "-c:v", "ppm", "-f", "image2pipe", "-"], capture_output=True, check=False
    )
    if done.returncode and not done.stdout:
        raise FatalError(f"ffmpeg {path}: {done.stderr.decode(errors='replace').strip()[-500:]}")
    return list(_pictures(done.stdout))


def our_frames(path: Path, numbers: NDArray[np.int64] | None = None) -> dict[int, NDArray[np.uint8]]:
    """Return frames of `path` by number as our decoder gives them: all, or those of `numbers`."""
    probed = probe(path, VideoLimits(hdr="as-is"))
    reader, _ = open_reader("pyav")
    wanted = np.arange(probed.facts.num_frames) if numbers is None else numbers
    return {number: rgb.copy() for number, rgb in reader.frames(path, probed, wanted, 1)}


def _pictures(data: bytes) -> list[NDArray[np.uint8]]:
    pictures, start = [], 0
    while start < len(data):
        _, width, height, depth = data[start : start + 64].split(maxsplit=4)[:4]
        start += len(b"P6\n%s %s\n%s\n" % (width, height, depth))
        shape = (int(height), int(width), 3)
        size = int(np.prod(shape))
        pictures.append(np.frombuffer(data, np.uint8, size, start).reshape(shape))
        start += size
    return pictures
