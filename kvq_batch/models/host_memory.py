"""How a process of ours that computes on a CPU holds its memory.

glibc takes every large block from the system and gives it back when it is freed. A network frees and takes the same
blocks in every layer, and the system clears each page of them again: a fifth of `kvq-tiny`'s time, and nothing of
`kvq-lite`'s (`benchmarks.kept_memory`).
"""

import ctypes

# <malloc.h>
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """From now on, this process keeps what it frees for its next blocks: faster, and as large as it once was.

    False where the C library is not glibc; nothing is changed there.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    # No blocks of their own beside the heap, and a heap that never shrinks.
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
