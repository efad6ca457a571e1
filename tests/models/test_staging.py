"""Copies to a device: buffers take turns, and graphs replace the usual pass."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvq_batch.models.cuda_graphs import WARM_UPS, Forward, GraphedForward
from kvq_batch.models.staging import PinnedTransfers, StagingBuffers, Wait


class LateCopies:
    """Copies like a GPU: what was asked for happens only when somebody waits for it."""

    def __init__(self) -> None:
        self.allocated: list[int] = []
        self.num_waits = 0

    def allocate(self, size: int) -> Tensor:
        self.allocated.append(size)
        return torch.zeros(size, dtype=torch.uint8)

    def copy(self, source: Tensor) -> tuple[Tensor, Wait]:
        target = torch.empty_like(source)

        def wait() -> None:
            self.num_waits += 1
            target.copy_(source)

        return target, wait


def clips(value: int, count: int = 2, side: int = 4) -> list[NDArray[np.uint8]]:
    return [np.full((2, side, side, 3), value + index, np.uint8) for index in range(count)]


def test_buffer_is_written_again_only_after_its_copy() -> None:
    copies = LateCopies()
    staging = StagingBuffers(copies.allocate, copies.copy)
    staged = [staging.upload(clips(10 * number)) for number in range(6)]
    # The last two copies have not ended. Every earlier one had to, before its buffer was used again.
    assert copies.num_waits == 4
    for number, batch in enumerate(staged[:4]):
        assert batch.shape == (2, 2, 4, 4, 3)
        assert (
            [int(clip.min()) for clip in batch] == [int(clip.max()) for clip in batch] == [10 * number, 10 * number + 1]
        )
    assert copies.allocated == [2 * 96, 2 * 96]


def test_buffers_grow_and_are_kept() -> None:
    copies = LateCopies()
    staging = StagingBuffers(copies.allocate, copies.copy)
    for count in (1, 1, 3, 2, 1):
        assert len(staging.upload(clips(0, count))) == count
    assert copies.allocated == [96, 96, 3 * 96, 2 * 96]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pinned_transfers_keep_order_and_values() -> None:
    transfers = PinnedTransfers(torch.device("cuda"))
    fetches = [transfers.fetch(transfers.upload(clips(10 * number)).float() + 1) for number in range(6)]
    for number, fetch in enumerate(fetches):
        assert fetch().amax((1, 2, 3, 4)).tolist() == [10 * number + 1, 10 * number + 2]


class Recorder:
    """Records passes by keeping the function, and counts replays."""

    def __init__(self, error: str = "") -> None:
        self.recorded: list[torch.Size] = []
        self.replays = 0
        self._error = error

    def __call__(self, forward: Forward, batch: Tensor) -> Forward:
        self.recorded.append(batch.shape)
        if self._error:
            raise RuntimeError(self._error)

        def replay(batch: Tensor) -> Tensor:
            self.replays += 1
            return forward(batch)

        return replay


def double(batch: Tensor) -> Tensor:
    return batch * 2


def test_usual_shape_is_recorded_after_warm_up() -> None:
    recorder = Recorder()
    graphed = GraphedForward(double, recorder)
    usual, other = torch.ones(4, 2), torch.ones(1, 2)
    for _ in range(WARM_UPS):
        assert torch.equal(graphed(usual), 2 * usual)
        assert torch.equal(graphed(other), 2 * other)
    assert not recorder.recorded
    for _ in range(3):
        assert torch.equal(graphed(usual), 2 * usual)
        assert torch.equal(graphed(other), 2 * other)
    assert recorder.recorded == [usual.shape]
    assert recorder.replays == 3


def test_pass_that_cannot_be_recorded_runs_without_a_graph(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder("operation not permitted when stream is capturing\nAdvice")
    graphed = GraphedForward(double, recorder)
    for _ in range(3 * WARM_UPS):
        assert torch.equal(graphed(torch.ones(2)), torch.full((2,), 2.0))
    assert len(recorder.recorded) == 1
    assert [record.message for record in caplog.records] == [
        "running without a CUDA graph: operation not permitted when stream is capturing"
    ]


def test_nothing_is_recorded_without_a_recorder() -> None:
    graphed: Callable[[Tensor], Tensor] = GraphedForward(double, None)
    for _ in range(3 * WARM_UPS):
        assert torch.equal(graphed(torch.ones(2)), torch.full((2,), 2.0))
