"""Network of DOVER: a technical branch on fragments and an aesthetic branch on whole frames (FASTVQA_SPEC section 6).

Modules and parameters have the published names, so checkpoints load by name.
"""

from torch import Tensor, nn

from kvq_batch.models.dover.config import ConvNextConfig, DoverConfig
from kvq_batch.models.dover.convnext import ConvNext
from kvq_batch.models.fastvqa.backbone import SwinBackbone
from kvq_batch.models.fastvqa.config import SwinConfig
from kvq_batch.models.kvq.network import Head


class DoverNetwork(nn.Module):
    """Two branches; each maps normalised clips float32 [B, 3, T, H, W] to quality [B, T/2, H/32, W/32].

    The score of a branch is the mean over its clips and cells.
    """

    def __init__(self, config: DoverConfig) -> None:
        super().__init__()
        self.technical_backbone = _backbone(config.technical)
        self.aesthetic_backbone = ConvNext(config.aesthetic)
        self.technical_head = Head(_width(config.technical), config.head_hidden)
        self.aesthetic_head = Head(_width(config.aesthetic), config.head_hidden)

    def technical(self, clips: Tensor) -> Tensor:
        """Return the technical quality of each cell of clips of fragments."""
        quality: Tensor = self.technical_head(self.technical_backbone(clips))
        return quality

    def aesthetic(self, clips: Tensor) -> Tensor:
        """Return the aesthetic quality of each cell of clips of whole frames."""
        quality: Tensor = self.aesthetic_head(self.aesthetic_backbone(clips))
        return quality


def _backbone(config: SwinConfig | ConvNextConfig) -> SwinBackbone | ConvNext:
    return SwinBackbone(config) if isinstance(config, SwinConfig) else ConvNext(config)


def _width(config: SwinConfig | ConvNextConfig) -> int:
    return config.width(config.num_stages - 1) if isinstance(config, SwinConfig) else config.dims[-1]
