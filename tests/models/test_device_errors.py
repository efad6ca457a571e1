"""Errors of GPU libraries by their texts, as torch 2.13 and CUDA 13 write them."""

import pytest
import torch

from kvq_batch.models.device_errors import first_line, is_device_lost, is_out_of_memory

ADVICE = "\nCUDA kernel errors might be asynchronously reported at some other API call.\nCompile with `X`."

LOST = [
    # cudaGetErrorString of the codes whose description says that the process must be terminated and relaunched.
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: the launch timed out and was terminated",
    "CUDA error: device-side assert triggered",
    "CUDA error: hardware stack error",
    "CUDA error: an illegal instruction was encountered",
    "CUDA error: misaligned address",
    "CUDA error: operation not supported on global/shared address space",
    "CUDA error: invalid program counter",
    "CUDA error: unspecified launch failure",
    # Faults of the device or its driver.
    "CUDA error: uncorrectable ECC error encountered",
    "CUDA error: uncorrectable NVLink error detected during the execution",
    "CUDA error: CUDA-capable device(s) is/are busy or unavailable",
    "CUDA error: no CUDA-capable device is detected",
    "CUDA error: driver shutting down",
    "CUDA error: context is destroyed",
    "CUDA error: unknown error",
    "CUDA driver error: unknown error",
    "cudaErrorECCUncorrectable",
    "Unable to determine the device handle for GPU: GPU is lost.",
    "NVRM: Xid 79, GPU has fallen off the bus.",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb, m, n, k)`",
    # Other libraries: onnxruntime, CuPy, JAX, ROCm.
    "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=h",
    "cudaErrorIllegalAddress: an illegal memory access was encountered",
    "INTERNAL: CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered",
    "HIP error: unspecified launch failure",
]
TOO_LARGE = [
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB.",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUDA failure 2: out of memory ; GPU=0 ; hostname=h",
    "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.",
]
TOO_LARGE_IN_A_BATCH = [
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input.",
    "GET was unable to find an engine to execute this computation",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
]
OTHER = [
    "CUDA error: invalid argument",
    "CUDA error: invalid configuration argument",
    "CUDA error: no kernel image is available for execution on the device",
    "CUDA error: too many resources requested for launch",
    "CUDA error: operation not supported",
    "CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasSgemm( handle, opa, opb, m, n, k)`",
    "mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)",
    "the file mentions no memory, an error and a device",
]


@pytest.mark.parametrize("kind", [torch.AcceleratorError, RuntimeError, ValueError])
@pytest.mark.parametrize("text", LOST)
def test_error_that_loses_device(text: str, kind: type[Exception]) -> None:
    error = kind(text + ADVICE)
    assert is_device_lost(error)
    assert not is_out_of_memory(error, 8)
    assert first_line(error) == text


@pytest.mark.parametrize("text", TOO_LARGE)
def test_error_of_full_memory(text: str) -> None:
    assert is_out_of_memory(RuntimeError(text + ADVICE), 1)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no room"), MemoryError(), KeyError("x")])
def test_class_of_full_memory(error: Exception) -> None:
    assert is_out_of_memory(error, 1) == isinstance(error, torch.OutOfMemoryError | MemoryError)


@pytest.mark.parametrize("text", TOO_LARGE_IN_A_BATCH)
def test_error_that_smaller_batch_may_avoid(text: str) -> None:
    assert is_out_of_memory(RuntimeError(text), 2)
    assert not is_out_of_memory(RuntimeError(text), 1)
    assert not is_device_lost(RuntimeError(text))


@pytest.mark.parametrize("text", OTHER)
def test_other_error(text: str) -> None:
    error = RuntimeError(text + ADVICE)
    assert not is_device_lost(error)
    assert not is_out_of_memory(error, 8)


def test_wrapped_error_is_recognised() -> None:
    def wrap(text: str) -> Exception:
        try:
            try:
                raise RuntimeError(text)
            except RuntimeError as error:
                raise ValueError("the model failed") from error
        except ValueError as error:
            return error

    assert is_device_lost(wrap("CUDA error: misaligned address"))
    assert is_out_of_memory(wrap("CUDA error: out of memory"), 1)
    assert not is_device_lost(wrap("no such layer"))


def test_device_without_answer_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    error = RuntimeError("a text that says nothing")
    assert not is_device_lost(error)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert not is_device_lost(error)
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    assert is_device_lost(error)
