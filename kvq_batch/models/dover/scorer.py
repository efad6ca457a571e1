"""Scorer of DOVER: clips of fragments and of whole frames in, the quality of both branches out."""

import torch
from torch import Tensor

from kvq_batch.domain.scorer import ModelOptions, Prediction, ScorerSpec
from kvq_batch.models.checkpoints.networks import build_network
from kvq_batch.models.checkpoints.tensors import Tensors
from kvq_batch.models.dover.config import DoverConfig, fuse
from kvq_batch.models.dover.network import DoverNetwork
from kvq_batch.models.kvq.pixels import normalise
from kvq_batch.models.torch_device import ClipScorer


class DoverScorer(ClipScorer):
    """A `Scorer` around a network on a device. The raw score is the fused quality in 0..1."""

    def __init__(self, spec: ScorerSpec, config: DoverConfig, tensors: Tensors, options: ModelOptions) -> None:
        super().__init__(spec, options)
        self._num_clips = config.num_clips
        self._network = build_network(lambda: DoverNetwork(config), tensors, self._device)

    def score_clip(self, *arrays: Tensor) -> Prediction:
        """Return the prediction of a video: spliced frames uint8 [T, H, W, 3], whole frames uint8 [t, h, w, 3]."""
        fragments, frames = arrays
        clips = torch.unflatten(fragments, 0, (self._num_clips, -1))
        # On a CPU clips are computed one by one: a batch of them is not faster and takes more memory.
        batches = [clips] if self._device.type == "cuda" else list(torch.split(clips, 1))
        cells = torch.cat([self._network.technical(normalise(batch)) for batch in batches])
        technical = float(cells.double().mean())
        aesthetic = float(self._network.aesthetic(normalise(frames[None])).double().mean())
        of_technical, of_aesthetic, overall = fuse(technical, aesthetic)
        return Prediction(
            overall,
            {
                "technical": of_technical,
                "aesthetic": of_aesthetic,
                "overall": overall,
                "technical_raw": technical,
                "aesthetic_raw": aesthetic,
            },
        )
