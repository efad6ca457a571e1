"""Models without weights of users: their cards, and the family and scorer of those that are measured while decoding.

An extractor (`features/extractions.py`) measures the frames in the decoding process, so frames are not kept. It returns
vectors of the clip, float32 [N, n], usually one. There is no torch.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.frames import FrameRequest
from kvq_batch.domain.scorer import ModelCard, ModelOptions, Prediction, Scorer, ScorerSpec


def reject_weights(options: ModelOptions) -> None:
    """Check the options of a model without weights. Raises: SpecError: they name weights."""
    if options.weights is not None:
        raise SpecError(f"Model {options.name!r} has no weights. Remove weights = {options.weights!r}.")


def handcrafted_card(name: str, version: str, config: Any, summary: str) -> ModelCard:
    """Return the card of a model without weights; `config` is a dataclass that enters the model id."""
    identity = json.dumps([name, version, asdict(config)], sort_keys=True)
    return ModelCard(
        name=name,
        version=version,
        digest=hashlib.sha256(identity.encode()).hexdigest(),
        origin="handcrafted",
        summary=summary,
        licence="Apache-2.0",
    )


def features_only(measured: NDArray[np.float32]) -> Prediction:
    """Return the prediction of a model without a score: its vector [1, n] is its features."""
    return Prediction(0.0, features=measured[0])


@dataclass(frozen=True, slots=True)
class MeasuredFamily:
    """Family of a model of measured numbers. `config` and the files `parameters` enter the model id.

    `predict` makes the prediction of what was measured in a clip, [N, n].
    """

    name: str
    summary: str
    frames: FrameRequest
    num_features: int
    licence: str
    predict: Callable[[NDArray[np.float32]], Prediction] = features_only
    outputs: tuple[str, ...] = ()
    has_score: bool = False
    parameters: tuple[Path, ...] = ()
    version: str = "1"
    origin: Literal["handcrafted", "trained"] = "handcrafted"
    training_data: str = ""
    num_parameters: int = 0

    def describe(self, options: ModelOptions) -> ScorerSpec:
        """Return the declaration of the scorer. Raises: SpecError as `reject_weights`."""
        reject_weights(options)
        identity = hashlib.sha256(json.dumps([self.name, self.version]).encode())
        for path in self.parameters:
            identity.update(path.read_bytes())
        card = ModelCard(
            name=self.name,
            version=self.version,
            digest=identity.hexdigest(),
            origin=self.origin,
            summary=self.summary,
            training_data=self.training_data,
            licence=self.licence,
        )
        return ScorerSpec(
            card=card,
            frames=self.frames,
            outputs=self.outputs,
            num_features=self.num_features,
            num_parameters=self.num_parameters,
            has_score=self.has_score,
            devices=("cpu",),
        )

    def build(self, options: ModelOptions) -> Scorer:
        """Return the scorer. Raises: SpecError as `describe`."""
        return MeasuredScorer(self.describe(options), self.predict)


class MeasuredScorer:
    """A `Scorer` of vectors that extractors measured."""

    def __init__(self, spec: ScorerSpec, predict: Callable[[NDArray[np.float32]], Prediction]) -> None:
        self._spec = spec
        self._predict = predict

    @property
    def spec(self) -> ScorerSpec:
        return self._spec

    def score(self, clips: Sequence[NDArray[Any]]) -> list[Prediction]:
        """Return one prediction per clip, in order; each clip is float32 [N, n]."""
        return [self._predict(clip) for clip in clips]
