"""Head of VSFA (ACM MM 2019; STUDY_SPEC section 3): per-frame ResNet-50 features to the quality of a video.

Modules have the names of the published file. Its `ann.fc` and its dropout are never used.

Axes: T frames, F features.
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

    def forward(self, features_TF: Tensor) -> Tensor:
        """Return the score of one video [], on the scale of labels that are divided by their maximum."""
        return pool_frames(self.qualities(features_TF)).mean()

    def qualities(self, features_TF: Tensor) -> Tensor:
        """Return the quality of each frame [T]."""
        reduction = self.ann["fc0"]
        assert isinstance(reduction, nn.Linear)
        return frame_qualities(features_TF, reduction, self.rnn, self.q)
