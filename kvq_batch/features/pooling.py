"""Means of features over frames, chunks and clips that ignore undefined values. Needs numpy only."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Real = NDArray[np.float64]


def mean_of_defined(vectors: Real) -> Real:
    """Return the mean of each column of [N, F] over the rows where it is not NaN; NaN where it never is."""
    mean = RunningMean()
    for vector in vectors:
        mean.add(vector)
    return mean.value()


class RunningMean:
    """Mean of vectors that come one by one, as `mean_of_defined`: memory does not grow with their number."""

    def __init__(self) -> None:
        self.num_vectors = 0
        self._sum: Any = 0.0
        self._count: Any = 0

    def add(self, vector: Real) -> None:
        """Add a vector, float64 [F]; NaN values are left out."""
        self.num_vectors += 1
        is_defined = ~np.isnan(vector)
        with np.errstate(invalid="ignore"):
            self._sum = self._sum + np.where(is_defined, vector, 0.0)
        self._count = self._count + is_defined

    def value(self) -> Real:
        """Return the mean so far, float64 [F], of at least one vector."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self._sum / self._count)
