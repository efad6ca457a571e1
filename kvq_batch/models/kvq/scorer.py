"""Scorer of KVQ: uint8 clips in, predictions out.

It returns the values of the network unchecked, including NaN. The engine rejects those, because it knows the video.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from kvq_batch.domain.scorer import ModelOptions, Prediction, ScorerSpec
from kvq_batch.models.kvq.checkpoint import Checkpoint
from kvq_batch.models.kvq.network import build_network
from kvq_batch.models.kvq.pixels import normalise
from kvq_batch.models.torch_device import freeing_memory, set_up_device

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
        # Copied, because the arrays may be read-only or views of a file.
        tensors = {name: torch.tensor(array, device=self._device) for name, array in checkpoint.tensors.items()}
        self._network = build_network(checkpoint.config, tensors, _DTYPES[options.precision], is_frozen=True)

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

    @torch.inference_mode()
    def _score_batch(self, clips: list[NDArray[np.uint8]]) -> list[Prediction]:
        maps = self._network(normalise(torch.from_numpy(np.stack(clips)).to(self._device)))
        texture, saliency = maps.texture.cpu().numpy(), maps.saliency.cpu().numpy()
        scores = maps.scores().cpu().numpy()
        slots = (maps.texture.double() * maps.saliency.double()).mean((2, 3)).float().cpu().numpy()
        return [
            Prediction(float(score), texture=texture[i], saliency=saliency[i], slot_scores=slots[i])
            for i, score in enumerate(scores)
        ]
