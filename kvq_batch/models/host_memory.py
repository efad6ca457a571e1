"""Setting of the C library's memory allocator, for processes that compute on a CPU.

glibc takes every large block from the system and returns it when it is freed. A network frees and allocates the same
blocks in every layer, and the system clears each page again. That takes a fifth of the time of `kvq-tiny`, and no
measurable time of `kvq-lite` (`benchmarks.kept_memory`).

Threads other than the first one have heaps of their own, which return memory whatever is set. So all threads use one
heap, except those that allocated something before.
"""

import ctypes

# <malloc.h>
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8


def keep_freed_memory() -> bool:
    """Make this process keep freed memory for its next blocks. It gets faster, and its memory does not shrink again.

    Call it before the threads start that compute. Return False, and change nothing, if the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    # All blocks are on one heap, and the heap never shrinks.
    return all(mallopt(*setting) for setting in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_ARENA_MAX, 1)))
