"""A streamed model for tests, and decoders of its videos that fail between two chunks.

Its score is the mean over frames of (t + 1) times the mean of frame t: every frame at its place counts. It is
registered like a third-party model, by the entry point of a distribution that `install` writes.

A file name selects what its decoder does after two chunks, with chunks of `CHUNK_FRAMES` frames:

crash-once*   the child crashes with SIGSEGV, the first time only      crash-always*  every time
restart*      the reader has returned wrong frames, and returns them again
"""

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.frames import EveryFrame, FrameRequest, Planes
from kvq_batch.domain.scorer import ModelCard, ModelOptions, Prediction, ScorerSpec
from kvq_batch.engine.decode_worker import DecodeWorker
from kvq_batch.media import decode
from kvq_batch.media.decode import DecodeTask, VideoLayout
from kvq_batch.media.decoders import DecoderName, FrameReader, Picture, open_reader
from kvq_batch.media.probe import Probed

FRAMES = FrameRequest(EveryFrame(), (36, 64), is_streamed=True)
CHUNK_FRAMES = 7
CARD = ModelCard("frame-means", "1", "0" * 64, "handcrafted", "means of all frames, for tests")


def score_of(frames: NDArray[np.uint8]) -> float:
    """Return the score of all frames [T, H, W, 3] of a video."""
    means = frames.reshape(len(frames), -1).mean(axis=1)
    return float((means * np.arange(1, len(means) + 1)).mean())


class FrameMeansScorer:
    spec = ScorerSpec(CARD, FRAMES, devices=("cpu",))

    def score(self, clips: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        """Return the mean of each frame of each chunk."""
        return [Prediction(0.0, partial=clip.reshape(len(clip), -1).mean(axis=1)[:, None]) for clip in clips]


class FrameMeansPooler:
    def pool(self, partial: NDArray[Any]) -> Prediction:
        """Return the prediction of all frames."""
        assert partial.dtype == np.float64
        return Prediction(float((partial[:, 0] * np.arange(1, len(partial) + 1)).mean()))


class FrameMeansFamily:
    """See `kvq_batch.models.registry.ModelFamily` and `PoolingFamily`."""

    summary = "means of all frames"

    def describe(self, options: ModelOptions) -> ScorerSpec:
        return FrameMeansScorer.spec

    def build(self, options: ModelOptions) -> FrameMeansScorer:
        return FrameMeansScorer()

    def build_pooler(self, options: ModelOptions) -> FrameMeansPooler:
        return FrameMeansPooler()


family = FrameMeansFamily()


class Stutter:
    """A reader that returns the first frames wrong, and then again and right."""

    def __init__(self, reader: FrameReader) -> None:
        self._reader = reader
        self.frames = reader.frames
        self._is_first = True

    def pictures(
        self, path: Path, probed: Probed, wanted: NDArray[np.int64], num_threads: int
    ) -> Iterator[tuple[int, Picture]]:
        if self._is_first:
            self._is_first = False
            frames = list(self._reader.frames(path, probed, wanted[: 3 * CHUNK_FRAMES], num_threads))
            yield from ((number, Wrong(rgb)) for number, rgb in frames)
        yield from self._reader.pictures(path, probed, wanted, num_threads)


class Wrong:
    """A picture in false colours."""

    def __init__(self, rgb: NDArray[np.uint8]) -> None:
        self._rgb = rgb

    def rgb(self) -> NDArray[np.uint8]:
        return ~self._rgb

    def yuv(self, kind: Planes) -> tuple[NDArray[Any], ...]:
        raise NotImplementedError


def decode_in_parts(task: DecodeTask, scratch_file: Path) -> Iterator[VideoLayout]:
    """Yield the parts of a video as `decode.run_task` does, and fail after the second one."""
    name, once = task.path.name, task.path.with_suffix(".was-here")

    def stuttering(choice: DecoderName) -> tuple[FrameReader, str]:
        reader, version = open_reader(choice)
        return (Stutter(reader) if name.startswith("restart") else reader), version

    with mock.patch.multiple(decode, STREAM_CHUNK_BYTES=CHUNK_FRAMES * 36 * 64 * 3, open_reader=stuttering):
        parts = decode.run_task(task, scratch_file)
        assert isinstance(parts, Iterator)
        for index, part in enumerate(parts):
            yield part
            if index == 1 and (
                name.startswith("crash-always") or (name.startswith("crash-once") and not once.exists())
            ):
                once.touch()
                os.kill(os.getpid(), signal.SIGSEGV)


class PartsDecodeWorker(DecodeWorker):
    """The decode worker with children that run `decode_in_parts`."""

    task_function: ClassVar[str] = "tests.support.frame_means:decode_in_parts"


def install(folder: Path) -> Path:
    """Create a folder that registers the model if it is on `sys.path`."""
    distribution = folder / "kvq_batch_frame_means-1.dist-info"
    distribution.mkdir(parents=True)
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: kvq-batch-frame-means\nVersion: 1\n")
    entry = "frame-means = tests.support.frame_means:family\n"
    (distribution / "entry_points.txt").write_text(f"[kvq_batch.models]\n{entry}")
    return folder
