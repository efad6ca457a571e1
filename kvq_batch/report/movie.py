"""Write the maps of a video as a moving picture, GIF or MP4: each frame with the maps of its moment and a playhead.

The whole video is shown in at most MAX_SECONDS, long ones faster than they are. The MP4 is fragmented, because
ffmpeg writes it into a pipe; players and browsers play it as any other.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from kvq_batch.analysis.video_maps import VideoMaps, find_video
from kvq_batch.domain.errors import DecodeError, FatalError, LabelError, SpecError
from kvq_batch.media.ffmpeg import run_ffmpeg
from kvq_batch.media.local_files import frame_times, iter_frames
from kvq_batch.report.picture import Drawn, drawn, local_copy, still
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.session import Session

MAX_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Encoding:
    """How one format is written: the largest size of a frame of the video, frames per second, and options of ffmpeg."""

    box: tuple[int, int]
    frames_per_s: int
    options: tuple[str, ...]


ENCODINGS: Mapping[str, Encoding] = {
    ".mp4": Encoding(
        (480, 360), 10,
        ("-c:v", "libx264", "-preset", "fast", "-crf", "23", "-pix_fmt", "yuv420p",
         "-movflags", "frag_keyframe+empty_moov", "-f", "mp4"),
    ),
    # One palette for the whole picture: the paper, the text and the colours of the maps do not flicker.
    ".gif": Encoding(
        (360, 270), 5,
        ("-vf", "split[a][b];[a]palettegen[p];[b][p]paletteuse=dither=bayer:bayer_scale=4", "-f", "gif"),
    ),
}  # fmt: skip


def write_movie(
    session: Session,
    storage: StorageOptions,
    video_id: str,
    out: Path,
    model: str | None = None,
    clip: int | None = None,
    max_seconds: float = MAX_SECONDS,
) -> Drawn:
    """Write the moving picture of a video's maps and return the model and score that it shows.

    Raises:
        SpecError: no maps of this video, clip and model, a suffix that is not in ENCODINGS, or `out` cannot be
            written.
        ItemError: the video can no longer be fetched or decoded.
        FatalError: ffmpeg fails.
    """
    encoding = ENCODINGS.get(out.suffix.lower())
    if encoding is None:
        raise SpecError(f"{out}: unknown format of a moving picture. Use {' or '.join(ENCODINGS)}.")
    video = find_video(session, video_id, model, clip)
    data = _encode(draw_movie(video, storage, encoding, max_seconds), encoding)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(data)
    except OSError as error:
        raise SpecError(f"Cannot write {out}: {error.strerror}") from error
    return drawn(video)


def draw_movie(
    video: VideoMaps, storage: StorageOptions, encoding: Encoding, max_seconds: float = MAX_SECONDS
) -> Iterator[Image.Image]:
    """Yield the pictures of a movie. One frame of the video is held at a time.

    Raises:
        ItemError: the video can no longer be fetched or decoded.
    """
    with local_copy(video, storage) as path:
        times = frame_times(path)
        starts = [moment.from_s for moment in video.moments if moment.from_s is not None]
        ends = [moment.until_s for moment in video.moments if moment.until_s is not None]
        begin = min(starts, default=float(times[0]))
        end = max(ends, default=float(times[-1]))
        seconds = min(end - begin, max_seconds)
        count = max(1, round(seconds * encoding.frames_per_s))
        shown = begin + (np.arange(count) + 0.5) * (end - begin) / count
        # The frame that a player shows at this time: the last one that has started.
        indices = np.maximum(np.searchsorted(times, shown + 1e-6, side="right") - 1, 0)
        speed = (end - begin) / seconds if seconds else 1.0
        note = f"shown {speed:.1f}× as fast" if speed > 1.05 else ""
        found = iter_frames(path, [int(index) for index in indices])
        at, frame = next(found, (-1, None))
        for index, time_s in zip(indices, shown, strict=True):
            while at < index:
                at, frame = next(found, (int(index), None))
            if frame is None:
                raise DecodeError("frame_missing", f"{video.video_id}: frame {index} cannot be decoded", permanent=True)
            yield still(video, video.at(float(time_s)), frame, encoding.box, float(time_s), note)


def _encode(pictures: Iterator[Image.Image], encoding: Encoding) -> bytes:
    """Return the pictures, RGB of one even size, as a file of ffmpeg."""
    first = next(pictures)
    raw = b"".join(np.asarray(picture).tobytes() for picture in (first, *pictures))
    size, rate = f"{first.width}x{first.height}", str(encoding.frames_per_s)
    source = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", rate)
    try:
        return run_ffmpeg([*source, "-i", "pipe:0", *encoding.options, "pipe:1"], raw)
    except LabelError as error:
        raise FatalError(f"The moving picture cannot be encoded: {error}") from error
