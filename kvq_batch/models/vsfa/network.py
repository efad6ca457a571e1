"""Head of VSFA (ACM MM 2019; STUDY_SPEC section 3): per-frame ResNet-50 features to the quality of a video.

Modules have the names of the published file. Its `ann.fc` and its dropout are never used.

Axes: T frames, F features, R reduced features.
"""

from torch import Tensor, nn

from kvq_batch.models.backbones.memory_pooling import frame_qualities, pool_frames
from kvq_batch.models.vsfa.config import VsfaConfig


class VsfaHead(nn.Module):
    """Linear reduction, GRU and regression of each frame; then pooling with memory and the mean over time."""

    def __init__(self, config: VsfaConfig) -> None:
        super().__init__()
        self.ann = nn.ModuleDict({"fc0": nn.Linear(config.num_features, config.reduced)})
        self.rnn = nn.GRU(config.reduced, config.hidden, batch_first=True)
        self.q = nn.Linear(config.hidden, 1)

    @property
    def reduction(self) -> nn.Linear:
        layer = self.ann["fc0"]
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, features_TF: Tensor) -> Tensor:
        """Return the score of one video [], on the scale of labels that are divided by their maximum."""
        return self.score(self.reduction(features_TF))

    def score(self, reduced_TR: Tensor) -> Tensor:
        """Return the score of one video [] from the reduced features of all its frames."""
        return pool_frames(self.qualities(reduced_TR)).mean()

    def qualities(self, reduced_TR: Tensor) -> Tensor:
        """Return the quality of each frame [T]."""
        return frame_qualities(reduced_TR, self.rnn, self.q)
