"""Decodes labelled videos once into files of frames, for a training that reads them many times.

A file is named by the video's content id, the frames that were asked for and the versions of the algorithms, so that a
changed video is decoded anew and everything else is found again. A video that is missing or broken is named, and never
replaced. This module knows no label.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.errors import ItemError, SpecError, shorten_list
from kvq_batch.domain.frames import ALGORITHMS, FrameRequest
from kvq_batch.domain.identity import UNKNOWN_CONTENT, fingerprint
from kvq_batch.media.isolation import IsolatedDecoder
from kvq_batch.media.probe import VideoLimits
from kvq_batch.media.tasks import DecodeTask
from kvq_batch.storage.fetch import Fetcher


@dataclass(frozen=True, slots=True)
class TrainingVideo:
    """A video to decode; `content_id` names its bytes."""

    video_id: str
    uri: str
    content_id: str


def frame_files(video: TrainingVideo, requests: Sequence[FrameRequest], folder: Path) -> tuple[Path, ...]:
    """Where the frames of each request stand, or will stand."""
    names = [
        fingerprint(
            {
                "uri": video.uri,
                "content_id": video.content_id,
                "key": video.video_id,
                "request": asdict(request),
                "algorithms": ALGORITHMS,
            }
        )
        for request in requests
    ]
    return tuple(folder / name[:2] / f"{name[:32]}.npy" for name in names)


def decode_frames(
    videos: Sequence[TrainingVideo],
    requests: Sequence[FrameRequest],
    folder: Path,
    fetcher: Fetcher,
    decoder: IsolatedDecoder,
    limits: VideoLimits,
    num_parallel: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[tuple[Path, ...]]:
    """The files of every video, those that are not there yet decoded; `progress` hears (done, total).

    Raises:
        SpecError: videos that cannot be fetched or decoded, after all were tried: how many, and the first by name.
    """
    unseen = [video.video_id for video in videos if video.content_id == UNKNOWN_CONTENT]
    if unseen:
        raise SpecError(f"{_some(unseen)} cannot be seen where the list says; correct the list, or bring them back")

    def one(video: TrainingVideo) -> str | None:
        paths = frame_files(video, requests, folder)
        if all(path.exists() for path in paths):
            return None
        try:
            with fetcher.fetch(video.uri, video.content_id) as local:
                task = DecodeTask(path=local.path, key=video.video_id, requests=tuple(requests), limits=limits)
                clip = decoder.submit(task).result().clips[0]
                local.check_unchanged()
            for path, frames in zip(paths, clip.frames, strict=True):
                _write(path, frames.pixels)
        except ItemError as error:
            return f"{video.video_id} ({error})"
        except OSError as error:
            raise SpecError(
                f"{folder} cannot be written ({error}); make room, or name another in data.frames"
            ) from error
        return None

    failed = []
    with ThreadPoolExecutor(num_parallel, thread_name_prefix="decode") as threads:
        for done, failure in enumerate(threads.map(one, videos), 1):
            if failure is not None:
                failed.append(failure)
            progress(done, len(videos))
    if failed:
        raise SpecError(
            f"{len(failed)} of {len(videos)} videos cannot be trained on: {_some(failed)}; mend them, or leave them "
            "out of the list"
        )
    return [frame_files(video, requests, folder) for video in videos]


def _write(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two videos of equal bytes and name may be written at once.
    partial = path.with_name(f".{path.name}.{hashlib.sha256(os.urandom(8)).hexdigest()[:8]}.partial")
    with partial.open("wb") as file:
        np.save(file, pixels, allow_pickle=False)
    partial.replace(path)


def _some(names: Sequence[str]) -> str:
    return shorten_list(names, separator="; ")
