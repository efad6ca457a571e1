"""keep_freed_memory: freed blocks are used again, without new pages."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, threading
import numpy as np
from kvq_batch.models.host_memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()


def use_blocks():
    # Each fits into the heap of a thread, 64 MiB, both do not.
    [np.ones(4_500_000) for _ in range(2)]


def measure():
    use_blocks()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        use_blocks()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


if sys.argv[2] == "first":
    measure()
else:
    thread = threading.Thread(target=measure)
    thread.start()
    thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be set to keep memory")
@pytest.mark.parametrize("thread", ["first", "other"])
def test_kept_blocks_need_no_new_pages(thread: str) -> None:
    taken = {}
    for way in ("plain", "keep"):
        # Transparent huge pages would hide what is counted here: numpy asks for them unless it is set not to.
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, way, thread],
            check=True,
            capture_output=True,
            text=True,
            env={"PATH": "", "NUMPY_MADVISE_HUGEPAGE": "0", "PYTHONPATH": ":".join(sys.path)},
        )
        taken[way] = int(done.stdout)
    assert taken["plain"] > 20 * 15_000
    assert taken["keep"] < 200
