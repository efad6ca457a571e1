"""Scorer of KVQ: uint8 clips in, predictions out.

A clip that is not finite in fp16 is scored again in fp32. Other values of the network are returned unchecked, including
NaN: the engine rejects those, because it knows the video.
"""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvq_batch.domain.scorer import ModelOptions, Prediction, ScorerSpec
from kvq_batch.models.kvq.checkpoint import Checkpoint
from kvq_batch.models.kvq.network import KvqNetwork, build_network
from kvq_batch.models.kvq.pixels import normalise
from kvq_batch.models.torch_device import freeing_memory, set_up_device

_LOG = logging.getLogger(__name__)

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class KvqScorer:
    """A `Scorer` around a KVQ network on a device.

    Raises:
        SpecError: the device is a GPU, and the machine has none.
    """

    def __init__(self, spec: ScorerSpec, checkpoint: Checkpoint, options: ModelOptions) -> None:
        self._spec = spec
        self._device = set_up_device(options)
        # On a CPU the network computes clips one by one, so a float32 batch would only take memory.
        self._is_batched = options.device == "cuda"
        self._precision = options.precision
        self._checkpoint = checkpoint
        self._network = build_network(checkpoint.config, self._tensors(), _DTYPES[options.precision], is_frozen=True)
        self._exact: KvqNetwork | None = None

    @property
    def spec(self) -> ScorerSpec:
        return self._spec

    def score(self, clips: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        """Return one prediction per clip, in order; clips are uint8 RGB [T, H, W, 3] of any shapes.

        Raises:
            SpecError: frames of a size that the network cannot run on.
            OutOfMemoryError: the batch does not fit into the memory of the GPU.
        """
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, clip in enumerate(clips):
            by_shape.setdefault(clip.shape, []).append(index)
        found: dict[int, Prediction] = {}
        for indices in by_shape.values():
            found.update(zip(indices, self._score_shape([clips[index] for index in indices]), strict=True))
        return [found[index] for index in range(len(clips))]

    def _score_shape(self, clips: list[NDArray[np.uint8]]) -> list[Prediction]:
        batches = [clips] if self._is_batched else [[clip] for clip in clips]
        with freeing_memory(len(clips), clips[0].shape):
            return [prediction for batch in batches for prediction in self._score_batch(batch)]

    def _score_batch(self, clips: list[NDArray[np.uint8]]) -> list[Prediction]:
        found = self._predict(self._network, clips)
        if self._precision != "fp16":
            return found
        return [self._in_fp32(clip, prediction) for clip, prediction in zip(clips, found, strict=True)]

    @torch.inference_mode()
    def _predict(self, network: KvqNetwork, clips: list[NDArray[np.uint8]]) -> list[Prediction]:
        maps = network(normalise(torch.from_numpy(np.stack(clips)).to(self._device)))
        return predictions(torch.stack([maps.texture, maps.saliency]).cpu())

    def _in_fp32(self, clip: NDArray[np.uint8], prediction: Prediction) -> Prediction:
        """Return the prediction, or that of fp32 if numbers of the clip were too large for fp16 (above 65504)."""
        # One value of a map that is not finite makes the mean not finite.
        if np.isfinite(prediction.raw_score):
            return prediction
        if self._exact is None:
            self._exact = build_network(self._checkpoint.config, self._tensors(), is_frozen=True)
        _LOG.info("a clip is not finite in fp16; scoring it in fp32")
        return self._predict(self._exact, [clip])[0]

    def _tensors(self) -> dict[str, Tensor]:
        # Copied, because the arrays may be read-only or views of a file.
        return {name: torch.tensor(array, device=self._device) for name, array in self._checkpoint.tensors.items()}


def predictions(maps: Tensor) -> list[Prediction]:
    """Return the predictions of a batch from its texture and saliency, float32 [2, B, D, H, W] in host memory."""
    texture, saliency = maps
    weighted = texture.double() * saliency.double()
    scores, slots = weighted.flatten(1).mean(1), weighted.mean((2, 3)).float().numpy()
    return [
        Prediction(float(score), texture=texture[i].numpy(), saliency=saliency[i].numpy(), slot_scores=slots[i])
        for i, score in enumerate(scores)
    ]
