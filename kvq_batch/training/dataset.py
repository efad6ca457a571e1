"""The dataset of a training job: decode each labelled video once into frame files, and open them as a clip source.

A file of frames is named by the video's content id, the requested frames and the algorithm numbers. A changed video is
decoded again; everything else is reused. A video that is missing or broken is reported by name and never replaced.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from kvq_batch.config.recipe import SLOT_FRAMES
from kvq_batch.config.train import TrainJob
from kvq_batch.domain.errors import ItemError, SpecError, shorten_list
from kvq_batch.domain.frames import ALGORITHMS, FrameRequest, Sampling, SegmentSampling
from kvq_batch.domain.identity import UNKNOWN_CONTENT, fingerprint
from kvq_batch.labels.training_set import LabelledVideo
from kvq_batch.media.decode import DecodeTask
from kvq_batch.media.isolation import IsolatedDecoder
from kvq_batch.media.probe import VideoLimits
from kvq_batch.models.kvq.config import KvqConfig
from kvq_batch.models.kvq.family import frame_request, frame_sampling
from kvq_batch.models.swinv2_ctf.config import CtfConfig
from kvq_batch.storage.fetch import Fetcher
from kvq_batch.storage.options import StorageOptions
from kvq_batch.training.frame_files import CroppedFiles, FrameFiles, RenditionFiles, ViewLayout, write_array
from kvq_batch.training.measured_files import measure_files
from kvq_batch.training.samples import ClipSource, Sample, SplitName
from kvq_batch.training.settings import NetworkConfig

ProgressCallback = Callable[[str, int, int], None]
"""Called with (what is done, number done, number in total); what is done is "decoding" or "measuring"."""


@dataclass(frozen=True, slots=True)
class TrainingVideo:
    """A video to decode; `content_id` identifies its bytes."""

    video_id: str
    uri: str
    content_id: str


def mix_column(job: TrainJob) -> str | None:
    """Return the column that says which videos are renditions of the same frames, or None if the job needs none."""
    is_ladder = job.swinv2 is not None and job.group_loss.levels > 0
    return job.views.mix_column if job.views.mix or job.training.renditions > 1 or is_ladder else None


def to_samples(videos: Sequence[LabelledVideo]) -> list[Sample]:
    """Return the samples of labelled videos."""
    splits: dict[str | None, SplitName | None] = {"train": "train", "validation": "validation", None: None}
    return [
        Sample(
            video.video_id,
            video.scene_id,
            video.label,
            splits[video.split],
            None if video.pixels is None else f"{video.scene_id}/{video.pixels}",
            video.level,
            video.is_relative,
        )
        for video in videos
    ]


def build_clip_source(
    job: TrainJob,
    config: NetworkConfig,
    videos: Sequence[LabelledVideo],
    folder: Path,
    progress: ProgressCallback,
    tensors: Mapping[str, Tensor] | None = None,
) -> ClipSource:
    """Decode and check all videos that the job trains on, and return them as a clip source.

    With views.measured they are measured, too, by a network of `tensors`.

    Raises:
        SpecError: videos that cannot be decoded, or files that do not fit the network, by name.
    """
    if isinstance(config, CtfConfig):
        files = _decode(job, videos, _crop_requests(config, job.data.views), folder, progress)
        cropped = CroppedFiles(to_samples(videos), files, config.num_frames, config.input_size, job.views.flip)
        cropped.check()
        return cropped
    maps_shape = config.maps_shape(config.num_frames, *config.input_size)
    if job.views.slots is not None and config.crop:
        raise SpecError(
            "views.slots and model.crop exclude each other: both say which pixels of a frame are the input."
        )
    if config.crop == 2:
        if job.loss.cells:
            raise SpecError(
                "loss.cells needs whole frames or fragments: cells are of the whole frame. Set model.crop = 0."
            )
        requests = [
            dataclasses.replace(r, size=None, short_side=None) for r in _whole_clip_requests(config, job.data.views)
        ]
        files = _decode(job, videos, requests, folder, progress)
        cropped = CroppedFiles(to_samples(videos), files, config.num_frames, config.input_size, flip=False)
        cropped.check()
        return cropped
    if job.views.slots is None:
        files = _decode(job, videos, _whole_clip_requests(config, job.data.views), folder, progress)
        cells = [video.cells and video.cells.absolute() for video in videos] if job.loss.cells else None
        whole = FrameFiles(to_samples(videos), files, cells)
        whole.check((config.num_frames, *config.input_size, 3), maps_shape)
        return whole
    unlabelled = [video.video_id for video in videos if video.cells is None]
    if unlabelled:
        raise SpecError(f"No cell labels for {shorten_list(unlabelled, 3)}. Add them or remove these videos.")
    labels = [video.cells.absolute() for video in videos if video.cells is not None]
    sampling = _slot_sampling(config, job.views.slots)
    layout = _view_layout(job, config, sampling, labels[0])
    size = None if layout.is_cut else config.input_size
    files = _decode(job, videos, [FrameRequest(sampling, size)], folder, progress)
    renditions = RenditionFiles(to_samples(videos), [paths[0] for paths in files], labels, layout)
    renditions.check()
    if job.views.measured and tensors is not None:
        return measure_files(
            renditions, config, tensors, _frames_folder(job, folder) / "measured", job.views.measured, progress
        )
    return renditions


def frame_paths(video: TrainingVideo, requests: Sequence[FrameRequest], folder: Path) -> tuple[Path, ...]:
    """Return the file of each request, whether it exists or not."""
    names = [
        fingerprint(
            {
                "uri": video.uri,
                "content_id": video.content_id,
                "key": video.video_id,
                "request": dataclasses.asdict(request),
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
    progress: ProgressCallback = lambda what, done, total: None,
) -> list[tuple[Path, ...]]:
    """Decode the videos whose files do not exist yet; return the files of every video.

    Raises:
        SpecError: videos that cannot be fetched or decoded, after all were tried: their number, and the first by name.
    """
    unlisted = [video.video_id for video in videos if video.content_id == UNKNOWN_CONTENT]
    if unlisted:
        raise SpecError(
            f"Videos not found where the list says: {shorten_list(unlisted, separator='; ')}. Correct the list or "
            "restore them."
        )

    def decode(video: TrainingVideo) -> str | None:
        paths = frame_paths(video, requests, folder)
        if all(path.exists() for path in paths):
            return None
        try:
            with fetcher.fetch(video.uri, video.content_id) as local:
                task = DecodeTask(path=local.path, key=video.video_id, requests=tuple(requests), limits=limits)
                clip = decoder.submit(task).result().clips[0]
                local.check_unchanged()
            for path, frames in zip(paths, clip.frames, strict=True):
                write_array(path, frames.pixels)
        except ItemError as error:
            return f"{video.video_id} ({error})"
        except OSError as error:
            raise SpecError(
                f"{folder} cannot be written ({error}). Free some space, or set another folder in data.frames."
            ) from error
        return None

    failed = []
    with ThreadPoolExecutor(num_parallel, thread_name_prefix="decode") as threads:
        for done, failure in enumerate(threads.map(decode, videos), 1):
            if failure is not None:
                failed.append(failure)
            progress("decoding", done, len(videos))
    if failed:
        raise SpecError(
            f"{len(failed)} of {len(videos)} videos cannot be trained on: {shorten_list(failed, separator='; ')}. Fix "
            "them, or remove them from the list."
        )
    return [frame_paths(video, requests, folder) for video in videos]


def _whole_clip_requests(config: KvqConfig, num_views: int) -> list[FrameRequest]:
    """Return the frames of each view: the first as a scorer requests it, the others at random positions."""
    first = frame_request(config)
    samplings = [
        dataclasses.replace(frame_sampling(config), offset="random", seed=view) for view in range(1, num_views)
    ]
    return [first, *(dataclasses.replace(first, sampling=sampling) for sampling in samplings)]


def _crop_requests(config: CtfConfig, num_views: int) -> list[FrameRequest]:
    """Return the frames of each view of the coarse-to-fine network, larger than its input (SWINV2_SPEC section 3).

    The view "resize" stores the central square of the resized frame, the view "native" the whole frame.
    """
    side = config.short_side
    samplings = [
        SegmentSampling(config.num_frames),
        *(SegmentSampling(config.num_frames, "random", view) for view in range(1, num_views)),
    ]
    if config.view == "native":
        return [FrameRequest(sampling, None) for sampling in samplings]
    size = (side, side)
    return [FrameRequest(sampling, size, resize="bilinear-antialias", short_side=side) for sampling in samplings]


def _slot_sampling(config: KvqConfig, num_slots: int) -> Sampling:
    """Return the sampling of `num_slots` evenly spread time slots, with frames as far apart as in scoring."""
    sampling = frame_sampling(config)
    if sampling.frames_per_fragment != config.patch[0]:
        raise SpecError(
            f"views.slots trains on slots of {config.patch[0]} frames, but scoring would take "
            f"{sampling.frames_per_fragment} in a row. Set num_frames to num_segments times {config.patch[0]}."
        )
    return dataclasses.replace(sampling, num_fragments=num_slots)


def _view_layout(job: TrainJob, config: KvqConfig, sampling: Sampling, cells: Path) -> ViewLayout:
    """Return how views are cut; the cell labels of the first video give the number of frames of every video."""
    try:
        num_slots = len(np.load(cells, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise SpecError(f"{cells}: the cell labels cannot be read ({error}). Export the labels again.") from error
    frames = sampling.indices(num_slots * SLOT_FRAMES).tolist()
    return ViewLayout(
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


def _frames_folder(job: TrainJob, folder: Path) -> Path:
    return Path(job.data.frames).absolute() if job.data.frames else folder / "frames"


def _decode(
    job: TrainJob,
    videos: Sequence[LabelledVideo],
    requests: Sequence[FrameRequest],
    folder: Path,
    progress: ProgressCallback,
) -> list[tuple[Path, ...]]:
    limits = job.limits
    frames = _frames_folder(job, folder)
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
