"""Model families of BRISQUE from one frame a second at native size: features of luma, and the score of OpenCV.

The score of OpenCV is 0 for the best and 100 for the worst quality. It is the output `brisque`. The raw score is its
negative, because a higher raw score is better for every model here.
"""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.errors import ScoreError
from kvq_batch.domain.frames import Extractor, FrameRequest, RateSampling
from kvq_batch.domain.scorer import Prediction
from kvq_batch.features.brisque import NUM_FEATURES
from kvq_batch.models.measured import MeasuredFamily
from kvq_batch.models.support_vectors import SupportVectorRegressor, load_regressor

REGRESSOR_FILE = Path(__file__).parent / "brisque-opencv.npz"


@cache
def _regressor() -> SupportVectorRegressor:
    return load_regressor(REGRESSOR_FILE)


def predict_opencv(measured: NDArray[np.float32]) -> Prediction:
    """Return the prediction of a clip for the features of its frames, [T, 36]: means over frames.

    Flat frames have no features and are left out.

    Raises:
        ScoreError: all frames are flat.
    """
    frames = measured[np.isfinite(measured).all(axis=1)].astype(np.float64)
    if not len(frames):
        raise ScoreError("no_detail", "None of its frames has enough detail for BRISQUE, as if all were black.", True)
    score = float(np.clip(_regressor().predict(frames), 0, 100).mean())
    return Prediction(-score, outputs={"brisque": score}, features=frames.mean(axis=0).astype(np.float32))


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

brisque_opencv = MeasuredFamily(
    name="brisque-opencv",
    summary="BRISQUE as OpenCV scores it, trained on the LIVE image database; its raw score is -BRISQUE",
    frames=FrameRequest(
        RateSampling(1.0),
        None,
        extractor=Extractor("brisque-opencv", 1, "kvq_batch.features.extractions:OpencvBrisqueExtraction"),
    ),
    num_features=NUM_FEATURES,
    licence="Apache-2.0 and a notice of The University of Texas at Austin (BRISQUE_NOTICE.txt)",
    predict=predict_opencv,
    outputs=("brisque",),
    has_score=True,
    parameters=(REGRESSOR_FILE,),
    origin="trained",
    # Of 774 support vectors.
    num_parameters=774 * (NUM_FEATURES + 1) + 1,
    training_data="LIVE image quality database, release 2",
)
