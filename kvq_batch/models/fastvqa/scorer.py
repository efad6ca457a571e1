"""Scorer of FAST-VQA and FasterVQA: uint8 clips of spliced frames in, predictions out."""

import torch
from torch import Tensor

from kvq_batch.domain.scorer import ModelOptions, Prediction, ScorerSpec
from kvq_batch.models.checkpoints.networks import build_network
from kvq_batch.models.checkpoints.tensors import Tensors
from kvq_batch.models.fastvqa.config import FastVqaConfig, sigmoid
from kvq_batch.models.fastvqa.network import FastVqaNetwork
from kvq_batch.models.kvq.pixels import normalise
from kvq_batch.models.torch_device import ClipScorer


class FastVqaScorer(ClipScorer):
    """A `Scorer` around a network on a device.

    The raw score is the mean of the local quality over clips and cells; its zero and unit are those of the training.
    The output `quality` is its sigmoid with the constants of the variant, 0 to 1.
    """

    def __init__(self, spec: ScorerSpec, config: FastVqaConfig, tensors: Tensors, options: ModelOptions) -> None:
        super().__init__(spec, options)
        self._config = config
        self._network = build_network(lambda: FastVqaNetwork(config.network), tensors, self._device)

    def score_clip(self, *arrays: Tensor) -> Prediction:
        """Return the prediction of a video, uint8 RGB [T, H, W, 3]: all its clips, one after the other."""
        (frames,) = arrays
        clips = torch.unflatten(frames, 0, (self._config.num_clips, -1))
        # On a CPU clips are computed one by one: a batch of them is not faster and takes more memory.
        batches = [clips] if self._device.type == "cuda" else list(torch.split(clips, 1))
        quality = torch.cat([self._network(normalise(batch)) for batch in batches])
        score = float(quality.double().mean())
        return Prediction(score, {"quality": sigmoid((score - self._config.mean) / self._config.std)})
