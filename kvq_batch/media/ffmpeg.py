"""Runs the ffmpeg of `imageio-ffmpeg`: bytes in, bytes out.

Input and output go through pipes, not through files. Every run has a time limit, and one thread: an encoder that
divides a picture among threads writes other bytes.
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
"""Time limit of a run: a segment of 32 frames takes seconds, unless ffmpeg hangs or frames are much larger."""

ONE_THREAD = ("-threads", "1", "-filter_threads", "1", "-filter_complex_threads", "1")


def run_ffmpeg(arguments: list[str], data: bytes = b"", timeout_s: float = TIMEOUT_S) -> bytes:
    """Return what ffmpeg writes to its standard output for `arguments`, with `data` on its standard input.

    Raises:
        LabelError: ffmpeg fails (ffmpeg_failed), crashes (ffmpeg_crashed) or takes over `timeout_s` (ffmpeg_timeout).
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
            "ffmpeg_timeout", f"ffmpeg was killed after {timeout_s:g} s. Make the segment smaller."
        ) from error
    except OSError as error:
        raise FatalError(f"Cannot start {executable()}: {error.strerror}. Check its permissions.") from error
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise LabelError("ffmpeg_crashed", f"ffmpeg crashed: {name}", exit_signal=name)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise LabelError("ffmpeg_failed", f"ffmpeg: {lines[-1][:300] if lines else 'no message'}")
    return done.stdout


@lru_cache(maxsize=1)
def executable() -> str:
    """Return the path of the ffmpeg in use.

    Raises:
        FatalError: `imageio-ffmpeg` has none for this machine.
    """
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise FatalError(
            f"imageio-ffmpeg has no ffmpeg for this machine ({error}). Set IMAGEIO_FFMPEG_EXE to one."
        ) from error


@lru_cache(maxsize=1)
def ffmpeg_version() -> str:
    """Return the version that the ffmpeg in use reports."""
    return run_ffmpeg(["-version"]).decode(errors="replace").split()[2]


def require_filter(name: str) -> None:
    """Check that the ffmpeg in use has the filter `name`.

    Raises:
        FatalError: it does not have the filter.
    """
    if name not in _filters():
        raise FatalError(
            f"{executable()} ({ffmpeg_version()}) has no filter {name}, which labels need. "
            "Use the ffmpeg of imageio-ffmpeg: unset IMAGEIO_FFMPEG_EXE."
        )


@lru_cache(maxsize=1)
def _filters() -> frozenset[str]:
    listed = run_ffmpeg(["-filters"]).decode(errors="replace").splitlines()
    return frozenset(words[1] for line in listed if len(words := line.split()) >= 3 and "->" in words[2])
