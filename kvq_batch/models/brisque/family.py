"""Model family of BRISQUE features: 36 numbers of luma, from one frame a second at native size, without a score."""

from kvq_batch.domain.frames import Extractor, FrameRequest, RateSampling
from kvq_batch.features.brisque import NUM_FEATURES
from kvq_batch.models.measured import MeasuredFamily

brisque = MeasuredFamily(
    name="brisque",
    summary="36 BRISQUE features of the luma plane (IEEE TIP 2012), mean over one frame a second; no score",
    frames=FrameRequest(
        RateSampling(1.0),
        None,
        planes="yuv420p",
        extractor=Extractor("brisque", 1, "kvq_batch.features.extractions:BrisqueExtraction"),
    ),
    num_features=NUM_FEATURES,
    licence="Apache-2.0",
)
