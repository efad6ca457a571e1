"""What a training is, as plain frozen values: everything here but `Machine` changes the weights that come out.

The command line makes these out of a job; another program may make them by itself. This module reads no file and
computes nothing of the training.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Literal

from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.scorer import Device
from kvq_batch.models.kvq.config import Grid, KvqConfig

Initialisation = Literal["published", "fan-in"]
TrainPrecision = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True)
class LossWeights:
    """What each term of the loss counts; the defaults are the published code's (the paper has lpc 0.05).

    `score` and `cells` weigh absolute errors of scores and of labelled cells of the texture map, in units of the
    labels' scale mapped to 0..1; `pairs` those of differences between versions of the same frames. A term of weight 0
    is not computed.
    """

    plcc: float = 1.0
    rank: float = 0.5
    lpc: float = 0.02
    score: float = 0.0
    cells: float = 0.0
    pairs: float = 0.0

    def __post_init__(self) -> None:
        values = asdict(self)
        if wrong := [name for name, value in values.items() if not (math.isfinite(value) and value >= 0)]:
            raise SpecError(f"loss weights: {', '.join(wrong)} must be at least 0")
        if not any(values.values()):
            raise SpecError("loss weights: every one is 0, so there is nothing to learn")


@dataclass(frozen=True, slots=True)
class Optimiser:
    """AdamW as published (KVQ_SPEC section 5): warm-up, cosine, decay of every tensor, a slower backbone.

    `backbone_factor` multiplies the rate of every tensor whose name contains "backbone". `clip_norm` bounds the norm of
    the whole gradient, None leaves it. `ema_decay` 0 makes the averaged weights the last ones.
    """

    learning_rate: float = 5e-4
    backbone_factor: float = 0.1
    weight_decay: float = 0.05
    warmup_steps: int = 0
    clip_norm: float | None = None
    ema_decay: float = 0.999


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """One training: `steps` steps of `batch_size` clips, of which every `versions` in a row are of the same frames.

    `cube` is (frames, rows, columns) of the lpc cubes. `scale` is the lowest and highest label that is possible.
    `validation_share` of the sources is held out, validated on every `validate_every` steps, and decides which weights
    are kept; `patience` ends the training after so many validations without a better one.
    """

    config: KvqConfig
    scale: tuple[float, float]
    steps: int
    batch_size: int
    loss: LossWeights = field(default_factory=LossWeights)
    optimiser: Optimiser = field(default_factory=Optimiser)
    initialisation: Initialisation = "published"
    cube: Grid = (2, 32, 32)
    versions: int = 1
    dropout: float = 0.5
    precision: TrainPrecision = "fp32"
    seed: int = 0
    validation_share: float = 0.1
    validate_every: int = 500
    patience: int | None = None

    def __post_init__(self) -> None:
        low, high = self.scale
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise SpecError(f"scale {self.scale}: the lowest label must be below the highest")
        if self.batch_size < 2:
            raise SpecError("batch_size must be at least 2: plcc and rank compare the clips of a batch")
        if self.versions < 1 or self.batch_size % self.versions:
            raise SpecError(f"batch_size {self.batch_size} is not made of whole sets of {self.versions} versions")
        if self.loss.pairs and self.versions == 1:
            raise SpecError("loss.pairs compares versions of the same frames; set training.versions to 2 or more")
        if min(self.steps, self.validate_every) < 1 or (self.patience is not None and self.patience < 1):
            raise SpecError("steps, validate_every and patience must be at least 1")
        if not 0 <= self.validation_share < 1:
            raise SpecError("validation_share must be at least 0 and below 1")

    def digest(self) -> str:
        """sha256 hex of everything here: two trainings of one digest and one data set give the same weights."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Machine:
    """Where and how comfortably: what no weight depends on, but for rounding.

    `recompute` computes blocks again in the backward pass instead of keeping what they held: less memory, a third more
    time. `checkpoint_every` is the number of steps that a crash may cost.
    """

    device: Device = "cpu"
    num_threads: int | None = None
    recompute: bool = False
    checkpoint_every: int = 100
