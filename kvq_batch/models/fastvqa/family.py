"""Model families of FAST-VQA and FasterVQA; they score with the weights that their authors publish.

torch is imported only where weights are read, so commands that only list models start fast.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.frames import FrameRequest, Sampling
from kvq_batch.domain.scorer import ModelCard, ModelOptions, Scorer, ScorerSpec
from kvq_batch.models.checkpoints.tensors import Tensors, check_tensors, digest
from kvq_batch.models.fastvqa.config import (
    FAST_VQA,
    FAST_VQA_M,
    FASTERVQA,
    FASTERVQA_MS,
    FASTERVQA_MT,
    PATCH_PX,
    FastVqaConfig,
)

OUTPUTS = ("quality",)
# Index buffers, which are computed, and counters of a profiler.
_DERIVED = (".relative_position_index",)


@dataclass(frozen=True, slots=True)
class FastVqaFamily:
    """One variant. `title` is its name in the paper."""

    name: str
    title: str
    config: FastVqaConfig

    @property
    def summary(self) -> str:
        return f"{self.title} (VQAssessment): quality from fragments of native resolution; needs weights"

    def describe(self, options: ModelOptions) -> ScorerSpec:
        """Return the declaration of the scorer, after reading and checking its whole weights.

        Raises:
            SpecError: no weights.
            CheckpointError: weights that are missing, damaged, unsafe or of another network.
        """
        return self._spec(self._tensors(options))

    def build(self, options: ModelOptions) -> Scorer:
        """Return the scorer, loaded on its device.

        Raises:
            SpecError: as `describe`, or the machine has no GPU.
        """
        from kvq_batch.models.fastvqa.scorer import FastVqaScorer

        tensors = self._tensors(options)
        return FastVqaScorer(self._spec(tensors), self.config, tensors, options)

    def _tensors(self, options: ModelOptions) -> Tensors:
        if options.weights in (None, "untrained"):
            raise SpecError(
                f"Model {self.name!r} needs {self.config.weights_file}, the file of torch.save that its authors attach "
                "to the releases of VQAssessment/FAST-VQA-and-FasterVQA on GitHub (code under MIT; the weights have no "
                'licence of their own). Download it and set --weights PATH, or weights = "PATH" in the job file.'
            )
        import torch

        from kvq_batch.models.checkpoints.state_dict import read_arrays
        from kvq_batch.models.fastvqa.network import FastVqaNetwork

        path = Path(str(options.weights))
        found = {key: array for key, array in read_arrays(path, ("state_dict",)).items() if not key.endswith(_DERIVED)}
        with torch.device("meta"):
            network = FastVqaNetwork(self.config.network)
        shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
        return check_tensors(found, shapes, str(path))

    def _spec(self, tensors: Tensors) -> ScorerSpec:
        # The whole configuration is part of the identity: variants share weights and differ in their frames.
        header = json.dumps([self.name, asdict(self.config)], sort_keys=True)
        card = ModelCard(
            name=self.name,
            version="unverified",
            digest=hashlib.sha256(f"{header}\n{digest(tensors, '')}".encode()).hexdigest(),
            origin="trained",
            summary=f"{self.title}; its file was not compared with the published {self.config.weights_file}",
            training_data="LSVQ",
            licence="none given for the weights; code MIT",
        )
        return ScorerSpec(card=card, frames=frame_request(self.config), outputs=OUTPUTS)


def frame_request(config: FastVqaConfig) -> FrameRequest:
    """Return the frames that a variant scores: all clips of a video, one after the other.

    The positions of segments and patches are fixed, in the middle. The official code draws them at random in tests too,
    so its scores of one video differ from run to run (FASTVQA_SPEC section 1.1).
    """
    num_segments = config.num_segments or config.num_clips
    rows, columns = config.fragments
    return FrameRequest(
        Sampling(num_segments, config.num_frames // num_segments, config.stride),
        (rows * PATCH_PX, columns * PATCH_PX),
        config.fragments,
    )


fast_vqa = FastVqaFamily("fast-vqa", "FAST-VQA", FAST_VQA)
fast_vqa_m = FastVqaFamily("fast-vqa-m", "FAST-VQA-M", FAST_VQA_M)
fastervqa = FastVqaFamily("fastervqa", "FasterVQA", FASTERVQA)
fastervqa_ms = FastVqaFamily("fastervqa-ms", "FasterVQA-MS", FASTERVQA_MS)
fastervqa_mt = FastVqaFamily("fastervqa-mt", "FasterVQA-MT", FASTERVQA_MT)
