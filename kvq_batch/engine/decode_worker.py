"""The decoding stage: items in, decoded clips out, whatever the videos do to their decoder.

    fetch (this process, one video ahead) -> probe, sample, decode, resize (a child process) -> rows of the stream

The worker never opens a video itself: a file that kills its decoder kills a child, and the next video gets a fresh
one. Long videos are handed to the child in ranges of clips, so that memory is bounded by a range and not by the video.
This module decides nothing about retries; the driver does.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from kvq_batch.config.job import Job
from kvq_batch.domain.errors import DecodeError, ItemError, TransientError
from kvq_batch.domain.frames import FrameRequest
from kvq_batch.domain.video import ClipPolicy, Window
from kvq_batch.engine.stream import ClipRow, StreamRows
from kvq_batch.media.decoders import DecoderChoice
from kvq_batch.media.isolation import DECODE_TASK, IsolatedDecoder
from kvq_batch.media.probe import Probed, VideoLimits
from kvq_batch.media.scratch import sweep
from kvq_batch.media.tasks import DecodedVideo, DecodeTask
from kvq_batch.storage.fetch import Fetcher, LocalVideo, sweep_dead
from kvq_batch.storage.options import StorageOptions
from kvq_batch.storage.redact import redact

CLIPS_PER_TASK = 4
"""Clips that the child decodes in one go: 77 MB of standard frames, enough to make the hand-over cheap."""

TABLE_BYTES = 64 * 2**20
"""Pixels that are handed on together: some standard clips, or hundreds of small ones."""


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """What a decoding worker must know; small and picklable."""

    requests: tuple[FrameRequest, ...]
    clips: ClipPolicy
    limits: VideoLimits
    timeout_s: float
    max_file_bytes: int
    max_memory_bytes: int
    decoder: DecoderChoice
    storage: StorageOptions
    scratch: str
    shared_memory: str

    @classmethod
    def of(cls, job: Job, requests: tuple[FrameRequest, ...]) -> "DecodeSettings":
        """The settings of `job` for the frames that its models want."""
        return cls(
            requests=requests,
            clips=job.clips.policy,
            limits=VideoLimits(job.limits.max_frame_pixels, job.hdr),
            timeout_s=job.limits.timeout_s,
            max_file_bytes=job.limits.max_file_bytes,
            max_memory_bytes=job.limits.max_memory_bytes,
            decoder=job.decode.decoder,
            storage=StorageOptions.from_spec(job.storage),
            scratch=job.decode.scratch or tempfile.gettempdir(),
            shared_memory=job.decode.shared_memory,
        )


class DecodeWorker:
    """Callable that Ray Data builds once per actor. `task_function` names what its children run."""

    task_function: ClassVar[str] = DECODE_TASK

    def __init__(self, settings: DecodeSettings) -> None:
        self._settings = settings
        scratch = Path(settings.scratch)
        # What a worker that was killed has left here is nobody's.
        sweep_dead(scratch)
        sweep(Path(settings.shared_memory))
        self._fetcher = Fetcher(settings.storage, scratch, settings.max_file_bytes)
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="fetch")
        self._decoder = IsolatedDecoder(
            1, Path(settings.shared_memory), settings.timeout_s, settings.max_memory_bytes, self.task_function
        )
        self._decoder.__enter__()

    def __call__(self, items: pa.Table) -> Iterator[pa.Table]:
        """Rows of the stream, some videos at a time, or some clips of a long one."""
        rows = items.to_pylist()
        made = StreamRows(len(self._settings.requests))
        fetched = [self._fetch(row) for row in rows[:1]]
        for number, row in enumerate(rows):
            fetched += [self._fetch(following) for following in rows[number + 1 : number + 2]]
            for _ in self._decode_item(row, fetched.pop(0), made):
                if made.num_bytes >= TABLE_BYTES:
                    yield made.take()
        if len(made):
            yield made.take()

    def _fetch(self, item: dict[str, Any]) -> "Future[_Fetched]":
        return self._ahead.submit(_Fetched, self._fetcher.fetch(item["uri"], item["content_id"], item["size_bytes"]))

    def _decode_item(self, item: dict[str, Any], fetching: "Future[_Fetched]", made: StreamRows) -> Iterator[None]:
        """Adds the item's rows to `made`; yields whenever a reader may take what is there."""
        key = (item["item"], item["attempt"], item["model_mask"])
        try:
            with ExitStack() as stack:
                fetched = fetching.result()
                stack.callback(fetched.close)
                yield from self._clips(item, fetched.video, made)
        except ItemError as error:
            made.add_failure(*key, error)
        except TransientError as error:
            made.add_failure(*key, DecodeError("no_room", redact(str(error))))
        except Exception as error:  # noqa: BLE001 - the worker's outermost frame: one video never takes another along
            made.add_failure(*key, DecodeError(type(error).__name__, redact(str(error))))

    def _clips(self, item: dict[str, Any], video: LocalVideo, made: StreamRows) -> Iterator[None]:
        settings = self._settings
        task = DecodeTask(
            path=video.path,
            key=item["video_id"],
            requests=settings.requests,
            clips=_windows(item) or settings.clips,
            max_clips=CLIPS_PER_TASK,
            limits=settings.limits,
            decoder=settings.decoder,
        )
        first_clip, num_clips = 0, 1
        probed: Probed | None = None
        while first_clip < num_clips:
            started = time.perf_counter()
            part = self._decoder.submit(replace(task, first_clip=first_clip, probed=probed)).result()
            decode_s = (time.perf_counter() - started) / len(part.clips)
            num_clips, probed = part.num_clips, part.probed
            first_clip += len(part.clips)
            if first_clip >= num_clips:
                # A file that is read in place may have changed under the decoder: then no clip of it counts.
                video.confirm()
            self._add(item, video, part, decode_s, made)
            yield

    def _add(
        self, item: dict[str, Any], video: LocalVideo, part: DecodedVideo, decode_s: float, made: StreamRows
    ) -> None:
        facts = json.dumps(asdict(part.facts))
        for clip in part.clips:
            row = ClipRow(
                item=item["item"],
                attempt=item["attempt"],
                model_mask=item["model_mask"],
                clip_index=clip.clip_index,
                num_clips=clip.num_clips,
                start_s=clip.window.start_s,
                end_s=min(clip.window.end_s, part.facts.duration_s),
                facts=facts,
                size_bytes=video.size_bytes,
                decoder=part.decoder,
                content_id=video.content_id,
                fetch_s=video.seconds,
                fetch_attempts=video.attempts,
                decode_s=decode_s,
            )
            made.add_clip(row, clip.frames)


class _Fetched:
    """A fetched video that lives until it is closed, whichever thread does that."""

    def __init__(self, fetching: AbstractContextManager[LocalVideo]) -> None:
        self._fetching = fetching
        self.video = fetching.__enter__()

    def close(self) -> None:
        self._fetching.__exit__(None, None, None)


def _windows(item: dict[str, Any]) -> tuple[Window, ...] | None:
    """The stretch that the catalog names for this row, if it names one."""
    if item["start_s"] is None and item["end_s"] is None:
        return None
    return (Window(item["start_s"] or 0.0, float("inf") if item["end_s"] is None else item["end_s"]),)
