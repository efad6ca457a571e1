"""Interface of all models: their options, their declaration, the `Scorer` protocol and its predictions."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.frames import FrameRequest

Precision = Literal["fp32", "bf16", "fp16"]
Device = Literal["cpu", "cuda"]

Clip = NDArray[Any] | tuple[NDArray[Any], ...]
"""What a scorer gets for one clip: one array, or one for each request if the spec has `more_frames`."""

STD = "std"
"""Output with the expected deviation of the label from the calibrated score, in the unit of the labels."""

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
    parameters (b1, b2, b3, b4) of MOS = b2 + (b1 - b2) / (1 + exp(-(raw - b3) / |b4|)). `spread` holds raw scores in
    ascending order and, for each, the standard deviation of labels of held-out clips around the calibrated score, in
    the unit of the labels; empty if it is not known.
    """

    name: str
    version: str
    digest: str
    origin: Literal["trained", "untrained", "handcrafted"]
    summary: str
    training_data: str = ""
    licence: str = ""
    calibrations: Mapping[str, tuple[float, float, float, float]] = field(default_factory=dict)
    spread: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())

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

    Increase `algorithm` when code changes a score while weights and configuration stay the same, and `fp16_algorithm`
    when it changes scores in fp16 only. `outputs` names the numbers that it returns besides the raw score, `maps` its
    maps, `causes` the causes whose severity it measures. `more_frames` are further requests, for several views of a
    clip. `num_parameters` counts the weights, 0 if there are none. A scorer without `has_score` returns features or
    causes only: its raw score is ignored and stored as null.

    Raises:
        ValueError: a streamed request beside others: its chunks come alone.
    """

    card: ModelCard
    frames: FrameRequest
    outputs: tuple[str, ...] = ()
    maps: tuple[Literal["texture", "saliency"], ...] = ()
    causes: tuple[str, ...] = ()
    num_features: int = 0
    num_parameters: int = 0
    more_frames: tuple[FrameRequest, ...] = ()
    has_score: bool = True
    devices: tuple[Device, ...] = ("cpu", "cuda")
    precisions: tuple[Precision, ...] = ("fp32",)
    algorithm: int = 1
    fp16_algorithm: int = 1

    def __post_init__(self) -> None:
        if not self.requests or (self.is_streamed and len(self.requests) > 1):
            raise ValueError(f"Model {self.card.name!r}: expected one streamed request, or several that are not.")

    def precision(self, device: Device, chosen: Precision | None) -> Precision:
        """Return the precision that was chosen, or else the default: fp16 on a GPU if the model supports it, or fp32.

        Of the half precisions, fp16 has the smaller errors: its significand has 11 bits, that of bf16 has 8.
        """
        return chosen or ("fp16" if device == "cuda" and "fp16" in self.precisions else "fp32")

    @property
    def requests(self) -> tuple[FrameRequest, ...]:
        """The frame requests, in the order of the arrays of a clip."""
        return (self.frames, *self.more_frames)

    @property
    def is_streamed(self) -> bool:
        """Whether clips come in chunks: the scorer returns partial results, and a `Pooler` makes the prediction."""
        return any(request.is_streamed for request in self.requests)

    @property
    def pixel_request(self) -> FrameRequest:
        """The only request, of pixels of a fixed number of frames, for tools that make such clips of pictures.

        Raises:
            SpecError: the model requests something else.
        """
        (request, *others) = self.requests
        if others or request.extractor or request.is_streamed or request.sampling.num_frames is None:
            raise SpecError(f"Model {self.card.model_id} does not take clips of a fixed number of frames.")
        return request


@dataclass(frozen=True, slots=True)
class Prediction:
    """Result of a scorer for one clip, or for a chunk of it.

    Maps are float32 [slot, row, column]. Saliency has mean 1 over the cells of each slot. If both maps exist,
    raw_score = mean(texture * saliency) (KVQ_SPEC section 3.4). `slot_scores` is float32 [slot] or None, `features`
    float32 [num_features] or None; features may be NaN or infinite, all other values must be finite. `causes` is the
    severity 0..1 of each cause of bad quality: float32 [slot, row, column], or [slot] for one that concerns the whole
    frame; all of one grid. `partial`, float32 or float64 [n, p], is the result for a chunk of a streamed request; the
    other values are then ignored.
    """

    raw_score: float
    outputs: Mapping[str, float] = field(default_factory=dict)
    texture: NDArray[np.float32] | None = None
    saliency: NDArray[np.float32] | None = None
    slot_scores: NDArray[np.float32] | None = None
    features: NDArray[np.float32] | None = None
    causes: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    partial: NDArray[Any] | None = None


class Pooler(Protocol):
    """Makes the prediction of a clip from the partial results of its chunks, in the driver: it must be quick."""

    def pool(self, partial: NDArray[Any]) -> Prediction:
        """Return the prediction of a clip for the partial results of all its chunks in order, [N, p].

        It must not depend on where the clip was cut into chunks.

        Raises:
            ScoreError: the clip has no usable prediction.
        """
        ...


class Scorer(Protocol):
    """A model on its device. A score must not depend on the other clips of the call."""

    @property
    def spec(self) -> ScorerSpec: ...

    def score(self, clips: Sequence[Any]) -> list[Prediction]:
        """Return one prediction per clip, in order; each clip is a `Clip`, as the spec requests it.

        For one request of pixels that is uint8 RGB [T, H, W, 3]. A scorer may name the type of its clips.

        Raises:
            ScoreError: one of the clips cannot be scored, with the reason and whether it is permanent. The caller
                then scores each clip alone.
            OutOfMemoryError: the clips do not fit into memory; the memory of the attempt has been freed. The caller
                also recognises the errors of CUDA libraries (`models/device_errors.py`).
        """
        ...


@runtime_checkable
class PipelinedScorer(Scorer, Protocol):
    """A scorer whose device works while the host prepares the next clips."""

    def start(self, clips: Sequence[Any]) -> Callable[[], list[Prediction]]:
        """Start to score clips, and return what waits for their predictions.

        It is called again before the predictions of the clips before are fetched, which happens in the same order. An
        error may be raised by either call; the caller then scores the clips again with `score`.
        """
        ...
