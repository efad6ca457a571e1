"""Model families of RAPIQUE's features: `nss` without a network, and `rapique` with the features of ResNet-50.

The features are those of the saliency study (STUDY_SPEC section 2): planes at native size, two frames of each second
for statistics of pictures, eight consecutive ones for statistics in time. Neither has a score; `kvq-batch study` trains
one.
"""

from dataclasses import dataclass

from kvq_batch.domain.frames import Extractor, FrameRequest
from kvq_batch.domain.scorer import ModelOptions, Scorer, ScorerSpec
from kvq_batch.features.chunks import CentreSampling, ChunkSampling
from kvq_batch.models.backbones.imagenet import RESNET50, RESNET50_FILE
from kvq_batch.models.checkpoints.published_family import PublishedFamily
from kvq_batch.models.checkpoints.published_files import LoadedFiles, PublishedFile
from kvq_batch.models.measured import MeasuredFamily
from kvq_batch.models.rapique.config import NUM_CNN, NUM_NSS, SIDE_PX

_NSS_FRAMES = FrameRequest(
    ChunkSampling(),
    None,
    planes="yuv420p",
    extractor=Extractor("nss", 1, "kvq_batch.features.extractions:NssExtraction"),
)
_CNN_FRAMES = FrameRequest(
    CentreSampling(),
    None,
    planes="yuv420p",
    extractor=Extractor("centre-frames", 1, "kvq_batch.features.extractions:CentreFrames", (("side", SIDE_PX),)),
)

nss = MeasuredFamily(
    name="nss",
    summary="1836 NSS features of RAPIQUE (IEEE OJSP 2021) of planes at native size, mean over seconds; no score",
    frames=_NSS_FRAMES,
    num_features=NUM_NSS,
    licence="Apache-2.0",
)


@dataclass(frozen=True, slots=True)
class RapiqueFamily(PublishedFamily):
    """RAPIQUE: NSS features and those of ResNet-50."""

    name: str = "rapique"
    summary: str = (
        "3884 features of RAPIQUE (IEEE OJSP 2021): those of `nss`, 2048 of ResNet-50; no score; needs weights"
    )
    files: tuple[PublishedFile, ...] = (RESNET50_FILE,)

    def spec(self, loaded: LoadedFiles) -> ScorerSpec:
        """See `PublishedFamily.spec`."""
        # The authors use MATLAB's network. torchvision's has the same layers and other weights.
        summary = "NSS features of RAPIQUE and features of torchvision's ResNet-50, not of MATLAB's"
        return ScorerSpec(
            card=loaded.card(self.name, summary, "ImageNet", "BSD-3-Clause", {"side": SIDE_PX}),
            frames=_NSS_FRAMES,
            more_frames=(_CNN_FRAMES,),
            num_features=NUM_NSS + NUM_CNN,
            num_parameters=loaded.num_parameters,
            has_score=False,
        )

    def scorer(self, spec: ScorerSpec, loaded: LoadedFiles, options: ModelOptions) -> Scorer:
        """See `PublishedFamily.scorer`."""
        from kvq_batch.models.rapique.scorer import RapiqueScorer

        return RapiqueScorer(spec, loaded.tensors[RESNET50], options)


@dataclass(frozen=True, slots=True)
class CnnFamily(PublishedFamily):
    """CNN of the saliency study: the part of RAPIQUE that ResNet-50 computes."""

    name: str = "cnn-resnet50"
    summary: str = "2048 ResNet-50 features of the centre of each second (part of RAPIQUE); no score; needs weights"
    files: tuple[PublishedFile, ...] = (RESNET50_FILE,)

    def spec(self, loaded: LoadedFiles) -> ScorerSpec:
        """See `PublishedFamily.spec`."""
        summary = "features of torchvision's ResNet-50, not of MATLAB's"
        return ScorerSpec(
            card=loaded.card(self.name, summary, "ImageNet", "BSD-3-Clause", {"side": SIDE_PX}),
            frames=_CNN_FRAMES,
            num_features=NUM_CNN,
            num_parameters=loaded.num_parameters,
            has_score=False,
        )

    def scorer(self, spec: ScorerSpec, loaded: LoadedFiles, options: ModelOptions) -> Scorer:
        """See `PublishedFamily.scorer`."""
        from kvq_batch.models.rapique.scorer import CnnScorer

        return CnnScorer(spec, loaded.tensors[RESNET50], options)


rapique = RapiqueFamily()
cnn_resnet50 = CnnFamily()
