"""Order of scores on bitrate ladders: inside a level, and from one level of a reference to the next."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kvq_batch.metrics.ranks import Real


def share_in_level(scores: Real, labels: Real, levels: Sequence[str | None]) -> float | None:
    """Return the share of pairs of one level that scores order as labels do; equal scores count half.

    Pairs of equal labels do not count. None if there is no pair, or a level is unknown.
    """
    if None in levels:
        return None
    names = np.array(levels)
    is_pair = np.triu(names[:, None] == names[None, :], 1)
    return _ordered(scores, labels, *np.nonzero(is_pair))


def share_of_neighbours(scores: Real, labels: Real, references: Sequence[str | None]) -> float | None:
    """Return the share of neighbouring renditions of one reference, by label, that scores order as labels do.

    Equal scores count half. None if there is no pair, or a reference is unknown.
    """
    if None in references:
        return None
    names = np.array(references)
    order = np.lexsort((labels, names))
    is_same = names[order][1:] == names[order][:-1]
    return _ordered(scores, labels, order[:-1][is_same], order[1:][is_same])


def _ordered(scores: Real, labels: Real, first: NDArray[np.int64], second: NDArray[np.int64]) -> float | None:
    wanted = np.sign(labels[second] - labels[first])
    found = np.sign(scores[second] - scores[first])[wanted != 0]
    wanted = wanted[wanted != 0]
    return float(np.mean(np.where(found == 0, 0.5, found == wanted))) if len(wanted) else None
