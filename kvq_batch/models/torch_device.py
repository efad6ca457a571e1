"""The device that a torch model computes on: its setup in a worker, memory errors, and scorers clip by clip."""

import logging
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from kvq_batch.domain.errors import OutOfMemoryError, SpecError
from kvq_batch.domain.scorer import Clip, ModelOptions, Prediction, ScorerSpec
from kvq_batch.models.device_errors import first_line, is_out_of_memory
from kvq_batch.models.host_memory import keep_freed_memory

_LOG = logging.getLogger(__name__)

SLOW_BF16 = (
    "this processor has no instructions for bf16, so products in bf16 take about ten times as long as in fp32: set "
    'precision = "fp32"'
)


def is_bf16_slow(device: str) -> bool:
    """Return whether torch emulates bf16 on this device, as oneDNN does on a CPU without AVX-512."""
    # A product of 6272 x 96 and 96 x 384 on an AMD EPYC with AVX2 took 100 ms in bf16, and 10 ms in fp32.
    if device != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        # Without oneDNN, torch has no such question.
        return False
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def set_up_device(options: ModelOptions) -> torch.device:
    """Return the device of a model, after setting up this process for it: threads and memory.

    Raises:
        SpecError: the device is a GPU, and the machine has none.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SpecError(f"Model {options.name!r}: device is 'cuda', but torch finds no GPU. Set device = 'cpu'.")
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    if options.device == "cpu":
        keep_freed_memory()
    if options.precision == "bf16" and is_bf16_slow(options.device):
        _LOG.warning("model %r: %s", options.name, SLOW_BF16)
    return torch.device(options.device)


@contextmanager
def freeing_memory(num_clips: int, shape: tuple[int, ...]) -> Iterator[None]:
    """Free the memory of a batch of clips that does not fit into the GPU.

    Raises:
        OutOfMemoryError: `num_clips` clips of `shape` do not fit.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error, num_clips):
            raise
        # The frames of the traceback still reference the tensors of the failed batch.
        traceback.clear_frames(error.__traceback__)
        torch.cuda.empty_cache()
        size = "x".join(map(str, shape))
        raise OutOfMemoryError(f"{num_clips} clip(s) of {size} do not fit: {first_line(error)}") from error


class ClipScorer(ABC):
    """A `Scorer` that computes clips one by one, so a score does not depend on its batch.

    Raises:
        SpecError: the device is a GPU, and the machine has none.
    """

    def __init__(self, spec: ScorerSpec, options: ModelOptions) -> None:
        self._spec = spec
        self._device = set_up_device(options)

    @property
    def spec(self) -> ScorerSpec:
        return self._spec

    def score(self, clips: Sequence[Clip]) -> list[Prediction]:
        """Return one prediction per clip, in order.

        Raises:
            ScoreError: as `score_clip`.
            OutOfMemoryError: a clip does not fit into the memory of the GPU.
        """
        found = []
        for clip in clips:
            arrays = clip if isinstance(clip, tuple) else (clip,)
            with freeing_memory(1, arrays[0].shape), torch.inference_mode():
                found.append(self.score_clip(*map(self._to_device, arrays)))
        return found

    @abstractmethod
    def score_clip(self, *arrays: Tensor) -> Prediction:
        """Return the prediction of one clip: the arrays of its requests, in order, on the device.

        Raises:
            ScoreError: the clip cannot be scored.
        """

    def _to_device(self, array: NDArray[Any]) -> Tensor:
        # A copy: torch warns about tensors around read-only arrays. It takes 2 ms per MB on a busy machine.
        return torch.tensor(array, device=self._device)
