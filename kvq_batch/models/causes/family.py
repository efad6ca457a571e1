"""Model family of the causes: why a video is bad, where and when, measured without a reference and without weights."""

from dataclasses import dataclass, field

from kvq_batch.domain.frames import Extractor, FrameRequest
from kvq_batch.domain.scorer import ModelOptions, Scorer, ScorerSpec
from kvq_batch.models.causes.config import CausesConfig
from kvq_batch.models.measured import handcrafted_card, reject_weights

CELL_CAUSES = ("blur", "noise", "blockiness", "banding", "over_exposure", "combing")
"""Causes with a severity for each cell."""

FRAME_CAUSES = ("under_exposure", "black", "freeze", "repeated_frames", "letterbox")
"""Causes that concern the whole frame."""

CAUSES = (*CELL_CAUSES, *FRAME_CAUSES)

_ALGORITHM = 1


@dataclass(frozen=True, slots=True)
class CausesFamily:
    """Severities of causes by cell and time slot. They need no weights and no GPU, and share the frames of KVQ."""

    name: str = "causes"
    version: str = "1"
    config: CausesConfig = field(default_factory=CausesConfig)

    @property
    def summary(self) -> str:
        return "causes of bad quality by region and time (blur, noise, banding, freeze, ...), no weights, no score"

    def describe(self, options: ModelOptions) -> ScorerSpec:
        """Return the declaration of the scorer. Raises: SpecError as `reject_weights`."""
        reject_weights(options)
        config = self.config
        card = handcrafted_card(self.name, self.version, config, self.summary)
        extractor = Extractor(
            "causes",
            _ALGORITHM,
            "kvq_batch.features.causes.extraction:CauseExtraction",
            (
                ("frames_per_slot", config.sampling.frames_per_slot),
                ("num_rows", config.num_rows),
                ("num_cols", config.num_cols),
            ),
        )
        frames = FrameRequest(sampling=config.sampling, size=None, planes="yuv", extractor=extractor)
        return ScorerSpec(
            card=card, frames=frames, outputs=CAUSES, causes=CAUSES, has_score=False, devices=("cpu",), algorithm=1
        )

    def build(self, options: ModelOptions) -> Scorer:
        """Return the scorer."""
        from kvq_batch.models.causes.scorer import CausesScorer

        return CausesScorer(self.describe(options), self.config)


causes = CausesFamily()
