"""Files that no decoder survives or can finish: what the ways of `side_by_side` are tried with.

No file is known that kills or hangs today's decoders, and none would be kept here: a name represents it, and the
process that opens a video of that name gets the signal, or the endless wait, that a crafted file would earn it.
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
    """A copy of `video` whose decoder is killed with SIGKILL."""
    return _named(video, folder, _KILLER)


def hanger(video: Path, folder: Path) -> Path:
    """A copy of `video` whose decoder never comes back."""
    return _named(video, folder, _HANGER)


def truncated(video: Path, folder: Path) -> Path:
    """The first 60% of `video` with its index in front, as an upload that broke off."""
    path = folder / f"{video.stem}-truncated.mp4"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-i", str(video)]
    subprocess.run([*command, "-c", "copy", "-movflags", "+faststart", str(path)], check=True)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    return path


BROKEN: Mapping[str, Callable[[Path, Path], Path]] = {"truncated": truncated, "killer": killer, "hanger": hanger}
"""Kinds of broken videos: each makes one of a whole video, in a folder."""


def open_as_decoder(path: Path) -> None:
    """What happens to the process that opens this file to decode it."""
    if _KILLER in path.name:
        os.kill(os.getpid(), signal.SIGKILL)
    while _HANGER in path.name:
        time.sleep(1)


def decode_crafted(task: DecodeTask, scratch_file: Path) -> VideoLayout:
    """The decoding process's task over such files."""
    open_as_decoder(task.path)
    return decode_task(task, scratch_file)


def _named(video: Path, folder: Path, kind: str) -> Path:
    path = folder / f"{video.stem}-{kind}.mp4"
    path.write_bytes(video.read_bytes())
    return path
