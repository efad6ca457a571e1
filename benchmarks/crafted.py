"""Broken videos for `side_by_side`: truncated ones, and ones that kill or hang their decoder.

No file is known that kills or hangs current decoders. The file name simulates one: a process that opens a video with
that name is killed by SIGKILL, or never returns.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import imageio_ffmpeg

from kvq_batch.media.decode import DecodeTask, VideoLayout, decode_task

_KILLER = "kills-its-decoder"
_HANGER = "hangs-its-decoder"


def killer(video: Path, folder: Path) -> Path:
    """Copy `video` under a name that kills its decoder with SIGKILL."""
    return _named(video, folder, _KILLER)


def hanger(video: Path, folder: Path) -> Path:
    """Copy `video` under a name that hangs its decoder."""
    return _named(video, folder, _HANGER)


def truncated(video: Path, folder: Path) -> Path:
    """Write the first 60% of `video`, with the index at the front, like an interrupted upload."""
    path = folder / f"{video.stem}-truncated.mp4"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-i", str(video)]
    subprocess.run([*command, "-c", "copy", "-movflags", "+faststart", str(path)], check=True)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    return path


BROKEN: Mapping[str, Callable[[Path, Path], Path]] = {"truncated": truncated, "killer": killer, "hanger": hanger}
"""Kinds of broken videos. Each function makes one from a complete video, in a folder."""


def open_as_decoder(path: Path) -> None:
    """Kill or hang this process if the name of the file says so."""
    if _KILLER in path.name:
        os.kill(os.getpid(), signal.SIGKILL)
    while _HANGER in path.name:
        time.sleep(1)


def decode_crafted(task: DecodeTask, scratch_file: Path) -> VideoLayout:
    """Decode like a decoding process, which such files kill or hang."""
    open_as_decoder(task.path)
    return decode_task(task, scratch_file)


def _named(video: Path, folder: Path, kind: str) -> Path:
    path = folder / f"{video.stem}-{kind}.mp4"
    path.write_bytes(video.read_bytes())
    return path
