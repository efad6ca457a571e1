"""Fault injection for decoding, in the real child process of a real worker, selected by the file name of the video.

segfault*     the child crashes with SIGSEGV      hang*      the child never answers
kill-once*    the worker is killed, the first time only
kill-always*  the worker is killed, every time    replaced*  the file is replaced while the child reads it
"""

import os
import signal
import time
from pathlib import Path
from typing import ClassVar

from kvq_batch.engine.decode_worker import DecodeWorker
from kvq_batch.media.decode import DecodeTask, VideoLayout, decode_task


def misbehave(task: DecodeTask, scratch_file: Path) -> VideoLayout:
    name = task.path.name
    if name.startswith("segfault"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if name.startswith("hang"):
        time.sleep(3600)
    if name.startswith("replaced"):
        layout = decode_task(task, scratch_file)
        # As an upload does: a new file with the old name.
        other = task.path.with_suffix(".part")
        other.write_bytes(task.path.read_bytes())
        other.replace(task.path)
        return layout
    once = task.path.with_suffix(".was-here")
    if name.startswith("kill-always") or (name.startswith("kill-once") and not once.exists()):
        once.touch()
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(3600)
    return decode_task(task, scratch_file)


class MisbehavingDecodeWorker(DecodeWorker):
    """The decode worker with children that run `misbehave`."""

    task_function: ClassVar[str] = "tests.support.faults:misbehave"
