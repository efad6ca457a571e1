"""Head of MDTVSFA (IJCV 2021) and of BVQA-2022 (SWINV2_SPEC sections 8 and 9): trained on several data sets at once.

The relative quality of a video is mapped to one perceptual scale by a logistic, and from there to the scale of each
data set by a line. Modules have the names of the published files, the authors' spelling included.

Axes: T frames, F features, R reduced features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kvq_batch.models.backbones.memory_pooling import frame_qualities, pool_frames
from kvq_batch.models.mdtvsfa.config import MixedHeadConfig


@dataclass(frozen=True, slots=True)
class MixedScore:
    """Score of one video: `relative` and `mapped` in 0..1, and `aligned` to the opinion scores of each data set."""

    relative: float
    mapped: float
    aligned: dict[str, float]


class MixedHead(nn.Module):
    """Reduction, GRU, regression, pooling with memory, and the maps between scales."""

    def __init__(self, config: MixedHeadConfig) -> None:
        super().__init__()
        self.dimemsion_reduction = nn.Linear(config.num_features, config.reduced)
        self.feature_aggregation = nn.GRU(config.reduced, config.hidden, batch_first=True)
        self.regression = nn.Linear(config.hidden, 1)
        self.nlm = nn.ModuleDict({"0": nn.Linear(1, 1), "2": nn.Linear(1, 1)})
        self.lm = nn.ModuleDict({name: nn.Linear(1, 1) for name in config.data_sets})

    @property
    def reduction(self) -> nn.Linear:
        return self.dimemsion_reduction

    def forward(self, features_TF: Tensor) -> MixedScore:
        """Return the score of one video from the features of all its frames."""
        return self.score(self.reduction(features_TF))

    def score(self, reduced_TR: Tensor) -> MixedScore:
        """Return the score of one video from the reduced features of all its frames."""
        quality_T = frame_qualities(reduced_TR, self.feature_aggregation, self.regression)
        relative = torch.sigmoid(pool_frames(quality_T).mean())[None]
        mapped = self.nlm["2"](torch.sigmoid(self.nlm["0"](relative)))
        aligned = {name: layer(mapped).item() for name, layer in self.lm.items()}
        return MixedScore(relative.item(), mapped.item(), aligned)
