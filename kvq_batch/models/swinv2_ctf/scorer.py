"""Scorer of the coarse-to-fine network: uint8 clips in, predictions out."""

import traceback
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from kvq_batch.domain.errors import OutOfMemoryError, SpecError
from kvq_batch.domain.scorer import ModelOptions, Prediction, ScorerSpec
from kvq_batch.models.checkpoints.networks import build_network
from kvq_batch.models.device_errors import first_line, is_out_of_memory
from kvq_batch.models.host_memory import keep_freed_memory
from kvq_batch.models.swinv2_ctf.checkpoint import CtfCheckpoint
from kvq_batch.models.swinv2_ctf.network import RAW_SCALE, CtfNetwork, normalise_pictures


class CtfScorer:
    """A `Scorer` around a network on a device.

    The raw score is 100 times the output of the network, which is trained on labels mapped to 0..1: for VMAF, the VMAF
    that it predicts. It is not clipped.

    Raises:
        SpecError: the device is a GPU, and the machine has none.
    """

    def __init__(self, spec: ScorerSpec, checkpoint: CtfCheckpoint, options: ModelOptions) -> None:
        if options.device == "cuda" and not torch.cuda.is_available():
            raise SpecError(f"Model {options.name!r}: device is 'cuda', but torch finds no GPU. Set device = 'cpu'.")
        if options.num_threads is not None:
            torch.set_num_threads(options.num_threads)
        if options.device == "cpu":
            keep_freed_memory()
        self._spec = spec
        self._device = torch.device(options.device)
        self._network = build_network(lambda: CtfNetwork(checkpoint.config), checkpoint.tensors, self._device)

    @property
    def spec(self) -> ScorerSpec:
        return self._spec

    def score(self, clips: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        """Return one prediction per clip, in order; each is uint8 RGB [T, H, W, 3] as the request describes.

        Clips are computed one by one, so a score does not depend on its batch.

        Raises:
            OutOfMemoryError: a clip does not fit into the memory of the GPU.
        """
        return [Prediction(self._score_clip(clip)) for clip in clips]

    def _score_clip(self, clip: NDArray[np.uint8]) -> float:
        try:
            return self._run(clip)
        except RuntimeError as error:
            if not is_out_of_memory(error, 1):
                raise
            # The frames of the traceback still reference the tensors of the failed clip.
            traceback.clear_frames(error.__traceback__)
            torch.cuda.empty_cache()
            shape = "x".join(map(str, clip.shape))
            raise OutOfMemoryError(f"1 clip of {shape} does not fit: {first_line(error)}") from error

    @torch.inference_mode()
    def _run(self, clip: NDArray[np.uint8]) -> float:
        inputs = normalise_pictures(torch.from_numpy(clip)[None].to(self._device))
        return RAW_SCALE * float(self._network(inputs).scores.double())
