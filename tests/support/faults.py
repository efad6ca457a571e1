"""Decoding that misbehaves on purpose, in the real child of a real worker, by the name of the video.

segfault*     the child dies of SIGSEGV             hang*   the child never answers
kill-once*    the worker itself dies, the first time only
kill-always*  the worker itself dies, every time   replaced*  the file is another one when the child has read it
"""

import os
import signal
import time
from pathlib import Path
from typing import ClassVar

from kvq_batch.engine.decode_worker import DecodeWorker
from kvq_batch.media.tasks import DecodeTask, VideoLayout, decode_task


def misbehave(task: DecodeTask, scratch_file: Path) -> VideoLayout:
    name = task.path.name
    if name.startswith("segfault"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if name.startswith("hang"):
        time.sleep(3600)
    if name.startswith("replaced"):
        layout = decode_task(task, scratch_file)
        # As an upload does it: a new file under the old name.
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
    """The decoding stage with children that run `misbehave`."""

    task_function: ClassVar[str] = "tests.support.faults:misbehave"
