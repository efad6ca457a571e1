"""Ways to score a folder of videos with one model: kvq-batch, and plain code in other frameworks.

Each way is a function that emits results as they come, in batches. All but ours are plain code of their framework, use
one process per core, and decode like the published test code (decord with its defaults, frame by frame). One uses our
reader instead, to separate the cost of isolation and tracking from the gain of the reader. Only ours stores results (in
tables in the system's temporary folder, which the caller removes) and reads them again.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

import kvq_batch
from benchmarks.crafted import open_as_decoder
from kvq_batch.config.job import ExecutorName
from kvq_batch.config.load import make_job
from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.frames import FrameRequest, Sampling
from kvq_batch.domain.scorer import ModelOptions, Scorer
from kvq_batch.domain.video import ClipPolicy
from kvq_batch.engine.decode_worker import DecodeWorker
from kvq_batch.engine.rows import Row
from kvq_batch.engine.run import RunOptions
from kvq_batch.engine.score_run import run_job
from kvq_batch.engine.work_tracker import SilentObserver
from kvq_batch.media.decode import Decoding, decode_clips, write_frame
from kvq_batch.media.decoders import choose_decoder, open_reader
from kvq_batch.media.probe import VideoLimits, probe
from kvq_batch.models import registry
from kvq_batch.planning.job_plan import plan_job

Result = dict[str, Any]
"""Result of one video: `video` (file name), and `score`, `frames` (frame indices), or `failure` (the error)."""

Read = Callable[[Path, FrameRequest], tuple[NDArray[np.uint8], list[int]]]
"""Return the clip of a video as the model requests it, uint8 RGB [T, H, W, 3], and its frame indices."""

Emit = Callable[[Sequence[Result]], None]
Way = Callable[[Path, str, int, Emit], None]
"""(folder of videos, name of the model, number of cores, receiver of results)."""


def ours(folder: Path, model: str, cores: int, emit: Emit) -> None:
    """kvq-batch, local executor with its defaults: a decoding process per core, one scoring thread, tables."""
    _ours(folder, model, emit, "local", {}, {})


def ours_on_ray(folder: Path, model: str, cores: int, emit: Emit) -> None:
    """kvq-batch on Ray: one decoding process per core, one scoring process, tables."""
    section = {"num_threads": cores, "workers": {"num_cpus": 0.5}}
    _ours(folder, model, emit, "ray", section, {"min": cores, "max": cores, "num_cpus": 0.5})


def hand_set(num_decoders: int, num_threads: int) -> Way:
    """Return kvq-batch on the local executor with these numbers of decoders and threads of the model."""

    def way(folder: Path, model: str, cores: int, emit: Emit) -> None:
        _ours(folder, model, emit, "local", {"num_threads": num_threads}, {"max": num_decoders})

    return way


def _ours(
    folder: Path,
    model: str,
    emit: Emit,
    executor: ExecutorName,
    section: Mapping[str, Any],
    decoders: Mapping[str, float],
) -> None:
    tables = tempfile.mkdtemp(prefix="tables-")
    job = make_job(
        {
            "name": "side-by-side",
            "tables": tables,
            "catalog": {"source": str(folder)},
            "models": [{"name": model, "weights": _weights(model), **section}],
            "decode": {"workers": decoders},
            "limits": {"timeout_s": 10.0},
        },
        "benchmark",
    )
    run_job(plan_job(job), _Emitter(emit), RunOptions(worker=_CraftedDecodeWorker, executor=executor))
    with kvq_batch.open(tables) as quality:
        clips = quality.sql("SELECT video_id, frame_indices FROM clips").to_pylist()
    emit([{"video": clip["video_id"], "frames": clip["frame_indices"]} for clip in clips])


class _CraftedDecodeWorker(DecodeWorker):
    """The decode worker, whose child processes are killed by crafted files."""

    task_function: ClassVar[str] = "benchmarks.crafted:decode_crafted"


class _Emitter(SilentObserver):
    """Emit what is committed."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit

    def committed(self, scores: Sequence[Row], failures: Sequence[Row]) -> None:
        failed = [{"video": row["video_id"], "failure": row["error"]} for row in failures if row["final"]]
        self._emit([{"video": row["video_id"], "score": row["raw_score"]} for row in scores] + failed)


def loop(folder: Path, model: str, cores: int, emit: Emit) -> None:
    """Plain loop: one process, one video after the other; torch uses all cores."""
    scorer = _scorer(model, cores)
    for path in _videos(folder):
        emit([_result(path, *plain_clip(path, _request(scorer)), scorer)])


class _Videos(Dataset[tuple[str, NDArray[np.uint8], list[int]]]):
    """Dataset with one clip per item."""

    def __init__(self, paths: Sequence[Path], read: Read, request: FrameRequest) -> None:
        self._paths = paths
        self._read = read
        self._request = request

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[str, NDArray[np.uint8], list[int]]:
        path = self._paths[index]
        return str(path), *self._read(path, self._request)


def dataloader(folder: Path, model: str, cores: int, emit: Emit) -> None:
    """torch DataLoader: one decoding worker per core; the main process scores with all cores."""
    _load(folder, model, cores, emit, plain_clip)


def dataloader_with_our_reader(folder: Path, model: str, cores: int, emit: Emit) -> None:
    """The same, with the probe, reader and sampler of kvq-batch in the workers."""
    _load(folder, model, cores, emit, our_clip)


def _load(folder: Path, model: str, cores: int, emit: Emit, read: Read) -> None:
    scorer = _scorer(model, cores)
    videos = _Videos(_videos(folder), read, _request(scorer))
    loader = DataLoader(videos, batch_size=1, num_workers=cores, collate_fn=_only_one)
    for path, clip, frames in loader:
        emit([_result(Path(path), clip, frames, scorer)])


def _only_one(items: list[Any]) -> Any:
    return items[0]


class _PlainActor:
    """Decode and score in one process."""

    def __init__(self, model: str) -> None:
        self._scorer = _scorer(model, 1)

    def __call__(self, row: Result) -> Result:
        path = Path(row["path"])
        return _result(path, *plain_clip(path, _request(self._scorer)), self._scorer)


def ray_data(folder: Path, model: str, cores: int, emit: Emit) -> None:
    """Ray Data: `map` with one actor per core that decodes and scores; Ray's defaults."""
    import ray

    ray.init(address="local", num_cpus=cores, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    actor: Any = _PlainActor  # Ray's types accept callable classes only as functions
    dataset = ray.data.from_items([{"path": str(path)} for path in _videos(folder)]).map(
        actor,
        fn_constructor_args=(model,),
        compute=ray.data.ActorPoolStrategy(size=cores),
        num_cpus=1,
    )
    for row in dataset.iter_rows():
        emit([row])


def daft(folder: Path, model: str, cores: int, emit: Emit) -> None:
    """Daft: a class with one instance per core over a column of paths; the native runner and defaults."""
    library = import_module("daft")
    real, whole = library.DataType.float64(), library.DataType.int64()
    returned = library.DataType.struct(
        {"video": library.DataType.string(), "score": real, "frames": library.DataType.list(whole)}
    )

    class PlainScorer:
        def __init__(self, name: str) -> None:
            self._scorer = _scorer(name, 1)

        @library.method(return_dtype=returned)  # type: ignore[untyped-decorator]
        def score(self, path: str) -> Result:
            return _result(Path(path), *plain_clip(Path(path), _request(self._scorer)), self._scorer)

    scorer = library.cls(PlainScorer, max_concurrency=cores)(model)
    frame = library.from_pydict({"path": [str(path) for path in _videos(folder)]}).into_batches(1)
    for row in frame.select(scorer.score(library.col("path")).alias("result")).iter_rows():
        emit([row["result"]])


WAYS: Mapping[str, Way] = {
    "ours": ours,
    "ours on Ray": ours_on_ray,
    "plain loop": loop,
    "torch DataLoader": dataloader,
    "DataLoader, our reader": dataloader_with_our_reader,
    "plain Ray Data": ray_data,
    "Daft": daft,
}

HAND_SET: Mapping[str, Way] = {
    f"ours, {decoders} decoding, {threads} scoring": hand_set(decoders, threads)
    for decoders in (1, 2)
    for threads in (1, 2)
}
"""Ours on two cores with numbers set by hand, to compare with the shares that a run chooses; only with --ways."""


def available() -> Iterator[str]:
    """Yield the names of the ways whose framework is installed."""
    for name in WAYS:
        if name != "Daft" or find_spec("daft") is not None:
            yield name
        else:
            print("Daft is not installed: skipped. To include it: pip install daft", file=sys.stderr)


def plain_clip(path: Path, request: FrameRequest) -> tuple[NDArray[np.uint8], list[int]]:
    """Read a clip like the published code.

    The frames are those of our sampler, which draws like the published one. The resize is ours: torch rounds ties
    differently, in one value of 1,000 of a blurred clip, which changes its sharpness by a factor of 1.6e-4. The patches
    of `kvq-lite` are ours too.
    """
    import decord

    open_as_decoder(path)
    video = decord.VideoReader(str(path))
    assert isinstance(request.sampling, Sampling)
    assert request.size is not None
    indices = request.sampling.indices(len(video)).tolist()
    clip = np.empty((len(indices), *request.size, 3), np.uint8)
    decoded = {index: video[index].asnumpy() for index in sorted(set(indices))}
    for number, index in enumerate(indices):
        write_frame(decoded[index], index, request, clip[number])
    return clip, indices


def our_clip(path: Path, request: FrameRequest) -> tuple[NDArray[np.uint8], list[int]]:
    """Read a clip like kvq-batch, in the calling process."""
    open_as_decoder(path)
    probed = probe(path, VideoLimits())
    reader, _ = open_reader(choose_decoder(probed))
    windows = ClipPolicy().windows(probed.facts.duration_s)
    (clip,) = decode_clips(path, probed, windows, [request], path.name, range(1), Decoding(reader))
    return clip.frames[0].pixels, clip.frames[0].indices.tolist()


def _result(path: Path, clip: NDArray[np.uint8], frames: list[int], scorer: Scorer) -> Result:
    return {"video": path.name, "score": scorer.score([clip])[0].raw_score, "frames": frames}


def _scorer(model: str, num_threads: int) -> Scorer:
    torch.set_num_threads(num_threads)
    return registry.build(ModelOptions(model, _weights(model), num_threads=num_threads))


def _request(scorer: Scorer) -> FrameRequest:
    """Return the only frame request of the model."""
    (request,) = scorer.spec.requests
    return request


def _weights(model: str) -> str | None:
    """Return "untrained" for a model that comes without weights."""
    try:
        registry.describe(ModelOptions(model))
    except SpecError:
        return "untrained"
    return None


def _videos(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())
