"""Validation: how well the averaged weights order clips of held-out scenes. It decides which weights are kept.

Uses validation scenes only, never the test set: that is for `evaluate`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvq_batch.domain.errors import FatalError
from kvq_batch.metrics.ranks import Ranking, pearson, spearman
from kvq_batch.training.process_group import ProcessGroup
from kvq_batch.training.samples import ClipSource


@dataclass(frozen=True, slots=True)
class Validation:
    """Raw scores float64 [n] of the held-out clips at `indices` after `step` steps, and their agreement with labels.

    A correlation that is undefined because all scores are equal is 0: no order was found.
    """

    step: int
    indices: NDArray[np.int64]
    scores: NDArray[np.float64]
    srcc: float
    plcc: float

    @property
    def agreement(self) -> float:
        """SRCC + PLCC, the criterion by which the published code selects its best weights."""
        return self.srcc + self.plcc


def validate(
    score: Callable[[Tensor], Tensor],
    device: torch.device,
    source: ClipSource,
    indices: NDArray[np.int64],
    batch_size: int,
    step: int,
    group: ProcessGroup,
) -> Validation:
    """Validate a network in scoring mode on the fixed views of the samples at `indices`.

    `score` returns the raw scores, float64 [n], of uint8 RGB clips [n, T, H, W, 3].

    Raises:
        FatalError: a score that is not finite.
    """
    scores = torch.zeros(len(indices), dtype=torch.float64, device=device)
    own = np.arange(len(indices))[group.rank :: group.size]
    for first in range(0, len(own), batch_size):
        rows = own[first : first + batch_size]
        clips = torch.from_numpy(source.read(indices[rows].tolist(), None).clips).to(device)
        with torch.inference_mode():
            scores[torch.from_numpy(rows).to(device)] = score(clips)
    group.all_reduce_sum([scores])
    found = scores.cpu().numpy()
    if not np.isfinite(found).all():
        raise FatalError(
            f"Step {step}: the averaged weights give scores that are not finite. The training has diverged: lower "
            "optimiser.learning_rate and start again."
        )
    labels = np.array([source.samples[index].label for index in indices], np.float64)
    srcc, plcc = correlations(found, labels)
    return Validation(step, indices, found, srcc, plcc)


def correlations(scores: NDArray[np.float64], labels: NDArray[np.float64]) -> tuple[float, float]:
    """Return SRCC and PLCC (without a fitted curve), 0 if one side is constant."""
    all_once = np.ones((1, len(scores)))
    found = spearman(Ranking(scores), Ranking(labels), all_once)[0], pearson(scores, labels, all_once)[0]
    srcc, plcc = np.nan_to_num(found).tolist()
    return srcc, plcc


def prediction_rows(source: ClipSource, validation: Validation) -> Sequence[dict[str, object]]:
    """Return one row per held-out clip: its ids, its label and its raw score."""
    samples = [source.samples[index] for index in validation.indices]
    return [
        {"sample_id": s.sample_id, "scene_id": s.scene_id, "label": s.label, "raw_score": score}
        for s, score in zip(samples, validation.scores.tolist(), strict=True)
    ]
