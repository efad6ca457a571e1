"""Model families of DOVER and DOVER-Mobile; they score with the weights that their authors publish.

torch is imported only where weights are read, so commands that only list models start fast.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from kvq_batch.domain.frames import FrameRequest, Sampling
from kvq_batch.domain.scorer import ModelOptions, Scorer, ScorerSpec
from kvq_batch.models.checkpoints.published_family import PublishedFamily
from kvq_batch.models.checkpoints.published_files import LoadedFiles, PublishedFile
from kvq_batch.models.checkpoints.tensors import Shape
from kvq_batch.models.dover.config import DOVER, DOVER_MOBILE, DoverConfig
from kvq_batch.models.fastvqa.config import PATCH_PX

OUTPUTS = ("technical", "aesthetic", "overall", "technical_raw", "aesthetic_raw")
NETWORK = "network"
_LICENCE = "MIT when the file was published, S-Lab 1.0 (not commercial) since 2024-08"


@dataclass(frozen=True, slots=True)
class DoverFamily(PublishedFamily):
    """One variant. `title` is its name in the paper."""

    name: str
    title: str
    config: DoverConfig

    @property
    def summary(self) -> str:
        return f"{self.title} (VQAssessment): technical and aesthetic quality, and both fused; needs weights"

    @property
    def files(self) -> tuple[PublishedFile, ...]:
        """See `PublishedFamily.files`."""
        file = PublishedFile(
            part=NETWORK,
            names=(self.config.weights_file,),
            kind="the weights of its authors",
            origin="the releases of VQAssessment/DOVER on GitHub",
            licence=_LICENCE,
            shapes=self._shapes,
            # Classifiers of DOVER-Mobile that are in the file and never used.
            unused=("technical_backbone.head.", "aesthetic_backbone.head."),
        )
        return (file,)

    def _shapes(self) -> Mapping[str, Shape]:
        from kvq_batch.models.checkpoints.networks import network_shapes
        from kvq_batch.models.dover.network import DoverNetwork

        return network_shapes(lambda: DoverNetwork(self.config))

    def spec(self, loaded: LoadedFiles) -> ScorerSpec:
        """See `PublishedFamily.spec`."""
        technical, aesthetic = frame_requests(self.config)
        return ScorerSpec(
            card=loaded.card(self.name, self.title, "LSVQ, DIVIDE-3k", _LICENCE, asdict(self.config)),
            frames=technical,
            more_frames=(aesthetic,),
            outputs=OUTPUTS,
            num_parameters=loaded.num_parameters,
        )

    def scorer(self, spec: ScorerSpec, loaded: LoadedFiles, options: ModelOptions) -> Scorer:
        """See `PublishedFamily.scorer`."""
        from kvq_batch.models.dover.scorer import DoverScorer

        return DoverScorer(spec, self.config, loaded.tensors[NETWORK], options)


def frame_requests(config: DoverConfig) -> tuple[FrameRequest, FrameRequest]:
    """Return the views of the technical and the aesthetic branch (FASTVQA_SPEC section 6).

    The technical view has fragments of native resolution in `num_clips` segments, the aesthetic view as many whole
    frames as one clip has, from equal segments of the video. Positions are fixed, as those of FAST-VQA here.
    """
    rows, columns = config.fragments
    size = (rows * PATCH_PX, columns * PATCH_PX)
    technical = FrameRequest(Sampling(config.num_clips, config.clip_frames, config.stride), size, config.fragments)
    aesthetic = FrameRequest(Sampling(config.clip_frames, 1, config.stride), size, resize="bilinear")
    return technical, aesthetic


dover = DoverFamily("dover", "DOVER", DOVER)
dover_mobile = DoverFamily("dover-mobile", "DOVER-Mobile", DOVER_MOBILE)
