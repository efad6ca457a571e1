"""The decoding stage: items in, decoded clips out.

    fetch (this process, one video ahead) -> probe, sample, decode, resize (a child process) -> rows of the stream

The worker itself never opens a video. A file that crashes or hangs its decoder costs one child process, and the next
video gets a new one. Long videos are decoded in ranges of clips, so that memory is bounded by a range and not by the
video. The driver decides about retries.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from kvq_batch.config.job import Job, Limits, MediaFiles, Storage
from kvq_batch.domain.errors import DecodeError, FetchError, ItemError, TransientError
from kvq_batch.domain.frames import FrameRequest
from kvq_batch.domain.video import ClipPolicy, DecodedClip, Window
from kvq_batch.engine.stream import ClipRow, StreamRows
from kvq_batch.media.decode import DecodedVideo, DecodeTask
from kvq_batch.media.decoders import DecoderChoice
from kvq_batch.media.isolation import DECODE_TASK, IsolatedDecoder
from kvq_batch.media.probe import Probed, VideoLimits
from kvq_batch.media.scratch import scratch_directories, sweep
from kvq_batch.storage.fetch import Fetcher, LocalVideo, remove_stale_folders
from kvq_batch.storage.options import StorageOptions
from kvq_batch.storage.redact import redact

CLIPS_PER_TASK = 4
"""Clips that a child decodes per task: 77 MB of frames of 448 x 448, enough to make the transfer cheap."""

CLEANUP_TIMEOUT_S = 30.0
"""Longest wait for killed workers to exit. On a machine with eight times more load than cores they took over 5 s
(measured). `cleanup_scratch` waits only while files are left."""

TABLE_BYTES = 64 * 2**20
"""Pixels per table that the stage yields: a few clips of 448 x 448, or hundreds of small ones."""


@dataclass(frozen=True, slots=True)
class MediaSettings:
    """How a worker fetches and decodes videos on its machine; small and picklable."""

    limits: VideoLimits
    timeout_s: float
    max_file_bytes: int
    max_memory_bytes: int
    storage: StorageOptions
    scratch: str
    shared_memory: str

    @classmethod
    def of(cls, video_limits: VideoLimits, limits: Limits, decode: MediaFiles, storage: Storage) -> "MediaSettings":
        """Return the settings of a job with these sections."""
        return cls(
            limits=video_limits,
            timeout_s=limits.timeout_s,
            max_file_bytes=limits.max_file_bytes,
            max_memory_bytes=limits.max_memory_bytes,
            storage=StorageOptions.from_spec(storage),
            scratch=decode.scratch or tempfile.gettempdir(),
            shared_memory=decode.shared_memory,
        )

    def start(self, task_function: str = DECODE_TASK) -> tuple[Fetcher, IsolatedDecoder]:
        """Return a fetcher and a decoder with a running child, after deleting the leftover files of killed workers."""
        scratch, shared_memory = Path(self.scratch), Path(self.shared_memory)
        remove_stale_folders(scratch)
        sweep(shared_memory)
        fetcher = Fetcher(self.storage, scratch, self.max_file_bytes)
        decoder = IsolatedDecoder(1, shared_memory, self.timeout_s, self.max_memory_bytes, task_function)
        return fetcher, decoder.__enter__()


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """Settings of a decoding worker; small and picklable."""

    requests: tuple[FrameRequest, ...]
    clips: ClipPolicy
    decoder: DecoderChoice
    media: MediaSettings

    @classmethod
    def of(cls, job: Job, requests: tuple[FrameRequest, ...]) -> "DecodeSettings":
        """Return the settings of `job` for the frame requests of its models."""
        limits = VideoLimits(job.limits.max_frame_pixels, job.hdr)
        media = MediaSettings.of(limits, job.limits, job.decode, job.storage)
        return cls(requests, job.clips.policy, job.decode.decoder, media)


class DecodeWorker:
    """Worker that decodes videos in a child process. `task_function` names the function that the child runs."""

    task_function: ClassVar[str] = DECODE_TASK

    def __init__(self, settings: DecodeSettings) -> None:
        self._settings = settings
        self._fetcher, self._decoder = settings.media.start(self.task_function)
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="fetch")

    def __call__(self, items: pa.Table) -> Iterator[pa.Table | None]:
        """Yield rows of the stream, several videos per table or several clips of a long video; None is progress."""
        rows = items.to_pylist()
        decoded = StreamRows(len(self._settings.requests))
        fetched = [self._fetch(row) for row in rows[:1]]
        try:
            for number, row in enumerate(rows):
                fetched += [self._fetch(following) for following in rows[number + 1 : number + 2]]
                for _ in self._decode_item(row, fetched.pop(0), decoded):
                    yield decoded.take() if decoded.num_bytes >= TABLE_BYTES else None
                yield None
            if len(decoded):
                yield decoded.take()
        finally:
            # A cancelled run does not take the video that is being fetched.
            for fetching in fetched:
                fetching.add_done_callback(_close_fetched)

    def close(self) -> None:
        """Kill the child and remove its frames; a call in progress in another thread ends with failures."""
        self._decoder.__exit__(None, None, None)
        self._ahead.shutdown(wait=False, cancel_futures=True)

    def _fetch(self, item: dict[str, Any]) -> "Future[_Fetched]":
        return self._ahead.submit(_Fetched, self._fetcher.fetch(item["uri"], item["content_id"], item["size_bytes"]))

    def _decode_item(self, item: dict[str, Any], fetching: "Future[_Fetched]", decoded: StreamRows) -> Iterator[None]:
        """Add the item's rows to `decoded`; yield whenever the caller may take them."""
        key = (item["item"], item["attempt"], item["model_mask"])
        kind: type[ItemError] = FetchError
        try:
            with ExitStack() as stack:
                fetched = fetching.result()
                stack.callback(fetched.close)
                kind = DecodeError
                yield from self._decode_clips(item, fetched.video, decoded)
        except Exception as error:  # noqa: BLE001 - the worker's outermost frame: a bad video must not affect others
            decoded.add_failure(*key, as_item_error(error, kind))

    def _decode_clips(self, item: dict[str, Any], video: LocalVideo, decoded: StreamRows) -> Iterator[None]:
        settings = self._settings
        task = DecodeTask(
            path=video.path,
            key=item["video_id"],
            requests=settings.requests,
            clips=_windows(item) or settings.clips,
            max_clips=CLIPS_PER_TASK,
            limits=settings.media.limits,
            decoder=settings.decoder,
        )
        first_clip, num_clips = 0, 1
        probed: Probed | None = None
        while first_clip < num_clips:
            held: _Part | None = None
            spent_s = 0.0
            started = time.perf_counter()
            with closing(self._decoder.stream(replace(task, first_clip=first_clip, probed=probed))) as parts:
                for batch in parts:
                    seconds = time.perf_counter() - started
                    spent_s += seconds
                    # The last part of a decode that starts again is not passed on: no clip range is complete before.
                    if held is not None and held.decode_pass == _decode_pass(batch, held.decode_pass):
                        self._add(item, video, held, decoded)
                        yield
                    held = _Part(batch, seconds, spent_s, _decode_pass(batch, 0))
                    num_clips, probed = batch.num_clips, batch.probed
                    started = time.perf_counter()
            assert held is not None
            first_clip += task.max_clips
            if first_clip >= num_clips:
                # A file that is read where it is may have changed meanwhile: then no clip of it counts.
                video.check_unchanged()
            self._add(item, video, held, decoded)
            del held, batch
            yield

    def _add(self, item: dict[str, Any], video: LocalVideo, part: "_Part", decoded: StreamRows) -> None:
        batch = part.batch
        share = 1 / max(1, len(batch.clips))
        facts = json.dumps(asdict(batch.facts))
        for clip in batch.clips:
            row = ClipRow(
                item=item["item"],
                attempt=item["attempt"],
                model_mask=item["model_mask"],
                clip_index=clip.clip_index,
                num_clips=clip.num_clips,
                start_s=clip.window.start_s,
                end_s=min(clip.window.end_s, batch.facts.duration_s),
                facts=facts,
                size_bytes=video.size_bytes,
                decoder=batch.decoder,
                content_id=video.content_id,
                fetch_s=video.seconds,
                fetch_attempts=video.attempts,
                decode_s=part.seconds * share,
                # Clips of a range are decoded one after the other, so this is the share of the clips until this one.
                clip_decode_s=part.spent_s
                * (1 / (clip.clip_index % CLIPS_PER_TASK + 1) if self._is_chunk(clip) else share),
                chunk_index=clip.chunk_index,
                num_chunks=clip.num_chunks,
                decode_pass=clip.decode_pass,
            )
            decoded.add_clip(row, clip.frames)

    def _is_chunk(self, clip: DecodedClip) -> bool:
        return any(r.is_streamed and f.pixels.size for r, f in zip(self._settings.requests, clip.frames, strict=True))


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a video as it was decoded: the seconds that it took, and those of its range of clips until then."""

    batch: DecodedVideo
    seconds: float
    spent_s: float
    decode_pass: int


def _decode_pass(batch: DecodedVideo, otherwise: int) -> int:
    """Return the pass of a part; a part without clips, which ends a stream, has none."""
    return batch.clips[0].decode_pass if batch.clips else otherwise


class _Fetched:
    """A fetched video that exists until it is closed, from any thread."""

    def __init__(self, fetching: AbstractContextManager[LocalVideo]) -> None:
        self._fetching = fetching
        self.video = fetching.__enter__()

    def close(self) -> None:
        self._fetching.__exit__(None, None, None)


def _close_fetched(fetching: "Future[_Fetched]") -> None:
    if not fetching.cancelled() and fetching.exception() is None:
        fetching.result().close()


def as_item_error(error: Exception, kind: type[ItemError]) -> ItemError:
    """Return `error` as a failure of one item; errors of other types become a `kind` that is not permanent."""
    if isinstance(error, ItemError):
        return error
    code = "no_room" if isinstance(error, TransientError) else type(error).__name__
    return kind(code, redact(str(error)))


def _windows(item: dict[str, Any]) -> tuple[Window, ...] | None:
    """Return the time range that the catalog names for this row, or None."""
    if item["start_s"] is None and item["end_s"] is None:
        return None
    return (Window(item["start_s"] or 0.0, float("inf") if item["end_s"] is None else item["end_s"]),)


@contextmanager
def cleanup_scratch(decode: MediaFiles) -> Iterator[None]:
    """Remove frames and fetched files that workers of the block leave behind on this machine.

    Ray kills its workers, which then cannot clean up. Folders of living processes are kept. On other machines
    of a cluster, the next worker that starts there removes the leftover files.
    """
    shared_memory, scratch = Path(decode.shared_memory), Path(decode.scratch or tempfile.gettempdir())
    before = scratch_directories(shared_memory)
    try:
        yield
    finally:
        deadline = time.monotonic() + CLEANUP_TIMEOUT_S
        sweep(shared_memory)
        while scratch_directories(shared_memory) - before and time.monotonic() < deadline:
            time.sleep(0.1)
            sweep(shared_memory)
        remove_stale_folders(scratch)
