"""Classification of errors of GPU libraries: the batch was too large, or the device is lost to this process.

torch raises `OutOfMemoryError` for its own allocator, and `AcceleratorError` or a plain `RuntimeError` for CUDA, cuBLAS
and cuDNN; other libraries wrap the same messages in classes of their own. So the messages decide, and those of the
errors that caused the error. Most CUDA errors leave the context in a state in which each later call fails, whatever its
input: an error of CUDA that is not known to be harmless counts as such (CUDA Runtime API, section "Data types used by
CUDA Runtime", `cudaError`).
"""

import re
import sys
from collections.abc import Iterator

_OUT_OF_MEMORY = re.compile(
    r"^OutOfMemoryError|(?:CUDA|HIP|XPU|MPS backend)(?: driver| runtime)?(?: error| failure \d+)?:? out of memory"
    r"|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY|RESOURCE_EXHAUSTED|_STATUS_ALLOC_FAILED|_ALLOCATION_FAILED"
    r"|can't allocate memory|failed to allocate memory|bad_alloc",
    re.IGNORECASE,
)

_BATCH_TOO_LARGE = re.compile(
    r"CUDNN_STATUS_NOT_SUPPORTED|CUDNN_STATUS_INTERNAL_ERROR|CUDNN_STATUS_NOT_INITIALIZED"
    r"|CUBLAS_STATUS_NOT_INITIALIZED|CUBLAS_STATUS_INTERNAL_ERROR|canUse32BitIndexMath"
    r"|unable to find an engine|unable to find a valid cuDNN algorithm",
    re.IGNORECASE,
)
"""What cuDNN and cuBLAS report if there is no memory for their workspace, or more elements than they can count."""

_CUDA_ERROR = re.compile(
    r"(?:CUDA|HIP)(?: driver| runtime)? (?:error|failure)|cudaError[A-Z]|CUDA_ERROR_"
    r"|CU(?:DNN|BLAS)_STATUS_(?:EXECUTION_FAILED|MAPPING_ERROR)|device-side assert|illegal memory access"
    r"|unspecified launch failure|fallen off the bus|GPU is lost",
    re.IGNORECASE,
)

_HARMLESS = re.compile(
    r"invalid argument|invalid configuration argument|no kernel image|invalid device function"
    r"|too many resources requested|too many blocks in cooperative launch|operation not supported(?! on global)"
    r"|CU(?:BLAS|SOLVER|SPARSE|FFT|RAND)_STATUS_(?!EXECUTION_FAILED|MAPPING_ERROR)|CUSOLVER_STATUS_EXECUTION_FAILED",
    re.IGNORECASE,
)
"""Errors of one call that leave the context usable. torch puts "CUDA error:" before those of cuBLAS, too."""


def is_out_of_memory(error: BaseException, num_clips: int) -> bool:
    """Return whether a batch of `num_clips` clips failed because of its size, so that a smaller one may succeed."""
    if isinstance(error, MemoryError) or any(_OUT_OF_MEMORY.search(text) for text in _messages(error)):
        return True
    return num_clips > 1 and any(_BATCH_TOO_LARGE.search(text) for text in _messages(error))


def is_device_lost(error: BaseException) -> bool:
    """Return whether the GPU is of no more use to this process. Another process may be able to use it."""
    if any(_CUDA_ERROR.search(text) and not _HARMLESS.search(text) for text in _messages(error)):
        return True
    return not _answers()


def first_line(error: BaseException) -> str:
    """Return the first line of the message: torch appends its advice, and sometimes a stack of C++ functions."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _messages(error: BaseException | None) -> Iterator[str]:
    while error is not None:
        yield f"{type(error).__name__}: {error}"
        error = error.__cause__ if error.__suppress_context__ or error.__cause__ is not None else error.__context__


def _answers() -> bool:
    """Return whether the CUDA context of this process works; True if it has none.

    A broken context reports its error to every call, and all libraries of a process share the context of torch.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True
