"""Copies of clips to a device and of results back, so that the host prepares a batch while a GPU computes another.

Memory that the system may move (pageable memory) is copied in two steps, and the host waits for both. So clips are
written to one of two staging buffers in pinned memory, and a second stream copies them while the first computes. A
buffer is written again only after its copy has ended. Results are copied to pinned memory and read later.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Wait = Callable[[], object]
"""Waits for the end of a copy."""


class Transfers(Protocol):
    """Copies between the host and one device."""

    def upload(self, clips: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Return clips of one shape as a batch on the device. The arrays may change as soon as this returns."""
        ...

    def fetch(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Start to copy a tensor to the host, and return what waits for the copy and returns it."""
        ...


@dataclass(slots=True)
class _Buffer:
    """One staging buffer: its memory, uint8 [bytes], and what waits for the last copy out of it."""

    memory: Tensor | None = None
    wait: Wait | None = None


class StagingBuffers:
    """Two buffers on the host that take turns.

    `allocate` returns uint8 memory of a number of bytes. `copy` starts to copy a tensor to the device, and returns the
    copy, which operators on the device may use at once, and what waits until the source may be written again.
    """

    def __init__(self, allocate: Callable[[int], Tensor], copy: Callable[[Tensor], tuple[Tensor, Wait]]) -> None:
        self._allocate = allocate
        self._copy = copy
        self._buffers = (_Buffer(), _Buffer())

    def upload(self, clips: Sequence[NDArray[np.uint8]]) -> Tensor:
        """See `Transfers.upload`."""
        buffer, other = self._buffers
        self._buffers = (other, buffer)
        if buffer.wait is not None:
            buffer.wait()
        size = sum(clip.nbytes for clip in clips)
        if buffer.memory is None or len(buffer.memory) < size:
            buffer.memory = self._allocate(size)
        batch = buffer.memory[:size].view(len(clips), *clips[0].shape)
        for place, clip in zip(batch.numpy(), clips, strict=True):
            np.copyto(place, clip)
        staged, buffer.wait = self._copy(batch)
        return staged


class PinnedTransfers:
    """Implements `Transfers` for a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._staging = StagingBuffers(lambda size: torch.empty(size, dtype=torch.uint8, pin_memory=True), self._copy)

    def upload(self, clips: Sequence[NDArray[np.uint8]]) -> Tensor:
        """See `Transfers.upload`."""
        return self._staging.upload(clips)

    def fetch(self, tensor: Tensor) -> Callable[[], Tensor]:
        """See `Transfers.fetch`."""
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        done = torch.cuda.current_stream(self._device).record_event()

        def wait() -> Tensor:
            done.synchronize()
            return host

        return wait

    def _copy(self, batch: Tensor) -> tuple[Tensor, Wait]:
        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            staged = batch.to(self._device, non_blocking=True)
        done = self._stream.record_event()
        computing.wait_event(done)
        # Its memory belongs to the copying stream, which must not reuse it while the other one reads it.
        staged.record_stream(computing)
        return staged, done.synchronize
