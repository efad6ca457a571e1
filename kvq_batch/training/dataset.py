"""The clips of a training job: decoded once into files, and made a source that a training draws from.

It joins the decoder and the training, which do not know each other.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvq_batch.domain.errors import SpecError

if TYPE_CHECKING:
    from kvq_batch.config.train import TrainJob
    from kvq_batch.domain.frames import FrameRequest, Sampling
    from kvq_batch.labels.training_set import LabelledVideo
    from kvq_batch.models.kvq.config import KvqConfig
    from kvq_batch.training.rendition_files import Framing
    from kvq_batch.training.samples import ClipSource, Sample

Progress = Callable[[int, int], None]


def mix_column(job: "TrainJob") -> str | None:
    """The column that tells which videos are versions of the same frames, where that is of use."""
    return job.views.mix_column if job.views.mix or job.training.versions > 1 else None


def samples_of(videos: "Sequence[LabelledVideo]") -> "list[Sample]":
    """The videos as a training takes them."""
    from kvq_batch.training.samples import Sample

    parts: dict[str | None, Any] = {"train": "train", "validation": "validation", None: None}
    return [
        Sample(
            video.video_id,
            video.scene_id,
            video.label,
            parts[video.part],
            None if video.pixels is None else f"{video.scene_id}/{video.pixels}",
        )
        for video in videos
    ]


def decoded_source(
    job: "TrainJob", config: "KvqConfig", videos: "list[LabelledVideo]", folder: Path, progress: Progress
) -> "ClipSource":
    """Everything that the job trains on, decoded and checked; `progress` hears (done, total).

    Raises:
        SpecError: videos that cannot be decoded, or files that do not fit the network, by name.
    """
    from kvq_batch.training.frame_files import FrameFiles
    from kvq_batch.training.rendition_files import RenditionFiles

    maps = config.maps_shape(config.num_frames, *config.input_size)
    if job.views.slots is None:
        files = _decoded(job, videos, _whole_clips(config, job.data.views), folder, progress)
        cells = [video.cells and video.cells.absolute() for video in videos] if job.loss.cells else None
        whole = FrameFiles(samples_of(videos), files, cells)
        whole.check((config.num_frames, *config.input_size, 3), maps)
        return whole
    unlabelled = [video.video_id for video in videos if video.cells is None]
    if unlabelled:
        raise SpecError(f"{len(unlabelled)} videos have no cell labels, the first {unlabelled[0]!r}; leave them out")
    labels = [video.cells.absolute() for video in videos if video.cells is not None]
    sampling = _slots(config, job.views.slots)
    framing = _framing(job, config, sampling, labels[0])
    size = None if framing.is_cut else config.input_size
    files = _decoded(job, videos, [_request(sampling, size)], folder, progress)
    versions = RenditionFiles(samples_of(videos), [paths[0] for paths in files], labels, framing)
    versions.check()
    return versions


def _whole_clips(config: "KvqConfig", num_views: int) -> "list[FrameRequest]":
    """The first view as a scorer asks for it, the others at random places."""
    from kvq_batch.models.kvq.family import frame_request

    first = frame_request(config)
    places = [dataclasses.replace(first.sampling, offset="random", seed=view) for view in range(1, num_views)]
    return [first, *(dataclasses.replace(first, sampling=sampling) for sampling in places)]


def _slots(config: "KvqConfig", num_slots: int) -> "Sampling":
    """So many slots, evenly spread, their frames as far apart as a scorer takes them."""
    from kvq_batch.models.kvq.family import frame_request

    sampling = frame_request(config).sampling
    if sampling.frames_per_fragment != config.patch[0]:
        raise SpecError(
            f"views.slots trains on slots of {config.patch[0]} frames, and a scorer would take "
            f"{sampling.frames_per_fragment} in a row; set num_frames to num_segments times {config.patch[0]}"
        )
    return dataclasses.replace(sampling, num_fragments=num_slots)


def _request(sampling: "Sampling", size: tuple[int, int] | None) -> "FrameRequest":
    from kvq_batch.domain.frames import FrameRequest

    return FrameRequest(sampling, size)


def _framing(job: "TrainJob", config: "KvqConfig", sampling: "Sampling", cells: Path) -> "Framing":
    """How views are cut; the cell labels of the first video tell how many frames every video has."""
    import numpy as np

    from kvq_batch.config.recipe import SLOT_FRAMES
    from kvq_batch.training.rendition_files import Framing

    try:
        num_slots = len(np.load(cells, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise SpecError(f"{cells}: these cell labels cannot be read ({error})") from error
    frames = sampling.indices(num_slots * SLOT_FRAMES).tolist()
    return Framing(
        input_size=config.input_size,
        grid=config.maps_shape(config.num_frames, *config.input_size)[1:],
        is_cut=all(config.fragments),
        slot_frames=config.patch[0],
        num_slots=num_slots,
        frame_slots=tuple(frame // SLOT_FRAMES for frame in frames),
        mix=job.views.mix,
        flip=job.views.flip,
        contrast=job.views.contrast,
    )


def _decoded(
    job: "TrainJob",
    videos: "list[LabelledVideo]",
    requests: "Sequence[FrameRequest]",
    folder: Path,
    progress: Progress,
) -> list[tuple[Path, ...]]:
    from kvq_batch.media.isolation import IsolatedDecoder
    from kvq_batch.media.probe import VideoLimits
    from kvq_batch.storage.fetch import Fetcher
    from kvq_batch.storage.options import StorageOptions
    from kvq_batch.training.decoded_frames import TrainingVideo, decode_frames

    limits = job.limits
    frames = Path(job.data.frames).absolute() if job.data.frames else folder / "frames"
    with (
        tempfile.TemporaryDirectory(prefix="kvq-batch-") as scratch,
        IsolatedDecoder(job.data.decoders, Path(scratch), limits.timeout_s, limits.max_memory_bytes) as decoder,
    ):
        return decode_frames(
            [TrainingVideo(video.video_id, video.uri, video.content_id) for video in videos],
            requests,
            frames,
            Fetcher(StorageOptions.from_spec(job.storage), Path(scratch), limits.max_file_bytes),
            decoder,
            VideoLimits(limits.max_frame_pixels),
            job.data.decoders,
            progress,
        )
