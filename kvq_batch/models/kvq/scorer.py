"""Scorer of KVQ: uint8 clips in, predictions out.

A clip that is not finite in fp16 is scored again in fp32. Other values of the network are returned unchecked, including
NaN: the engine rejects those, because it knows the video.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvq_batch.domain.scorer import STD, ModelOptions, Prediction, ScorerSpec
from kvq_batch.models.cuda_graphs import Forward, GraphedForward, record_graph
from kvq_batch.models.kvq.checkpoint import Checkpoint
from kvq_batch.models.kvq.network import KvqNetwork, build_network
from kvq_batch.models.kvq.pixels import normalise
from kvq_batch.models.staging import PinnedTransfers, Transfers
from kvq_batch.models.torch_device import freeing_memory, set_up_device

_LOG = logging.getLogger(__name__)

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class KvqScorer:
    """A `Scorer` around a KVQ network on a CPU, where clips are computed one by one: batches are not faster.

    Raises:
        SpecError: the device is a GPU, and the machine has none.
    """

    def __init__(self, spec: ScorerSpec, checkpoint: Checkpoint, options: ModelOptions) -> None:
        self._spec = spec
        self._device = set_up_device(options)
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
            OutOfMemoryError: a clip does not fit into memory.
        """
        found = []
        for clip in clips:
            with freeing_memory(1, clip.shape):
                found.append(self._with_std(self._checked(clip, self._predict(self._network, clip))))
        return found

    def _predict(self, network: KvqNetwork, clip: NDArray[np.uint8]) -> Prediction:
        with torch.inference_mode():
            # Copied, because the array may be read-only.
            return predictions(network_maps(network, torch.tensor(clip, device=self._device)[None]).cpu())[0]

    def _checked(self, clip: NDArray[np.uint8], prediction: Prediction) -> Prediction:
        """Return the prediction, or that of fp32 if numbers of the clip were too large for fp16 (above 65504)."""
        # One value of a map that is not finite makes the mean not finite.
        if self._precision != "fp16" or np.isfinite(prediction.raw_score):
            return prediction
        if self._exact is None:
            self._exact = build_network(self._checkpoint.config, self._tensors(), is_frozen=True)
        _LOG.info("a clip is not finite in fp16; scoring it in fp32")
        return self._predict(self._exact, clip)

    def _with_std(self, prediction: Prediction) -> Prediction:
        """Return the prediction with the expected deviation of the label, if the card has one for its score."""
        scores, deviations = self._spec.card.spread
        if not scores:
            return prediction
        return replace(prediction, outputs={STD: float(np.interp(prediction.raw_score, scores, deviations))})

    def _tensors(self) -> dict[str, Tensor]:
        # Copied, because the arrays may be read-only or views of a file.
        return {name: torch.tensor(array, device=self._device) for name, array in self._checkpoint.tensors.items()}


class PipelinedKvqScorer(KvqScorer):
    """A `PipelinedScorer` for a GPU: whole batches, copied while others are computed, the usual shape by a graph.

    `transfers` and `record` are what copies and records, those of CUDA by default.
    """

    def __init__(
        self,
        spec: ScorerSpec,
        checkpoint: Checkpoint,
        options: ModelOptions,
        transfers: Transfers | None = None,
        record: Callable[[Forward, Tensor], Forward] | None = record_graph,
    ) -> None:
        super().__init__(spec, checkpoint, options)
        self._transfers = transfers or PinnedTransfers(self._device)
        self._forward = GraphedForward(lambda batch: network_maps(self._network, batch), record)

    def score(self, clips: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        """See `KvqScorer.score`: here a whole batch must fit into the memory of the GPU."""
        return self.start(clips)()

    def start(self, clips: Sequence[NDArray[np.uint8]]) -> Callable[[], list[Prediction]]:
        """See `PipelinedScorer.start`. Raises as `score`."""
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, clip in enumerate(clips):
            by_shape.setdefault(clip.shape, []).append(index)
        fetches = []
        for shape, indices in by_shape.items():
            with freeing_memory(len(indices), shape), torch.inference_mode():
                maps = self._forward(self._transfers.upload([clips[index] for index in indices]))
                fetches.append(self._transfers.fetch(maps))

        def finish() -> list[Prediction]:
            found: dict[int, Prediction] = {}
            for (shape, indices), fetch in zip(by_shape.items(), fetches, strict=True):
                with freeing_memory(1, shape):
                    for index, prediction in zip(indices, predictions(fetch()), strict=True):
                        found[index] = self._with_std(self._checked(clips[index], prediction))
            return [found[index] for index in range(len(clips))]

        return finish


def network_maps(network: KvqNetwork, clips: Tensor) -> Tensor:
    """Return texture and saliency, float32 [2, B, D, H, W], of uint8 clips [B, T, H, W, 3]."""
    maps = network(normalise(clips))
    return torch.stack([maps.texture, maps.saliency])


def predictions(maps: Tensor) -> list[Prediction]:
    """Return the predictions of a batch from its texture and saliency, float32 [2, B, D, H, W] in host memory."""
    texture, saliency = maps
    weighted = texture.double() * saliency.double()
    scores, slots = weighted.flatten(1).mean(1), weighted.mean((2, 3)).float().numpy()
    return [
        Prediction(float(score), texture=texture[i].numpy(), saliency=saliency[i].numpy(), slot_scores=slots[i])
        for i, score in enumerate(scores)
    ]
