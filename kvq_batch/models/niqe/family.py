"""Model family of NIQE: a score without training on opinions, from one frame a second at native size.

The published number is a distance: lower is better. It is the output `niqe`. The raw score is its negative, because a
higher raw score is better for every model here.
"""

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.frames import Extractor, FrameRequest, RateSampling
from kvq_batch.domain.scorer import Prediction
from kvq_batch.features.niqe import NUM_FEATURES, PRISTINE_FILE
from kvq_batch.models.measured import MeasuredFamily


def predict(measured: NDArray[np.float32]) -> Prediction:
    """Return the prediction of a clip: its mean distance, then the 36 features, [1, 37]."""
    distance = float(measured[0, 0])
    return Prediction(-distance, outputs={"niqe": distance}, features=measured[0, 1:])


niqe = MeasuredFamily(
    name="niqe",
    summary="NIQE (IEEE SPL 2013): distance from pristine photographs, no training; its raw score is -distance",
    frames=FrameRequest(
        RateSampling(1.0), None, extractor=Extractor("niqe", 1, "kvq_batch.features.extractions:NiqeExtraction")
    ),
    num_features=NUM_FEATURES,
    licence="parameters: Copyright (c) 2011 The University of Texas at Austin, use with notice (NIQE_NOTICE.txt)",
    predict=predict,
    outputs=("niqe",),
    has_score=True,
    parameters=(PRISTINE_FILE,),
)
