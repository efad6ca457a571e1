"""Model families of FAST-VQA and FasterVQA; they score with the weights that their authors publish.

torch is imported only where weights are read, so commands that only list models start fast.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from kvq_batch.domain.frames import FrameRequest, Sampling
from kvq_batch.domain.scorer import ModelOptions, Scorer, ScorerSpec
from kvq_batch.models.checkpoints.published_family import PublishedFamily
from kvq_batch.models.checkpoints.published_files import LoadedFiles, PublishedFile
from kvq_batch.models.checkpoints.tensors import Shape
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
NETWORK = "network"


@dataclass(frozen=True, slots=True)
class FastVqaFamily(PublishedFamily):
    """One variant. `title` is its name in the paper."""

    name: str
    title: str
    config: FastVqaConfig

    @property
    def summary(self) -> str:
        return f"{self.title} (VQAssessment): quality from fragments of native resolution; needs weights"

    @property
    def files(self) -> tuple[PublishedFile, ...]:
        """See `PublishedFamily.files`."""
        file = PublishedFile(
            part=NETWORK,
            names=(self.config.weights_file,),
            kind="the weights of its authors",
            origin="the releases of VQAssessment/FAST-VQA-and-FasterVQA on GitHub",
            licence="code under MIT, no licence of their own",
            shapes=self._shapes,
            containers=("state_dict",),
        )
        return (file,)

    def _shapes(self) -> Mapping[str, Shape]:
        from kvq_batch.models.checkpoints.networks import network_shapes
        from kvq_batch.models.fastvqa.network import FastVqaNetwork

        return network_shapes(lambda: FastVqaNetwork(self.config.network))

    def spec(self, loaded: LoadedFiles) -> ScorerSpec:
        """See `PublishedFamily.spec`."""
        # The whole configuration is part of the identity: variants share weights and differ in their frames.
        licence = "none given for the weights; code MIT"
        card = loaded.card(self.name, self.title, "LSVQ", licence, asdict(self.config))
        return ScorerSpec(
            card=card, frames=frame_request(self.config), outputs=OUTPUTS, num_parameters=loaded.num_parameters
        )

    def scorer(self, spec: ScorerSpec, loaded: LoadedFiles, options: ModelOptions) -> Scorer:
        """See `PublishedFamily.scorer`."""
        from kvq_batch.models.fastvqa.scorer import FastVqaScorer

        return FastVqaScorer(spec, self.config, loaded.tensors[NETWORK], options)


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
