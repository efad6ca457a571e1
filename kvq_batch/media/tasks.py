"""What goes to a decoding process and what comes back, and the function that runs between.

Small picklable descriptors; pixels travel beside them in a scratch file. It knows nothing of processes: a test may
name another function of the same signature to be run in the child.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.frames import FrameRequest
from kvq_batch.domain.video import ClipPolicy, DecodedClip, VideoFacts, Window
from kvq_batch.media.decode import Decoding, Timings, decode_clips
from kvq_batch.media.decoders import DecoderChoice, choose_decoder, open_reader
from kvq_batch.media.probe import Probed, VideoLimits, probe
from kvq_batch.media.scratch import Extent, ScratchWriter


@dataclass(frozen=True, slots=True)
class DecodeTask:
    """Clips of one local file, for every request of a job.

    `key` seeds random samplers (the video id). `clips` cuts the video by rule, or names its windows. `first_clip` and
    `max_clips` hand a long video over in ranges; `probed`, from the first range's answer, saves probing again.
    """

    path: Path
    key: str
    requests: tuple[FrameRequest, ...]
    clips: ClipPolicy | tuple[Window, ...] = field(default_factory=ClipPolicy)
    first_clip: int = 0
    max_clips: int = 8
    limits: VideoLimits = field(default_factory=VideoLimits)
    decoder: DecoderChoice = "auto"
    num_threads: int = 1
    probed: Probed | None = None


@dataclass(frozen=True, slots=True)
class DecodedVideo:
    """What a task gave: facts, "decoder version", the clips of its range in order, and the core-seconds spent.

    `num_clips` counts the clips of the whole video; the range ended before them where the last clip's index is smaller.
    """

    facts: VideoFacts
    decoder: str
    num_clips: int
    clips: tuple[DecodedClip, ...]
    timings: Timings
    probed: Probed


@dataclass(frozen=True, slots=True)
class FrameLayout:
    """A `ClipFrames` without its pixels: `extent` is the position of its array in the scratch file's list."""

    extent: int
    indices: NDArray[np.int64]
    times_s: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ClipLayout:
    """A `DecodedClip` without its pixels."""

    clip_index: int
    window: Window
    frames: tuple[FrameLayout, ...]


@dataclass(frozen=True, slots=True)
class VideoLayout:
    """A `DecodedVideo` as it crosses processes; `probed` is None where the task brought it."""

    facts: VideoFacts
    decoder: str
    num_clips: int
    clips: tuple[ClipLayout, ...]
    extents: tuple[Extent, ...]
    timings: Timings
    probed: Probed | None


def decode_task(task: DecodeTask, scratch_file: Path) -> VideoLayout:
    """Probes and decodes the clips of a task into `scratch_file`, which it makes.

    Raises:
        ProbeError, DecodeError: as `probe` and `decode_clips`.
        TransientError: no room in the scratch folder.
    """
    started = time.process_time()
    probed = task.probed or probe(task.path, task.limits)
    timings = Timings(probe_s=time.process_time() - started)
    reader, decoder = open_reader(choose_decoder(probed, task.decoder))
    clips = task.clips
    windows = clips.windows(probed.facts.duration_s) if isinstance(clips, ClipPolicy) else list(clips)
    clip_range = range(task.first_clip, min(task.first_clip + task.max_clips, len(windows)))
    scratch = ScratchWriter(scratch_file)
    try:
        decoding = Decoding(reader, task.num_threads, scratch.allocate, timings)
        layouts = [
            ClipLayout(
                clip.clip_index,
                clip.window,
                tuple(FrameLayout(scratch.position(f.pixels), f.indices, f.times_s) for f in clip.frames),
            )
            for clip in decode_clips(task.path, probed, windows, task.requests, task.key, clip_range, decoding)
        ]
    finally:
        scratch.close()
    return VideoLayout(
        facts=probed.facts,
        decoder=decoder,
        num_clips=len(windows),
        clips=tuple(layouts),
        extents=tuple(scratch.extents),
        timings=timings,
        probed=None if task.probed else probed,
    )
