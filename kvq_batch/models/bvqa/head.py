"""Head of BVQA-2022 (TCSVT 2022; SWINV2_SPEC section 9) for features that the authors' code computed.

Its feature networks cannot run here (`models/unavailable.py`). The head is that of MDTVSFA with 4608 features.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.scorer import Prediction
from kvq_batch.models.checkpoints.networks import network_shapes
from kvq_batch.models.checkpoints.published_files import PublishedFile, load_published_files
from kvq_batch.models.checkpoints.tensors import Shape
from kvq_batch.models.mdtvsfa.config import MixedHeadConfig
from kvq_batch.models.mdtvsfa.network import MixedHead
from kvq_batch.models.mdtvsfa.scorer import build_head, prediction

NUM_FEATURES = 4608
"""4096 of ResNet-50 and 512 of the fast pathway of SlowFast."""

_SHA256 = {"C": "05117e1ade675ae8", "KCLN": "2fb48cb83cf52193"}


def score_features(features: NDArray[Any], weights: str | Path, data_sets: str = "KCLN") -> Prediction:
    """Return the prediction of one video: the mapped quality, and the outputs of `mdtvsfa`.

    Args:
        features: features of its time steps, [T, 4608].
        weights: the authors' file `model_KCLN`, or `model_C` with data_sets "C".
        data_sets: letters of the data sets that the head was trained on.

    Raises:
        SpecError: features of another shape, or that are not finite.
        CheckpointError: weights that cannot be read or are of another head.
    """
    if features.ndim != 2 or features.shape[1] != NUM_FEATURES or not len(features):
        raise SpecError(f"BVQA-2022: features have shape {features.shape}, expected (T, {NUM_FEATURES}).")
    if not np.isfinite(features).all():
        raise SpecError("BVQA-2022: features contain NaN or infinity.")
    config = MixedHeadConfig(num_features=NUM_FEATURES, data_sets=tuple(data_sets))

    def shapes() -> Mapping[str, Shape]:
        return network_shapes(lambda: MixedHead(config))

    file = PublishedFile(
        part="head",
        names=(f"model_{data_sets}",),
        kind="the head of BVQA-2022",
        origin="zwx8981/TCSVT-2022-BVQA on GitHub, folder models",
        licence="Apache-2.0",
        shapes=shapes,
        sha256=(_SHA256[data_sets],) if data_sets in _SHA256 else (),
    )
    tensors = load_published_files("bvqa-2022", str(weights), (file,)).tensors["head"]
    head = build_head(config, tensors, torch.device("cpu"))
    with torch.inference_mode():
        return prediction(head(torch.tensor(features, dtype=torch.float32)))
