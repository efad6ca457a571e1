"""The workers that make labels: versions of one segment in, one label or failure each out.

    fetch -> decode the segment once (a child process) -> for each recipe: make, measure, keep (ffmpeg children)

The worker itself touches pixels with numpy only: whatever a file does to a decoder or an encoder, it does to a child.
This module decides nothing about retries; the driver does.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from kvq_batch.config.labels import SYNTHETIC, LabelJob
from kvq_batch.config.recipe import Recipe
from kvq_batch.config.segment import Segment
from kvq_batch.domain.errors import ItemError, LabelError, TransientError
from kvq_batch.domain.frames import FrameRequest, Sampling
from kvq_batch.domain.video import Window
from kvq_batch.labeling.fidelity import VMAF_MODEL, slot_means
from kvq_batch.labeling.labeler import Labeler, Labelled
from kvq_batch.labeling.references import is_still
from kvq_batch.labeling.segments import segment_of_frames, segment_of_scene, segment_of_still
from kvq_batch.labeling.stream import LABELLED, failed
from kvq_batch.labels.rendition_store import store_rendition
from kvq_batch.media.ffmpeg import ffmpeg_version
from kvq_batch.media.isolation import IsolatedDecoder
from kvq_batch.media.lossless import EXTENSION, encode_lossless
from kvq_batch.media.planes import Planes
from kvq_batch.media.probe import Probed, VideoLimits
from kvq_batch.media.scratch import sweep
from kvq_batch.media.tasks import DecodedVideo, DecodeTask
from kvq_batch.storage.fetch import Fetcher, LocalVideo, sweep_dead
from kvq_batch.storage.options import StorageOptions
from kvq_batch.storage.redact import redact


@dataclass(frozen=True, slots=True)
class LabelSettings:
    """What a worker must know; small and picklable."""

    keep: str | None
    limits: VideoLimits
    timeout_s: float
    max_file_bytes: int
    max_memory_bytes: int
    storage: StorageOptions
    scratch: str
    shared_memory: str

    @classmethod
    def of(cls, job: LabelJob) -> "LabelSettings":
        """The settings of `job`."""
        return cls(
            keep=job.keep,
            limits=VideoLimits(job.limits.max_frame_pixels),
            timeout_s=job.limits.timeout_s,
            max_file_bytes=job.limits.max_file_bytes,
            max_memory_bytes=job.limits.max_memory_bytes,
            storage=StorageOptions.from_spec(job.storage),
            scratch=job.make.scratch or tempfile.gettempdir(),
            shared_memory=job.make.shared_memory,
        )


class LabelWorker:
    """Callable that Ray Data builds once per actor."""

    def __init__(self, settings: LabelSettings) -> None:
        self._settings = settings
        scratch = Path(settings.scratch)
        # What a worker that was killed has left here is nobody's.
        sweep_dead(scratch)
        sweep(Path(settings.shared_memory))
        self._fetcher = Fetcher(settings.storage, scratch, settings.max_file_bytes)
        self._decoder = IsolatedDecoder(1, Path(settings.shared_memory), settings.timeout_s, settings.max_memory_bytes)
        self._decoder.__enter__()

    @cached_property
    def _ffmpeg(self) -> str:
        return ffmpeg_version()

    def __call__(self, renditions: pa.Table) -> Iterator[pa.Table]:
        """Rows of LABELLED, one version at a time; all versions of a block are of one segment."""
        rows = renditions.to_pylist()
        started = time.perf_counter()
        try:
            labeller: Labeler | ItemError = Labeler(self._source(rows[0]))
        except Exception as error:  # noqa: BLE001 - the worker's outermost frame: one source never takes another along
            labeller = _as_item_error(error)
        for row in rows:
            try:
                if isinstance(labeller, ItemError):
                    raise labeller
                made = self._label(row, labeller)
            except Exception as error:  # noqa: BLE001 - as above, for versions
                made = failed(row["item"], row["attempt"], _as_item_error(error), 0.0)
            # Decoding is on the account of the first version.
            made["make_s"] = time.perf_counter() - started
            started = time.perf_counter()
            yield pa.Table.from_pylist([made], LABELLED)

    def _label(self, row: dict[str, Any], labeller: Labeler) -> dict[str, Any]:
        made = labeller.label(Recipe.from_json(row["recipe"]))
        rendition_uri = None
        if self._settings.keep is not None:
            name = f"{row['label_id']}.{EXTENSION}"
            rendition_uri = store_rendition(
                self._settings.keep, name, encode_lossless(made.rendition), self._settings.storage
            )
        return _row(row, made) | {"rendition_uri": rendition_uri, "ffmpeg": self._ffmpeg}

    def _source(self, row: dict[str, Any]) -> Planes:
        segment = Segment.from_json(row["segment"])
        if row["uri"].startswith(SYNTHETIC):
            name, _, seed = row["uri"].removeprefix(SYNTHETIC).partition("/")
            return segment_of_scene(name, int(seed), segment)
        with self._fetcher.fetch(row["uri"], row["content_id"], row["size_bytes"]) as local:
            if is_still(row["uri"]):
                made = segment_of_still(local.path.read_bytes(), segment)
            else:
                made = self._segment_of_video(local, row["video_id"], segment)
            # A file that is read in place may have changed under the reader.
            local.confirm()
            return made

    def _segment_of_video(self, local: LocalVideo, key: str, segment: Segment) -> Planes:
        probed = self._decode(local, key, 1, None, None).probed
        times_s = probed.times_s
        start = segment.first_frame(len(times_s))
        if start is None:
            raise LabelError(
                "source_too_short",
                f"{segment.of} stretches of {segment.num_frames} frames are more than its {len(times_s)} frames; "
                "take fewer or shorter segments",
                True,
            )
        stop = start + segment.num_frames
        end_s = float("inf") if stop == len(times_s) else float(times_s[stop])
        window = Window(float(times_s[start]), end_s)
        frames = self._decode(local, key, segment.num_frames, window, probed).clips[0].frames[0]
        return segment_of_frames(frames.pixels, probed.facts.frame_rate, segment)

    def _decode(
        self, local: LocalVideo, key: str, num_frames: int, window: Window | None, probed: Probed | None
    ) -> DecodedVideo:
        """So many frames in a row, at their own size, from the middle of the window."""
        request = FrameRequest(Sampling(1, num_frames, 1), None)
        task = DecodeTask(local.path, key, (request,), limits=self._settings.limits, probed=probed)
        if window is not None:
            task = DecodeTask(local.path, key, (request,), (window,), limits=self._settings.limits, probed=probed)
        return self._decoder.submit(task).result()


def _row(row: dict[str, Any], made: Labelled) -> dict[str, Any]:
    fidelity, cells, rendition = made.fidelity, made.cells, made.rendition
    return {
        "item": row["item"],
        "attempt": row["attempt"],
        "vmaf": float(fidelity.vmaf.mean()),
        "psnr_db": float(fidelity.psnr_db.mean()),
        "ssim": float(fidelity.ssim.mean()),
        "vmaf_slots": slot_means(fidelity.vmaf),
        "psnr_db_slots": slot_means(fidelity.psnr_db),
        "ssim_slots": slot_means(fidelity.ssim),
        "num_slots": cells.shape[0],
        "num_rows": cells.shape[1],
        "num_cols": cells.shape[2],
        "cells": cells.ravel(),
        "num_frames": rendition.num_frames,
        "height_px": rendition.height_px,
        "width_px": rendition.width_px,
        "frame_rate": float(rendition.frame_rate),
        "libvmaf": fidelity.libvmaf,
        "vmaf_model": VMAF_MODEL,
    }


def _as_item_error(error: Exception) -> ItemError:
    if isinstance(error, ItemError):
        return error
    code = "no_room" if isinstance(error, TransientError) else type(error).__name__
    return LabelError(code, redact(str(error)))
