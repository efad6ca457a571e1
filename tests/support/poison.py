"""Videos that misbehave, by a word in their names, in the real child of a real worker or in their bytes.

page      is HTML                                  segfault  its decoder dies of SIGSEGV
hang      its decoder never answers                eat       its decoder takes all the memory that it can get
worker    its decoder kills the worker above it    black     its scorer eats until it is killed (tests.support.tally)
"""

import os
import signal
import time
from pathlib import Path
from typing import ClassVar

from kvq_batch.engine.decode_worker import DecodeWorker
from kvq_batch.media.tasks import DecodeTask, VideoLayout, decode_task

PAGE = b"<!DOCTYPE html><html><body>404</body></html>"
ERRORS = {
    "page": "not_a_video",
    "segfault": "decoder_crashed",
    "hang": "decode_timeout",
    "eat": "out_of_memory",
    "worker": "worker_died",
    "black": "worker_died",
}
"""What each kind is called in `failures`, in the end."""


def kind_of(video_id: str) -> str | None:
    """The kind of poison that a video of this name is, if any."""
    return next((kind for kind in ERRORS if kind in video_id), None)


def misbehave(task: DecodeTask, scratch_file: Path) -> VideoLayout:
    kind = kind_of(task.key)
    if kind == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif kind == "hang":
        time.sleep(3600)
    elif kind == "eat":
        eaten = []
        while True:
            eaten.append(b"1" * (16 << 20))
    elif kind == "worker":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(3600)
    return decode_task(task, scratch_file)


class PoisonedDecodeWorker(DecodeWorker):
    """The decoding stage with children that run `misbehave`."""

    task_function: ClassVar[str] = "tests.support.poison:misbehave"
