"""Scorer of FAST-VQA and FasterVQA: uint8 clips of spliced frames in, predictions out."""

import traceback
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from kvq_batch.domain.errors import OutOfMemoryError, SpecError
from kvq_batch.domain.scorer import ModelOptions, Prediction, ScorerSpec
from kvq_batch.models.checkpoints.tensors import Tensors
from kvq_batch.models.device_errors import first_line, is_out_of_memory
from kvq_batch.models.fastvqa.config import FastVqaConfig, sigmoid
from kvq_batch.models.fastvqa.network import FastVqaNetwork
from kvq_batch.models.host_memory import keep_freed_memory
from kvq_batch.models.kvq.pixels import normalise


class FastVqaScorer:
    """A `Scorer` around a network on a device.

    The raw score is the mean of the local quality over clips and cells; its zero and unit are those of the training.
    The output `quality` is its sigmoid with the constants of the variant, 0 to 1.

    Raises:
        SpecError: the device is a GPU, and the machine has none.
    """

    def __init__(self, spec: ScorerSpec, config: FastVqaConfig, tensors: Tensors, options: ModelOptions) -> None:
        if options.device == "cuda" and not torch.cuda.is_available():
            raise SpecError(f"Model {options.name!r}: device is 'cuda', but torch finds no GPU. Set device = 'cpu'.")
        if options.num_threads is not None:
            torch.set_num_threads(options.num_threads)
        if options.device == "cpu":
            keep_freed_memory()
        self._spec = spec
        self._config = config
        self._device = torch.device(options.device)
        with torch.device("meta"):
            network = FastVqaNetwork(config.network)
        # Copied, because the arrays may be views of a file.
        state = {name: torch.tensor(array, device=self._device) for name, array in tensors.items()}
        network.load_state_dict(state, strict=True, assign=True)
        self._network = network.eval()

    @property
    def spec(self) -> ScorerSpec:
        return self._spec

    def score(self, clips: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        """Return one prediction per video, in order; each is uint8 RGB [T, H, W, 3] as the request describes.

        Videos are computed one by one, so a score does not depend on its batch.

        Raises:
            OutOfMemoryError: a video does not fit into the memory of the GPU.
        """
        return [self._score_video(clip) for clip in clips]

    def _score_video(self, frames: NDArray[np.uint8]) -> Prediction:
        try:
            score = self._run(frames)
        except RuntimeError as error:
            if not is_out_of_memory(error, 1):
                raise
            # The frames of the traceback still reference the tensors of the failed clip.
            traceback.clear_frames(error.__traceback__)
            torch.cuda.empty_cache()
            shape = "x".join(map(str, frames.shape))
            raise OutOfMemoryError(f"1 clip of {shape} does not fit: {first_line(error)}") from error
        return Prediction(score, {"quality": sigmoid((score - self._config.mean) / self._config.std)})

    @torch.inference_mode()
    def _run(self, frames: NDArray[np.uint8]) -> float:
        clips = torch.unflatten(torch.from_numpy(frames).to(self._device), 0, (self._config.num_clips, -1))
        # On a CPU clips are computed one by one: a batch of them is not faster and takes more memory.
        batches = [clips] if self._device.type == "cuda" else list(torch.split(clips, 1))
        quality = torch.cat([self._network(normalise(batch)) for batch in batches])
        return float(quality.double().mean())
