"""The name under which the luma statistics are registered; the template for a next model's `family`.

A model without weights still has an identity: its configuration and its version are hashed instead. Copy this folder
for a new model, register the family in `kvq_batch.models.registry`, and bump `version` when numbers change.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field

from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.frames import FrameRequest
from kvq_batch.domain.scorer import ModelCard, ModelOptions, Scorer, ScorerSpec
from kvq_batch.models.luma_sharpness.config import LumaConfig

OUTPUTS = ("luma_mean", "luma_std", "sharpness", "temporal_difference")


@dataclass(frozen=True, slots=True)
class LumaSharpnessFamily:
    """Luma and sharpness statistics: no weights, no GPU, the same frames as KVQ, so that one decode serves both."""

    name: str = "luma-sharpness"
    version: str = "1"
    config: LumaConfig = field(default_factory=LumaConfig)

    @property
    def summary(self) -> str:
        return "luma and sharpness statistics of the frames, no weights; its raw score is the mean absolute Laplacian"

    def describe(self, options: ModelOptions) -> ScorerSpec:
        """The declaration.

        Raises:
            SpecError: weights were given, and there is nothing to load them into.
        """
        if options.weights is not None:
            raise SpecError(f"model {options.name!r} has no weights; remove weights = {options.weights!r}")
        identity = json.dumps([self.name, self.version, asdict(self.config)], sort_keys=True)
        card = ModelCard(
            name=self.name,
            version=self.version,
            digest=hashlib.sha256(identity.encode()).hexdigest(),
            origin="handcrafted",
            summary=self.summary,
            licence="Apache-2.0",
        )
        return ScorerSpec(card=card, frames=FrameRequest(), outputs=OUTPUTS, devices=("cpu",))

    def build(self, options: ModelOptions) -> Scorer:
        """The live scorer."""
        from kvq_batch.models.luma_sharpness.scorer import LumaSharpnessScorer

        return LumaSharpnessScorer(self.describe(options), self.config)


luma_sharpness = LumaSharpnessFamily()
