"""Model family of the luma statistics, and the template for the `family` module of a new model.

To add a model, copy this folder and register its family in `kvq_batch.models.registry`. Increase `version` when scores
change. A model without weights hashes its configuration and its version for its model id.
"""

from dataclasses import dataclass, field

from kvq_batch.domain.frames import FrameRequest
from kvq_batch.domain.scorer import ModelOptions, Scorer, ScorerSpec
from kvq_batch.models.luma_sharpness.config import LumaConfig
from kvq_batch.models.measured import handcrafted_card, reject_weights

OUTPUTS = ("luma_mean", "luma_std", "sharpness", "temporal_difference")


@dataclass(frozen=True, slots=True)
class LumaSharpnessFamily:
    """Luma and sharpness statistics. They need no weights and no GPU, and share KVQ's frames, so also its decode."""

    name: str = "luma-sharpness"
    version: str = "1"
    config: LumaConfig = field(default_factory=LumaConfig)

    @property
    def summary(self) -> str:
        return "luma and sharpness statistics of the frames, no weights; its raw score is the mean absolute Laplacian"

    def describe(self, options: ModelOptions) -> ScorerSpec:
        """Return the declaration of the scorer. Raises: SpecError as `reject_weights`."""
        reject_weights(options)
        card = handcrafted_card(self.name, self.version, self.config, self.summary)
        return ScorerSpec(card=card, frames=FrameRequest(), outputs=OUTPUTS, devices=("cpu",))

    def build(self, options: ModelOptions) -> Scorer:
        """Return the scorer."""
        from kvq_batch.models.luma_sharpness.scorer import LumaSharpnessScorer

        return LumaSharpnessScorer(self.describe(options), self.config)


luma_sharpness = LumaSharpnessFamily()
