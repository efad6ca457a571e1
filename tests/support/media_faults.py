"""Task functions that do in a decoding process what a hostile file does; a test names one as "module:function"."""

import ctypes
import time
from pathlib import Path

from kvq_batch.media.decode import DecodeTask, VideoLayout, decode_task


def by_name(task: DecodeTask, scratch_file: Path) -> VideoLayout:
    """Decodes, but for keys that say "segfault", "hang", "hoard" or "raise"."""
    if "segfault" in task.key:
        scratch_file.write_bytes(b"half written")
        ctypes.string_at(0)
    if "hang" in task.key:
        scratch_file.write_bytes(b"half written")
        time.sleep(3600)
    if "hoard" in task.key:
        bytearray(1 << 40)
    if "raise" in task.key:
        raise ZeroDivisionError("a defect of ours")
    return decode_task(task, scratch_file)
