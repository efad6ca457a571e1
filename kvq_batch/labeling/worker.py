"""The workers of a label run: renditions of one segment in, one label or failure each out.

    fetch -> decode the segment once (child process) -> for each recipe: make, measure, keep (ffmpeg processes)

The worker itself only computes on pixels with numpy, so a file that crashes a decoder or an encoder costs a child
process. The driver decides about retries.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from kvq_batch.config.labels import SYNTHETIC, LabelJob
from kvq_batch.config.recipe import Recipe, Segment
from kvq_batch.domain.errors import ItemError, LabelError
from kvq_batch.domain.frames import FrameRequest, Sampling
from kvq_batch.domain.video import Window
from kvq_batch.engine.decode_worker import MediaSettings, as_item_error
from kvq_batch.labeling.labeler import VMAF_MODEL, VMAF_V1_MODEL, Labeler, Labelled, slot_means
from kvq_batch.labeling.planning import is_still
from kvq_batch.labeling.segments import segment_of_frames, segment_of_scene, segment_of_still
from kvq_batch.labeling.stream import LABELLED, failed_row
from kvq_batch.labels.rendition_store import store_rendition
from kvq_batch.media.decode import DecodedVideo, DecodeTask
from kvq_batch.media.ffmpeg import ffmpeg_version
from kvq_batch.media.planes import LOSSLESS_EXTENSION, Planes, encode_lossless
from kvq_batch.media.probe import Probed, VideoLimits
from kvq_batch.storage.fetch import LocalVideo


@dataclass(frozen=True, slots=True)
class LabelSettings:
    """Settings of a label worker; small and picklable."""

    keep: str | None
    media: MediaSettings

    @classmethod
    def of(cls, job: LabelJob) -> "LabelSettings":
        """Return the settings of `job`."""
        limits = VideoLimits(job.limits.max_frame_pixels)
        return cls(job.keep, MediaSettings.of(limits, job.limits, job.make, job.storage))


class LabelWorker:
    """Worker that decodes a segment in a child process and labels its renditions."""

    def __init__(self, settings: LabelSettings) -> None:
        self._settings = settings
        self._fetcher, self._decoder = settings.media.start()

    def close(self) -> None:
        """Kill the child that decodes."""
        self._decoder.__exit__(None, None, None)

    @cached_property
    def _ffmpeg(self) -> str:
        return ffmpeg_version()

    def __call__(self, renditions: pa.Table) -> Iterator[pa.Table]:
        """Yield rows of LABELLED, one rendition at a time. All renditions of a block are of one segment."""
        rows = renditions.to_pylist()
        started = time.perf_counter()
        try:
            labeler: Labeler | ItemError = Labeler(self._read_segment(rows[0]))
        except Exception as error:  # noqa: BLE001 - the worker's outermost frame: a bad reference must not affect others
            labeler = as_item_error(error, LabelError)
        for row in rows:
            try:
                if isinstance(labeler, ItemError):
                    raise labeler
                made = self._label(row, labeler)
            except Exception as error:  # noqa: BLE001 - the same, for renditions
                made = failed_row(row["item"], row["attempt"], as_item_error(error, LabelError), 0.0)
            # The time to decode is part of the first rendition's.
            made["make_s"] = time.perf_counter() - started
            started = time.perf_counter()
            yield pa.Table.from_pylist([made], LABELLED)

    def _label(self, row: dict[str, Any], labeler: Labeler) -> dict[str, Any]:
        made = labeler.label(Recipe.from_json(row["recipe"]))
        rendition_uri = None
        if self._settings.keep is not None:
            name = f"{row['label_id']}.{LOSSLESS_EXTENSION}"
            rendition_uri = store_rendition(
                self._settings.keep, name, encode_lossless(made.rendition), self._settings.media.storage
            )
        return _row(row, made) | {"rendition_uri": rendition_uri, "ffmpeg": self._ffmpeg}

    def _read_segment(self, row: dict[str, Any]) -> Planes:
        segment = Segment.from_json(row["segment"])
        if row["uri"].startswith(SYNTHETIC):
            name, _, seed = row["uri"].removeprefix(SYNTHETIC).partition("/")
            return segment_of_scene(name, int(seed), segment)
        with self._fetcher.fetch(row["uri"], row["content_id"], row["size_bytes"]) as local:
            if is_still(row["uri"]):
                made = segment_of_still(local.path.read_bytes(), segment)
            else:
                made = self._segment_of_video(local, row["video_id"], segment)
            # A file that is read where it is may have changed meanwhile.
            local.check_unchanged()
            return made

    def _segment_of_video(self, local: LocalVideo, key: str, segment: Segment) -> Planes:
        probed = self._decode(local, key, 1, None, None).probed
        times_s = probed.times_s
        start = segment.first_frame(len(times_s))
        if start is None:
            raise LabelError(
                "reference_too_short",
                f"the video has {len(times_s)} frames, fewer than {segment.of} segments of {segment.num_frames} need: "
                "configure fewer or shorter segments",
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
        """Decode `num_frames` consecutive frames in their own size from the middle of the window."""
        request = FrameRequest(Sampling(1, num_frames, 1), None)
        task = DecodeTask(local.path, key, (request,), limits=self._settings.media.limits, probed=probed)
        if window is not None:
            task = DecodeTask(local.path, key, (request,), (window,), limits=self._settings.media.limits, probed=probed)
        return self._decoder.submit(task).result()


def _row(row: dict[str, Any], made: Labelled) -> dict[str, Any]:
    fidelity, cells, rendition = made.fidelity, made.cells, made.rendition
    v1 = fidelity.vmaf_v1
    return {
        "item": row["item"],
        "attempt": row["attempt"],
        "vmaf": float(fidelity.vmaf.mean()),
        "vmaf_v1": None if v1 is None else float(v1.mean()),
        "psnr_db": float(fidelity.psnr_db.mean()),
        "ssim": float(fidelity.ssim.mean()),
        "vmaf_slots": slot_means(fidelity.vmaf),
        "vmaf_v1_slots": None if v1 is None else slot_means(v1),
        "psnr_db_slots": slot_means(fidelity.psnr_db),
        "ssim_slots": slot_means(fidelity.ssim),
        "num_slots": cells.shape[0],
        "num_rows": cells.shape[1],
        "num_cols": cells.shape[2],
        "cells": cells.ravel(),
        "cells_v1": None if made.cells_v1 is None else made.cells_v1.ravel(),
        "num_frames": rendition.num_frames,
        "height_px": rendition.height_px,
        "width_px": rendition.width_px,
        "frame_rate": float(rendition.frame_rate),
        "libvmaf": fidelity.libvmaf,
        "vmaf_model": VMAF_MODEL,
        "vmaf_v1_model": None if v1 is None else VMAF_V1_MODEL,
    }
