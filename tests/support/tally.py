"""A model for tests that counts its inferences: each scored clip is one line of a file, however the run ends.

Its "weights" are a small JSON file, `Tally`: another file is another model, as with real weights. It is registered like
a third-party model, by the entry point of a distribution that `install` writes.
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
"""A clip with a lower mean (0 to 255) makes the scorer allocate memory and die."""

ALLOCATED_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Tally:
    """`file` gets one line per clip, a clip takes `seconds`, and `shift` is added to every score.

    With `device_error`, a black clip does not kill the process: it and all later clips of the process raise a
    RuntimeError with this text, as after an error that breaks a CUDA context. With `capacity`, calls with more clips
    raise the error of cuBLAS without memory.
    """

    file: str
    seconds: float = 0.0
    shift: float = 0.0
    device_error: str = ""
    capacity: int | None = None

    def write(self, path: Path) -> Path:
        path.write_text(json.dumps(asdict(self)))
        return path


class TallyScorer:
    """Scores a clip by its mean, with maps that give the same score."""

    def __init__(self, spec: ScorerSpec, tally: Tally) -> None:
        self.spec = spec
        self._tally = tally
        self._is_device_lost = False

    def score(self, clips: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        """Return one prediction per clip uint8 RGB [T, H, W, 3]; each is counted when it is finished."""
        if self._tally.capacity is not None and len(clips) > self._tally.capacity:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return [self._score(clip) for clip in clips]

    def _score(self, clip: NDArray[np.uint8]) -> Prediction:
        time.sleep(self._tally.seconds)
        if self._tally.device_error:
            self._is_device_lost |= bool(clip.mean() < BLACK)
            if self._is_device_lost:
                raise RuntimeError(self._tally.device_error)
        if clip.mean() < BLACK:
            # What the kernel does to a process that needs too much memory, but long before memory runs out.
            block = b"1" * ALLOCATED_BYTES
            os.kill(os.getpid(), signal.SIGKILL if block else 0)
        score = float(clip.mean()) / 255 + self._tally.shift
        texture = np.full(MAP_SHAPE, score, np.float32)
        count(Path(self._tally.file))
        return Prediction(score, texture=texture, saliency=np.ones(MAP_SHAPE, np.float32))


class TallyFamily:
    """See `kvq_batch.models.registry.ModelFamily`."""

    summary = "counts its clips"

    def describe(self, options: ModelOptions) -> ScorerSpec:
        if options.weights is None:
            raise SpecError("the model tally needs weights: a file that Tally.write made")
        digest = hashlib.sha256(Path(options.weights).read_bytes()).hexdigest()
        card = ModelCard("tally", "1", digest, "handcrafted", self.summary)
        return ScorerSpec(card, FRAMES, maps=("texture", "saliency"), devices=("cpu",))

    def build(self, options: ModelOptions) -> TallyScorer:
        spec = self.describe(options)
        return TallyScorer(spec, Tally(**json.loads(Path(str(options.weights)).read_text())))


tally = TallyFamily()


def count(file: Path) -> None:
    """Append one line; lines of concurrent processes do not mix."""
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(handle, b"1\n")
    os.close(handle)


def counted(file: Path) -> int:
    """Return the number of scored clips."""
    return len(file.read_bytes().splitlines()) if file.exists() else 0


def install(folder: Path) -> Path:
    """Create a folder that registers the model if it is on `sys.path`."""
    distribution = folder / "kvq_batch_tally-1.dist-info"
    distribution.mkdir(parents=True)
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: kvq-batch-tally\nVersion: 1\n")
    (distribution / "entry_points.txt").write_text("[kvq_batch.models]\ntally = tests.support.tally:tally\n")
    return folder
