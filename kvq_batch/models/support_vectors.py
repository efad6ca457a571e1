"""Support vector regression with a radial kernel, evaluated in numpy: the regressor of models on handcrafted features.

    score(f) = sum_k weights[k] * exp(-gamma * |x - vectors[k]|^2) + intercept,    x = f * scale + offset

Axes: N videos, F features, K support vectors.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.errors import SpecError

Real = NDArray[np.float64]

_BLOCK_ROWS = 256
"""Videos whose distances to all vectors are in memory at once."""


@dataclass(frozen=True, slots=True)
class SupportVectorRegressor:
    """A trained regressor: `vectors` [K, F] are scaled features; `weights` [K]; `scale` and `offset` [F]."""

    vectors: Real
    weights: Real
    intercept: float
    gamma: float
    scale: Real
    offset: Real

    @property
    def num_features(self) -> int:
        return len(self.scale)

    @property
    def num_parameters(self) -> int:
        """Number of weights: the vectors, their weights and the intercept."""
        return int(self.vectors.size + self.weights.size + 1)

    def predict(self, features: NDArray[np.floating]) -> Real:
        """Return the score of each row of `features` [N, F], float64 [N]. NaN and infinite features count as 0."""
        x = np.nan_to_num(np.asarray(features, np.float64), nan=0.0, posinf=0.0, neginf=0.0) * self.scale + self.offset
        scores = np.empty(len(x))
        for first in range(0, len(x), _BLOCK_ROWS):
            block = x[first : first + _BLOCK_ROWS]
            # The difference is computed for each pair: |x|^2 - 2 x s + |s|^2 loses digits where both are close.
            distances = np.stack([((row - self.vectors) ** 2).sum(axis=1) for row in block])
            scores[first : first + _BLOCK_ROWS] = np.exp(-self.gamma * distances) @ self.weights + self.intercept
        return scores


_ARRAYS = ("vectors", "weights", "intercept", "gamma", "scale", "offset")


def load_regressor(path: Path) -> SupportVectorRegressor:
    """Return the regressor in a file that `save_regressor` wrote. No code of the file is run.

    Raises:
        SpecError: the file cannot be read, or lacks an array.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: np.asarray(stored[name], np.float64) for name in _ARRAYS}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise SpecError(
            f"{path} is not a regressor ({error}). Train one with `kvq-batch study --save FILE`."
        ) from error
    return SupportVectorRegressor(
        vectors=arrays["vectors"],
        weights=arrays["weights"],
        intercept=float(arrays["intercept"]),
        gamma=float(arrays["gamma"]),
        scale=arrays["scale"],
        offset=arrays["offset"],
    )


def save_regressor(regressor: SupportVectorRegressor, path: Path) -> None:
    """Write the arrays of a regressor to an npz file. Support vectors are stored as float32."""
    arrays = {name: np.asarray(getattr(regressor, name)) for name in _ARRAYS}
    arrays["vectors"] = arrays["vectors"].astype(np.float32)
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
