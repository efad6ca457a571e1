"""KVQ as the engine sees it: uint8 clips in, predictions out.

Owns the device, the precision and the normalisation. It passes on what the network gives, NaN included: refusing a
value is the engine's, which knows the video.
"""

import traceback
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from kvq_batch.domain.errors import OutOfMemoryError, SpecError
from kvq_batch.domain.scorer import ModelOptions, Prediction, ScorerSpec
from kvq_batch.models.host_memory import keep_freed_memory
from kvq_batch.models.kvq.checkpoint import Checkpoint
from kvq_batch.models.kvq.network import build_network
from kvq_batch.models.kvq.pixels import normalise

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class KvqScorer:
    """A built KVQ network; implements `kvq_batch.domain.scorer.Scorer`.

    Raises:
        SpecError: a GPU is asked for and there is none.
    """

    def __init__(self, spec: ScorerSpec, checkpoint: Checkpoint, options: ModelOptions) -> None:
        if options.device == "cuda" and not torch.cuda.is_available():
            raise SpecError(f"model {options.name!r} is to run on cuda, and torch sees no GPU here; set device = 'cpu'")
        if options.num_threads is not None:
            torch.set_num_threads(options.num_threads)
        if options.device == "cpu":
            keep_freed_memory()
        self._spec = spec
        self._device = torch.device(options.device)
        # On a CPU the network takes clips one by one: all of them beside each other as float32 would only be memory.
        self._is_batched = options.device == "cuda"
        # Copied: the arrays may be views of a file's pages, or read-only.
        tensors = {name: torch.tensor(array, device=self._device) for name, array in checkpoint.tensors.items()}
        self._network = build_network(checkpoint.config, tensors, _DTYPES[options.precision])

    @property
    def spec(self) -> ScorerSpec:
        return self._spec

    def score(self, clips: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        """One prediction per clip, in order; clips uint8 RGB [T, H, W, 3], of one shape or of several.

        Raises:
            SpecError: frames of a size that the network cannot run on.
            OutOfMemoryError: the GPU has no room for that many.
        """
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for place, clip in enumerate(clips):
            by_shape.setdefault(clip.shape, []).append(place)
        found: dict[int, Prediction] = {}
        for places in by_shape.values():
            found.update(zip(places, self._score_shape([clips[place] for place in places]), strict=True))
        return [found[place] for place in range(len(clips))]

    def _score_shape(self, clips: list[NDArray[np.uint8]]) -> list[Prediction]:
        batches = [clips] if self._is_batched else [[clip] for clip in clips]
        try:
            return [prediction for batch in batches for prediction in self._score_batch(batch)]
        except torch.OutOfMemoryError as error:
            # The frames of the traceback still hold what the network had made so far.
            traceback.clear_frames(error.__traceback__)
            torch.cuda.empty_cache()
            first_line = next(iter(str(error).splitlines()), "")
            shape = "x".join(map(str, clips[0].shape))
            raise OutOfMemoryError(f"{len(clips)} clip(s) of {shape} do not fit: {first_line}") from error

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
