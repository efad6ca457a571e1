"""Model family of BRISQUE with support vector regression: trained on opinion scores of people, included in the package.

Figures of the card: SRCC as median of 100 splits within each set, and of regressors that never saw the set
(docs/brisque_svr.md).
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.frames import FrameRequest, Sampling
from kvq_batch.domain.scorer import ModelCard, ModelOptions, Scorer, ScorerSpec
from kvq_batch.features.brisque import NUM_FEATURES
from kvq_batch.models.brisque_svr.config import BrisqueSvrConfig
from kvq_batch.models.support_vectors import load_regressor

TRAINING_DATA = (
    "3165 user-generated videos with opinion scores of people: KoNViD-1k (1200), LIVE-VQC (585), YouTube-UGC (1380); "
    "BRISQUE features and opinion scores as published with VIDEVAL and BVQA_Benchmark (MIT licence), mapped to the "
    "scale of YouTube-UGC, 1..5. SRCC within a set: 0.657, 0.593, 0.382. SRCC on a set that was not trained on: 0.561, "
    "0.520, 0.225. Our features differ from the published ones: 10 frames of a clip instead of a fixed rate, and luma "
    "that is computed from RGB"
)

OPINION_SCALE = (50_050.0, -49_950.0, 3.0, 1000.0)
"""Curve of `mos`: 25 (raw - 1), from 1..5 to 0..100 as `labels import` maps opinions. A logistic of this width is a
line: it differs by less than 0.0001."""


@dataclass(frozen=True, slots=True)
class BrisqueSvrFamily:
    """BRISQUE features of native frames, averaged, and a regressor that was trained on opinion scores."""

    name: str = "brisque-svr"
    version: str = "1"
    config: BrisqueSvrConfig = field(default_factory=BrisqueSvrConfig)

    @property
    def summary(self) -> str:
        return "36 BRISQUE features and a regressor trained on opinion scores of people; its raw score is a MOS of 1..5"

    @property
    def weights_path(self) -> Path:
        """The regressor that the package includes."""
        return Path(__file__).parent / self.config.weights

    def describe(self, options: ModelOptions) -> ScorerSpec:
        """Return the declaration of the scorer.

        Raises:
            SpecError: the options name weights: this model has one regressor, which the package includes.
        """
        if options.weights is not None:
            raise SpecError(
                f"Model {options.name!r} includes its regressor. Remove weights = {options.weights!r}, or "
                "choose another model."
            )
        identity = json.dumps([self.name, self.version, asdict(self.config)], sort_keys=True)
        digest = hashlib.sha256(identity.encode() + self.weights_path.read_bytes()).hexdigest()
        card = ModelCard(
            name=self.name,
            version=self.version,
            digest=digest,
            origin="trained",
            summary=self.summary,
            training_data=TRAINING_DATA,
            licence="MIT (features and opinion scores: Copyright (c) 2020 Zhengzhong Tu)",
            calibrations={"opinion-scale": OPINION_SCALE},
        )
        sampling = Sampling(num_fragments=self.config.num_frames, frames_per_fragment=1, stride=1)
        frames = FrameRequest(sampling=sampling, size=None)
        num_parameters = load_regressor(self.weights_path).num_parameters
        return ScorerSpec(
            card=card, frames=frames, num_features=NUM_FEATURES, num_parameters=num_parameters, devices=("cpu",)
        )

    def build(self, options: ModelOptions) -> Scorer:
        """Return the scorer.

        Raises:
            SpecError: as `describe`.
        """
        from kvq_batch.models.brisque_svr.scorer import BrisqueSvrScorer

        return BrisqueSvrScorer(self.describe(options), load_regressor(self.weights_path))


brisque_svr = BrisqueSvrFamily()
