"""The ffmpeg that `imageio-ffmpeg` brings, as a child that reads bytes and answers bytes.

Nothing is written to a disk: input and output go through pipes. Every run has a time limit and one thread, because how
an encoder shares a picture among threads is part of the bytes. It knows filters and codecs only as arguments.
"""

import os
import signal
import subprocess
import sys
from functools import lru_cache

import imageio_ffmpeg

from kvq_batch.domain.errors import FatalError, LabelError
from kvq_batch.media import exec_with_pdeathsig

TIMEOUT_S = 300.0
"""A segment of 32 frames takes seconds; only something that hangs, or a much larger frame, gets here."""

ONE_THREAD = ("-threads", "1", "-filter_threads", "1", "-filter_complex_threads", "1")


def run_ffmpeg(arguments: list[str], data: bytes = b"", timeout_s: float = TIMEOUT_S) -> bytes:
    """What ffmpeg writes to its standard output for `arguments`, given `data` on its standard input.

    Raises:
        LabelError: ffmpeg refuses (ffmpeg_failed), dies (ffmpeg_crashed) or outlives `timeout_s` (ffmpeg_timeout).
        FatalError: it cannot be started.
    """
    program = [executable(), "-hide_banner", "-loglevel", "error", "-y", *ONE_THREAD, *arguments]
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", exec_with_pdeathsig.__file__, str(os.getpid()), *program],
            input=data,
            capture_output=True,
            check=False,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired as error:
        raise LabelError(
            "ffmpeg_timeout", f"ffmpeg was killed after {timeout_s:g} s; make the segment smaller"
        ) from error
    except OSError as error:
        raise FatalError(f"{executable()} cannot be started: {error.strerror}") from error
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise LabelError("ffmpeg_crashed", f"ffmpeg died: {name}", exit_signal=name)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise LabelError("ffmpeg_failed", f"ffmpeg: {lines[-1][:300] if lines else 'no message'}")
    return done.stdout


@lru_cache(maxsize=1)
def executable() -> str:
    """The path of the ffmpeg in use.

    Raises:
        FatalError: `imageio-ffmpeg` has none for this machine.
    """
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise FatalError(f"imageio-ffmpeg brings no ffmpeg for this machine: {error}") from error


@lru_cache(maxsize=1)
def ffmpeg_version() -> str:
    """The version of the ffmpeg in use, as it says itself."""
    return run_ffmpeg(["-version"]).decode(errors="replace").split()[2]


def require_filter(name: str) -> None:
    """Nothing, if the ffmpeg in use has the filter `name`.

    Raises:
        FatalError: it has not; the message names the ffmpeg.
    """
    if name not in _filters():
        raise FatalError(
            f"{executable()} ({ffmpeg_version()}) has no filter {name}, without which there are no labels; "
            "install imageio-ffmpeg's own ffmpeg (unset IMAGEIO_FFMPEG_EXE)"
        )


@lru_cache(maxsize=1)
def _filters() -> frozenset[str]:
    listed = run_ffmpeg(["-filters"]).decode(errors="replace").splitlines()
    return frozenset(words[1] for line in listed if len(words := line.split()) >= 3 and "->" in words[2])
