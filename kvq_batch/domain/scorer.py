"""Interface of all models: their options, their declaration, the `Scorer` protocol and its predictions."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.frames import FrameRequest

Precision = Literal["fp32", "bf16", "fp16"]
Device = Literal["cpu", "cuda"]

_ID_PART = re.compile(r"[a-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Options of one model of a job: everything that a worker needs to build it, small and picklable.

    `weights` is a path on this machine, "untrained" for seeded random weights, or None for the default of the model.
    """

    name: str
    weights: str | None = None
    precision: Precision = "fp32"
    device: Device = "cpu"
    num_threads: int | None = None


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Identity, origin and calibrations of a model.

    `origin` is "trained", "untrained" or "handcrafted"; a score of an untrained model does not measure quality.
    `digest` is the sha256 hex of weights and configuration. `calibrations` maps a name (such as "lsvq") to the four
    parameters (b1, b2, b3, b4) of MOS = b2 + (b1 - b2) / (1 + exp(-(raw - b3) / |b4|)).
    """

    name: str
    version: str
    digest: str
    origin: Literal["trained", "untrained", "handcrafted"]
    summary: str
    training_data: str = ""
    licence: str = ""
    calibrations: Mapping[str, tuple[float, float, float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for label, part in (("name", self.name), ("version", self.version)):
            if not _ID_PART.fullmatch(part):
                raise SpecError(f"Invalid model {label} {part!r}: use only a-z, 0-9, '.', '_' and '-'.")

    @property
    def model_id(self) -> str:
        """The key of all results of this model: name@version-digest, with 12 digits of the digest."""
        return f"{self.name}@{self.version}-{self.digest[:12]}"


@dataclass(frozen=True, slots=True)
class ScorerSpec:
    """Declaration of a scorer, available before it is built: its card, its frames, its outputs and its devices.

    Increase `algorithm` when code changes a score while weights and configuration stay the same. `outputs` names the
    numbers that it returns besides the raw score, `maps` its maps.
    """

    card: ModelCard
    frames: FrameRequest
    outputs: tuple[str, ...] = ()
    maps: tuple[Literal["texture", "saliency"], ...] = ()
    num_features: int = 0
    devices: tuple[Device, ...] = ("cpu", "cuda")
    precisions: tuple[Precision, ...] = ("fp32",)
    algorithm: int = 1


@dataclass(frozen=True, slots=True)
class Prediction:
    """Result of a scorer for one clip.

    Maps are float32 [slot, row, column]. Saliency has mean 1 over the cells of each slot. If both maps exist,
    raw_score = mean(texture * saliency) (KVQ_SPEC section 3.4). `slot_scores` is float32 [slot] or None, `features`
    float32 [num_features] or None.
    """

    raw_score: float
    outputs: Mapping[str, float] = field(default_factory=dict)
    texture: NDArray[np.float32] | None = None
    saliency: NDArray[np.float32] | None = None
    slot_scores: NDArray[np.float32] | None = None
    features: NDArray[np.float32] | None = None


class Scorer(Protocol):
    """A model on its device. A score must not depend on the other clips of the call."""

    @property
    def spec(self) -> ScorerSpec: ...

    def score(self, clips: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        """Return one prediction per clip, in order; each clip is uint8 RGB [T, H, W, 3] as `spec.frames` requests.

        Raises:
            OutOfMemoryError: the clips do not fit into memory; the memory of the attempt has been freed. The caller
                also recognises the errors of CUDA libraries (`models/device_errors.py`).
        """
        ...
