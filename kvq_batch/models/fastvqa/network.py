"""Network of FAST-VQA and FasterVQA: maps normalised clips to local quality (FASTVQA_SPEC section 3).

Modules and parameters have the published names, so checkpoints load by name.
"""

from torch import Tensor, nn

from kvq_batch.models.fastvqa.backbone import SwinBackbone
from kvq_batch.models.fastvqa.config import SwinConfig
from kvq_batch.models.kvq.attention import attention_backends
from kvq_batch.models.kvq.network import Head


class FastVqaNetwork(nn.Module):
    """Backbone and head: normalised clips float32 [B, 3, T, H, W] -> quality of each cell [B, T/2, H/32, W/32].

    The score of a video is the mean over its clips and cells: pooling comes after the regression.
    """

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.fragments_backbone = SwinBackbone(config)
        self.vqa_head = Head(config.width(config.num_stages - 1), config.head_hidden)

    def forward(self, clips: Tensor) -> Tensor:
        with attention_backends(clips.device):
            quality: Tensor = self.vqa_head(self.fragments_backbone(clips))
        return quality
