"""Bad videos of several kinds, selected by a word in their names.

page      is HTML                                segfault  its decoder crashes with SIGSEGV
hang      its decoder never answers              eat       its decoder allocates memory without limit
worker    its decoder kills the worker           black     its scorer allocates memory until it is killed (`tally.py`)
stuck     its worker hangs in native code that holds the GIL, before it decodes

A good video with "slow" in its name takes 0.3 s to decode.
"""

import ctypes
import os
import signal
import time
from pathlib import Path
from typing import Any, ClassVar

from kvq_batch.engine.decode_worker import DecodeWorker
from kvq_batch.media.decode import DecodeTask, VideoLayout, decode_task

PAGE = b"<!DOCTYPE html><html><body>404</body></html>"
ERRORS = {
    "page": "not_a_video",
    "segfault": "decoder_crashed",
    "hang": "decode_timeout",
    "eat": "out_of_memory",
    "worker": "worker_died",
    "black": "worker_died",
    "stuck": "worker_died",
}
"""Final error of each kind in `failures`."""


def kind_of(video_id: str) -> str | None:
    """Return the kind of bad video, or None for a good one."""
    return next((kind for kind in ERRORS if kind in video_id), None)


def misbehave(task: DecodeTask, scratch_file: Path) -> VideoLayout:
    kind = kind_of(task.key)
    if "slow" in task.key:
        time.sleep(0.3)
    if kind == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif kind == "hang":
        time.sleep(3600)
    elif kind == "eat":
        blocks = []
        while True:
            blocks.append(b"1" * (16 << 20))
    elif kind == "worker":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(3600)
    return decode_task(task, scratch_file)


class PoisonedDecodeWorker(DecodeWorker):
    """The decode worker with children that run `misbehave`."""

    task_function: ClassVar[str] = "tests.support.poison:misbehave"

    def _fetch(self, item: dict[str, Any]) -> Any:
        if kind_of(item["video_id"]) == "stuck":
            # A call through PyDLL keeps the GIL: no thread of Python runs any more.
            ctypes.PyDLL(None).sleep(3600)
        return super()._fetch(item)
