"""A model of the tests that counts: every clip that it ever scored is one line of a file, whatever became of the run.

Its "weights" are a small JSON file, `Tally`: another file is another model, as with real weights. It is registered as
a third party's model is, by the entry point of a distribution, which `install` writes.
"""

import hashlib
import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.frames import FrameRequest, Sampling
from kvq_batch.domain.scorer import ModelCard, ModelOptions, Prediction, ScorerSpec

FRAMES = FrameRequest(Sampling(num_fragments=1, frames_per_fragment=2, stride=1), (32, 32))
MAP_SHAPE = (1, 2, 2)
BLACK = 3.0
"""A clip darker than that, of 255, is more than the scorer can bear."""

EATEN_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Tally:
    """`file` gets one line a clip; a clip takes `seconds`; `shift` is added to every score."""

    file: str
    seconds: float = 0.0
    shift: float = 0.0

    def write(self, path: Path) -> Path:
        path.write_text(json.dumps(asdict(self)))
        return path


class TallyScorer:
    """Scores a clip by its mean, with maps that mean the same."""

    def __init__(self, spec: ScorerSpec, tally: Tally) -> None:
        self.spec = spec
        self._tally = tally

    def score(self, clips: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        """One prediction per clip uint8 RGB [T, H, W, 3]; each is counted when it is made, not before."""
        return [self._score(clip) for clip in clips]

    def _score(self, clip: NDArray[np.uint8]) -> Prediction:
        time.sleep(self._tally.seconds)
        if clip.mean() < BLACK:
            # As the kernel does with a process that takes more than there is, but long before there is no more.
            eaten = b"1" * EATEN_BYTES
            os.kill(os.getpid(), signal.SIGKILL if eaten else 0)
        score = float(clip.mean()) / 255 + self._tally.shift
        texture = np.full(MAP_SHAPE, score, np.float32)
        count(Path(self._tally.file))
        return Prediction(score, texture=texture, saliency=np.ones(MAP_SHAPE, np.float32))


class TallyFamily:
    """See `kvq_batch.models.registry.ModelFamily`."""

    summary = "counts its clips"

    def describe(self, options: ModelOptions) -> ScorerSpec:
        if options.weights is None:
            raise SpecError("the model of the tests needs a file with its tally as weights")
        digest = hashlib.sha256(Path(options.weights).read_bytes()).hexdigest()
        card = ModelCard("tally", "1", digest, "handcrafted", self.summary)
        return ScorerSpec(card, FRAMES, maps=("texture", "saliency"), devices=("cpu",))

    def build(self, options: ModelOptions) -> TallyScorer:
        spec = self.describe(options)
        return TallyScorer(spec, Tally(**json.loads(Path(str(options.weights)).read_text())))


tally = TallyFamily()


def count(file: Path) -> None:
    """One more line; whole lines, however many processes write at once."""
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(handle, b"1\n")
    os.close(handle)


def counted(file: Path) -> int:
    """How many clips were scored in truth."""
    return len(file.read_bytes().splitlines()) if file.exists() else 0


def install(folder: Path) -> Path:
    """Makes a folder that, on the path of a Python, registers the model."""
    distribution = folder / "kvq_batch_tally-1.dist-info"
    distribution.mkdir(parents=True)
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: kvq-batch-tally\nVersion: 1\n")
    (distribution / "entry_points.txt").write_text("[kvq_batch.models]\ntally = tests.support.tally:tally\n")
    return folder
