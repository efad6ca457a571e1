"""Settings of a training as frozen values. All of them change the resulting weights, except `Machine`.

The command line makes them from a job file; other programs may build them directly.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Literal

from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.scorer import Device
from kvq_batch.models.kvq.config import Grid, KvqConfig
from kvq_batch.models.swinv2_ctf.config import CtfConfig

NetworkConfig = KvqConfig | CtfConfig
Initialisation = Literal["published", "fan-in"]
TrainPrecision = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True)
class LossWeights:
    """Weight of each term of the loss; the defaults are the published code's (the paper has lpc 0.05).

    `score` and `cells` weight the absolute errors of scores and of labelled cells of the texture map, with the labels'
    scale mapped to 0..1; `pairs` weights the errors of differences between renditions of the same frames. A term of
    weight 0 is not computed.

    Raises:
        SpecError: a weight that is negative or not finite, or all weights 0.
    """

    plcc: float = 1.0
    rank: float = 0.5
    lpc: float = 0.02
    score: float = 0.0
    cells: float = 0.0
    pairs: float = 0.0

    def __post_init__(self) -> None:
        values = asdict(self)
        if invalid := [name for name, value in values.items() if not (math.isfinite(value) and value >= 0)]:
            raise SpecError(f"Loss weights must be at least 0: {', '.join(invalid)}.")
        if not any(values.values()):
            raise SpecError("All loss weights are 0, so there is nothing to learn. Set at least one.")


@dataclass(frozen=True, slots=True)
class GroupLoss:
    """The loss of the coarse-to-fine network, which replaces `LossWeights` (SWINV2_SPEC section 4).

    `quality`, `contrast` and `rank` weigh the terms; one of weight 0 is not computed. `quality_form` is the mean
    absolute error or (1 - Pearson) / 2; `contrast_form` compares the means of half groups or single samples. `margin`
    None is the difference of the labels. With `levels`, a batch holds this number of levels of the same references;
    0 draws single samples, and `rank` then orders the whole batch.

    Raises:
        SpecError: a weight that is negative or not finite, all weights 0, or a contrast without levels.
    """

    quality: float = 1.0
    contrast: float = 0.1
    rank: float = 1.0
    quality_form: Literal["l1", "plcc"] = "l1"
    contrast_form: Literal["halves", "samples"] = "halves"
    temperature: float = 0.5
    margin: float | None = 0.05
    gap: float = 0.01
    levels: int = 4

    def __post_init__(self) -> None:
        weights = {"quality": self.quality, "contrast": self.contrast, "rank": self.rank}
        if invalid := [name for name, value in weights.items() if not (math.isfinite(value) and value >= 0)]:
            raise SpecError(f"Weights of group_loss must be at least 0: {', '.join(invalid)}.")
        if not any(weights.values()):
            raise SpecError("All weights of group_loss are 0, so there is nothing to learn. Set at least one.")
        if self.temperature <= 0 or self.gap < 0 or self.levels < 0 or (self.margin is not None and self.margin < 0):
            raise SpecError("group_loss: temperature must be above 0, and gap, levels and margin at least 0.")
        if self.contrast and self.levels < 2:
            raise SpecError("group_loss.contrast compares levels. Set group_loss.levels to 2 or more, or contrast = 0.")


@dataclass(frozen=True, slots=True)
class Optimiser:
    """Settings of AdamW as published (KVQ_SPEC section 5): warm-up, cosine, decay of every tensor, a slower backbone.

    `backbone_factor` multiplies the learning rate of the tensors of the backbone. `clip_norm` limits the norm of the
    whole gradient, None does not. With `ema_decay` 0 the averaged weights are the last ones. The coarse-to-fine
    network is decayed as SWINV2_SPEC section 5 says: without norms, biases, embeddings and scales.
    """

    learning_rate: float = 5e-4
    backbone_factor: float = 0.1
    weight_decay: float = 0.05
    warmup_steps: int = 0
    clip_norm: float | None = None
    ema_decay: float = 0.999


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """One training: `steps` steps of `batch_size` clips; every `renditions` clips in a row are of the same frames.

    `cube` is (frames, rows, columns) of the lpc cubes. `scale` is the lowest and the highest possible label.
    `validation_share` of the scenes is held out. Every `validate_every` steps the weights are validated on them, and
    the best weights are kept; `patience` ends the training after that many validations without an improvement.
    With `measured` clips are what a KVQ network of statistics measures of pixels, instead of pixels.

    Raises:
        SpecError: values that contradict each other or are out of range.
    """

    config: NetworkConfig
    scale: tuple[float, float]
    steps: int
    batch_size: int
    loss: LossWeights = field(default_factory=LossWeights)
    optimiser: Optimiser = field(default_factory=Optimiser)
    initialisation: Initialisation = "published"
    cube: Grid = (2, 32, 32)
    renditions: int = 1
    dropout: float = 0.5
    precision: TrainPrecision = "fp32"
    seed: int = 0
    validation_share: float = 0.1
    validate_every: int = 500
    patience: int | None = None
    group_loss: GroupLoss | None = None
    measured: bool = False

    def __post_init__(self) -> None:
        if self.measured and not (isinstance(self.config, KvqConfig) and self.config.statistics):
            raise SpecError("views.measured needs model.statistics = 1: the input of other networks is pixels.")
        if self.measured and self.loss.lpc:
            raise SpecError("views.measured and loss.lpc exclude each other: cubes are cut from pixels.")
        if isinstance(self.config, CtfConfig) != (self.group_loss is not None):
            raise SpecError("group_loss belongs to a coarse-to-fine network, and such a network needs it.")
        if self.group_loss is not None and self.group_loss.levels and self.batch_size % self.group_loss.levels:
            raise SpecError(
                f"batch_size {self.batch_size} is not a multiple of group_loss.levels = {self.group_loss.levels}."
            )
        low, high = self.scale
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise SpecError(f"Invalid scale {self.scale}: the lowest label must be below the highest.")
        if self.batch_size < 2:
            raise SpecError("batch_size must be at least 2: plcc and rank compare the clips of a batch.")
        if self.renditions < 1 or self.batch_size % self.renditions:
            raise SpecError(
                f"batch_size {self.batch_size} is not a multiple of training.renditions = {self.renditions}."
            )
        if self.loss.pairs and self.renditions == 1:
            raise SpecError("loss.pairs compares renditions of the same frames. Set training.renditions to 2 or more.")
        if min(self.steps, self.validate_every) < 1 or (self.patience is not None and self.patience < 1):
            raise SpecError("steps, validate_every and patience must be at least 1.")
        if not 0 <= self.validation_share < 1:
            raise SpecError("validation_share must be at least 0 and below 1.")

    def digest(self) -> str:
        """Return the sha256 hex of all settings: equal digests and equal data give the same weights."""
        added = {"group_loss": None, "measured": False}
        used = {name: value for name, value in asdict(self).items() if name not in added or value != added[name]}
        return hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Machine:
    """Device, threads and memory: the weights depend on none of it, except for rounding.

    `recompute` computes blocks again in the backward pass instead of keeping their activations: less memory, a third
    more time. `checkpoint_every` is the number of steps that a crash may cost.
    """

    device: Device = "cpu"
    num_threads: int | None = None
    recompute: bool = False
    checkpoint_every: int = 100
