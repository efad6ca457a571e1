"""How well the averaged weights order clips of sources that no step has seen; what decides which weights are kept.

Held-out sources only, never a test set: that is for `evaluate`. No calibration is fitted here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from kvq_batch.domain.errors import FatalError
from kvq_batch.metrics.ranks import Ranking, pearson, spearman
from kvq_batch.models.kvq.network import KvqNetwork
from kvq_batch.models.kvq.pixels import normalise
from kvq_batch.training.process_group import ProcessGroup
from kvq_batch.training.samples import ClipSource


@dataclass(frozen=True, slots=True)
class Validation:
    """Raw scores float64 [n] of the held-out clips at `places` after `step` steps, and their agreement with labels.

    A correlation that does not exist, as all scores are equal, is 0: no order was found.
    """

    step: int
    places: NDArray[np.int64]
    scores: NDArray[np.float64]
    srcc: float
    plcc: float

    @property
    def agreement(self) -> float:
        """SRCC + PLCC, by which the published code keeps its best weights too."""
        return self.srcc + self.plcc


def validate(
    network: KvqNetwork, source: ClipSource, places: NDArray[np.int64], batch_size: int, step: int, group: ProcessGroup
) -> Validation:
    """The validation of a network in scoring mode on the fixed views of the samples at `places`.

    Raises:
        FatalError: a score that is no number.
    """
    device = next(network.parameters()).device
    scores = torch.zeros(len(places), dtype=torch.float64, device=device)
    own = np.arange(len(places))[group.rank :: group.size]
    for first in range(0, len(own), batch_size):
        rows = own[first : first + batch_size]
        clips = torch.from_numpy(source.read(places[rows].tolist(), None).clips).to(device)
        with torch.inference_mode():
            scores[torch.from_numpy(rows).to(device)] = network(normalise(clips)).scores()
    group.all_reduce_sum([scores])
    found = scores.cpu().numpy()
    if not np.isfinite(found).all():
        raise FatalError(
            f"step {step}: the averaged weights give scores that are no numbers; the training has diverged"
        )
    labels = np.array([source.samples[place].label for place in places], np.float64)
    srcc, plcc = correlations(found, labels)
    return Validation(step, places, found, srcc, plcc)


def correlations(scores: NDArray[np.float64], labels: NDArray[np.float64]) -> tuple[float, float]:
    """SRCC and PLCC (no curve fitted), 0 where one side is constant."""
    once = np.ones((1, len(scores)))
    found = spearman(Ranking(scores), Ranking(labels), once)[0], pearson(scores, labels, once)[0]
    srcc, plcc = np.nan_to_num(found).tolist()
    return srcc, plcc


def prediction_rows(source: ClipSource, validation: Validation) -> Sequence[dict[str, object]]:
    """One row a held-out clip: its names, its label and its raw score."""
    samples = [source.samples[place] for place in validation.places]
    return [
        {"sample_id": s.sample_id, "scene_id": s.scene_id, "label": s.label, "raw_score": score}
        for s, score in zip(samples, validation.scores.tolist(), strict=True)
    ]
