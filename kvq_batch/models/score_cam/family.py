"""Model families of the saliency systems: SALIENCY, VSFACNN_SALIENCY and Algorithm 3 (STUDY_SPEC section 4).

They need the VGG-16 of torchvision, the last two also its ResNet-50. The published code reads each frame from a JPEG
file of quality 100; that step is left out here.
"""

from dataclasses import dataclass

from kvq_batch.domain.frames import FrameRequest
from kvq_batch.domain.scorer import ModelOptions, Scorer, ScorerSpec
from kvq_batch.features.chunks import SecondSampling
from kvq_batch.models.backbones.imagenet import RESNET50_FILE, VGG16_FILE
from kvq_batch.models.checkpoints.published_family import PublishedFamily
from kvq_batch.models.checkpoints.published_files import LoadedFiles, PublishedFile
from kvq_batch.models.score_cam.config import NUM_SALIENCY, SIDE_PX
from kvq_batch.models.vsfa.config import VsfaConfig

_SIZE = (SIDE_PX, SIDE_PX)
_TRAINING, _LICENCE = "ImageNet", "BSD-3-Clause"


@dataclass(frozen=True, slots=True)
class SaliencyFamily(PublishedFamily):
    """SALIENCY: the last frame of each second."""

    name: str = "saliency"
    summary: str = "Score-CAM saliency (VGG-16) of one frame a second: maps and 224 features; no score; needs weights"
    files: tuple[PublishedFile, ...] = (VGG16_FILE,)

    def spec(self, loaded: LoadedFiles) -> ScorerSpec:
        """See `PublishedFamily.spec`."""
        return ScorerSpec(
            card=loaded.card(self.name, "Score-CAM saliency of VGG-16", _TRAINING, _LICENCE, {}),
            frames=FrameRequest(SecondSampling(), _SIZE, resize="lanczos"),
            maps=("saliency",),
            num_features=NUM_SALIENCY,
            num_parameters=loaded.num_parameters,
            has_score=False,
        )

    def scorer(self, spec: ScorerSpec, loaded: LoadedFiles, options: ModelOptions) -> Scorer:
        """See `PublishedFamily.scorer`."""
        from kvq_batch.models.score_cam.scorer import SaliencyScorer

        return SaliencyScorer(spec, loaded.tensors, options)


@dataclass(frozen=True, slots=True)
class SaliencySumFamily(PublishedFamily):
    """VSFACNN_SALIENCY: the first frame of each second, with its saliency added to its pixels."""

    name: str = "vsfa-cnn-saliency"
    summary: str = "VSFA_CNN on one frame a second plus its saliency: 4096 features; no score; needs weights"
    files: tuple[PublishedFile, ...] = (VGG16_FILE, RESNET50_FILE)

    def spec(self, loaded: LoadedFiles) -> ScorerSpec:
        """See `PublishedFamily.spec`."""
        return ScorerSpec(
            card=loaded.card(self.name, "ResNet-50 features of frames plus saliency", _TRAINING, _LICENCE, {}),
            frames=FrameRequest(SecondSampling(is_last=False), _SIZE, resize="lanczos"),
            num_features=VsfaConfig().num_features,
            num_parameters=loaded.num_parameters,
            has_score=False,
        )

    def scorer(self, spec: ScorerSpec, loaded: LoadedFiles, options: ModelOptions) -> Scorer:
        """See `PublishedFamily.scorer`."""
        from kvq_batch.models.score_cam.scorer import SaliencySumScorer

        return SaliencySumScorer(spec, loaded.tensors, options)


@dataclass(frozen=True, slots=True)
class SimilarityFamily(PublishedFamily):
    """Algorithm 3: cosine of the deep features of a frame with its saliency; the slots are frames."""

    name: str = "saliency-similarity"
    summary: str = "Algorithm 3: cosine of deep features and saliency, one frame a second; no score; needs weights"
    files: tuple[PublishedFile, ...] = (VGG16_FILE, RESNET50_FILE)

    def spec(self, loaded: LoadedFiles) -> ScorerSpec:
        """See `PublishedFamily.spec`."""
        return ScorerSpec(
            card=loaded.card(self.name, "similarity of deep features and saliency", _TRAINING, _LICENCE, {}),
            frames=FrameRequest(SecondSampling(), _SIZE, resize="bilinear-antialias"),
            outputs=("similarity",),
            num_parameters=loaded.num_parameters,
            has_score=False,
        )

    def scorer(self, spec: ScorerSpec, loaded: LoadedFiles, options: ModelOptions) -> Scorer:
        """See `PublishedFamily.scorer`."""
        from kvq_batch.models.score_cam.scorer import SimilarityScorer

        return SimilarityScorer(spec, loaded.tensors, options)


saliency = SaliencyFamily()
vsfa_cnn_saliency = SaliencySumFamily()
similarity = SimilarityFamily()
