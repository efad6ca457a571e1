"""Extractors of features: they measure the frames of a clip one by one, in the process that decodes them.

Memory does not grow with the length of a video: vectors are averaged as they come. The exception is `CentreFrames`,
whose results are pictures. Each class is an `Extraction` (domain/frames.py), and its arguments are its options.
"""

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.errors import ScoreError
from kvq_batch.domain.frames import Frame, SampledClip
from kvq_batch.features import brisque, niqe
from kvq_batch.features.chunks import Chunk, chunks
from kvq_batch.features.imresize import imresize
from kvq_batch.features.nss_maps import Planes, planes_to_rgb, rounded_grey
from kvq_batch.features.pooling import RunningMean
from kvq_batch.features.rapique import chunk_features, frame_features

Real = NDArray[np.float64]


class NssExtraction:
    """The 1836 NSS features of RAPIQUE from planes yuv420p at native size: float32 [1, 1836], the mean over chunks."""

    def __init__(self, clip: SampledClip) -> None:
        self._first = clip.first
        self._waiting = [_OpenChunk(chunk) for chunk in chunks(clip.num_frames, clip.facts.frame_rate)]
        self._mean = RunningMean()

    def add(self, frame: Frame) -> None:
        """See `Extraction.add`."""
        number, planes = frame.number - self._first, even_planes(frame)
        spatial: Real | None = None
        for chunk in self._waiting:
            if chunk.first > number:
                break
            if number in (chunk.frames.previous, chunk.frames.following):
                spatial = frame_features(planes) if spatial is None else spatial
                chunk.spatial[number] = spatial
            if number in chunk.frames.temporal:
                chunk.lumas.append(planes[0].copy())
            elif not chunk.frames.temporal:
                # Missing frames count as black.
                chunk.lumas = [np.zeros_like(planes[0])]
        while self._waiting and self._waiting[0].frames.last <= number:
            chunk = self._waiting.pop(0)
            first, second = chunk.spatial[chunk.frames.previous], chunk.spatial[chunk.frames.following]
            self._mean.add(chunk_features(first, second, chunk.lumas))

    def finish(self) -> NDArray[np.float32]:
        """See `Extraction.finish`."""
        return self._mean.value()[None].astype(np.float32)


class _OpenChunk:
    """A chunk whose frames are still coming."""

    def __init__(self, frames: Chunk) -> None:
        self.frames = frames
        self.first = min(frames.previous, *frames.temporal[:1], frames.following)
        self.spatial: dict[int, Real] = {}
        self.lumas: list[NDArray[np.uint8]] = []


def even_planes(frame: Frame) -> Planes:
    """Return Y, U and V without the last row or column of an odd luma plane (STUDY_SPEC section 2.7)."""
    y, u, v = frame.planes
    height, width = y.shape[0] // 2, y.shape[1] // 2
    return y[: 2 * height, : 2 * width], u[:height, :width], v[:height, :width]


class CentreFrames:
    """RGB pictures of planes yuv420p, each resized to `side` x `side`: uint8 [T, side, side, 3]."""

    def __init__(self, clip: SampledClip, side: int) -> None:
        self._side = side
        self._pictures: list[NDArray[np.uint8]] = []

    def add(self, frame: Frame) -> None:
        """See `Extraction.add`."""
        self._pictures.append(imresize(planes_to_rgb(even_planes(frame)), (self._side, self._side)))

    def finish(self) -> NDArray[np.uint8]:
        """See `Extraction.finish`."""
        return np.stack(self._pictures)


class NiqeExtraction:
    """NIQE of RGB frames at native size: float32 [1, 37], the distance and then the 36 features, means over frames.

    A frame without detail, such as a black one, has no distance and is left out.
    """

    def __init__(self, clip: SampledClip) -> None:
        if min(clip.facts.width_px, clip.facts.height_px) < niqe.MIN_SIDE_PX:
            size = f"{clip.facts.width_px} x {clip.facts.height_px}"
            raise ScoreError(
                "frame_too_small", f"Its frames have {size} pixels. NIQE needs {niqe.MIN_SIDE_PX} on both sides.", True
            )
        self._mean, self._covariance = niqe.pristine_model()
        self._found = RunningMean()

    def add(self, frame: Frame) -> None:
        """See `Extraction.add`."""
        features = niqe.niqe_features(rounded_grey(frame.planes[0]))
        distance = niqe.niqe_distance(features, self._mean, self._covariance)
        if np.isfinite(distance):
            is_defined = ~np.isnan(features)
            means = np.where(is_defined, features, 0).sum(axis=0) / is_defined.sum(axis=0)
            self._found.add(np.array([distance, *means]))

    def finish(self) -> NDArray[np.float32]:
        """See `Extraction.finish`. Raises: ScoreError if no frame has a distance."""
        if not self._found.num_vectors:
            raise ScoreError("no_detail", "None of its frames has enough detail for NIQE, as if all were black.", True)
        return self._found.value()[None].astype(np.float32)


class BrisqueExtraction:
    """The 36 BRISQUE features of luma planes at native size, as the authors' release: float32 [1, 36], the mean."""

    def __init__(self, clip: SampledClip) -> None:
        _check_brisque(clip)
        self._mean = RunningMean()

    def add(self, frame: Frame) -> None:
        """See `Extraction.add`."""
        self._mean.add(brisque.live_features(frame.planes[0]))

    def finish(self) -> NDArray[np.float32]:
        """See `Extraction.finish`."""
        return self._mean.value()[None].astype(np.float32)


class OpencvBrisqueExtraction:
    """The 36 BRISQUE features of OpenCV of each RGB frame at native size: float32 [T, 36], NaN for a flat frame."""

    def __init__(self, clip: SampledClip) -> None:
        _check_brisque(clip)
        self._found: list[Real] = []

    def add(self, frame: Frame) -> None:
        """See `Extraction.add`."""
        features = brisque.opencv_features(brisque.opencv_grey(frame.planes[0]))
        self._found += [features] * len(frame.rows)

    def finish(self) -> NDArray[np.float32]:
        """See `Extraction.finish`."""
        return np.stack(self._found).astype(np.float32)


def _check_brisque(clip: SampledClip) -> None:
    """Raises: ScoreError for frames that are too small."""
    if min(clip.facts.width_px, clip.facts.height_px) < brisque.MIN_SIDE_PX:
        size = f"{clip.facts.width_px} x {clip.facts.height_px}"
        message = f"Its frames have {size} pixels. BRISQUE needs {brisque.MIN_SIDE_PX} on both sides."
        raise ScoreError("frame_too_small", message, True)
