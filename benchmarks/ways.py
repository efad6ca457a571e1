"""Ways to score a folder of videos with one model: ours, and what one would write without it.

Each is a function that tells results as they come, a batch at a time. All but ours are written in the plain manner of
their framework, on as many processes as there are cores, and decode as the published test code does (decord with its
defaults, frame by frame); one has our reader instead, which tells what isolation and bookkeeping cost from what the
reader saves. None of them but ours stores anything (tables, in the system's temporary folder; removing them is the
caller's); ours reads its tables back, too.
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
from kvq_batch.config.load import make_job
from kvq_batch.domain.frames import FrameRequest, Sampling
from kvq_batch.domain.scorer import ModelOptions, Scorer
from kvq_batch.domain.video import ClipPolicy
from kvq_batch.engine.decode_worker import DecodeWorker
from kvq_batch.engine.observer import SilentObserver
from kvq_batch.engine.rows import Row
from kvq_batch.engine.run import RunOptions
from kvq_batch.engine.score_run import run_job
from kvq_batch.media.decode import Decoding, decode_clips
from kvq_batch.media.decoders import choose_decoder, open_reader
from kvq_batch.media.probe import VideoLimits, probe
from kvq_batch.media.resize import resize
from kvq_batch.models import registry
from kvq_batch.planning.job_plan import plan_job

Result = dict[str, Any]
"""Of one video: `video` (the file's name), and `score`, `frames` (their numbers), or `failure` (why there is none)."""

Read = Callable[[Path], tuple[NDArray[np.uint8], list[int]]]
"""The clip of a video, uint8 RGB [32, 448, 448, 3], and its frames' numbers."""

Tell = Callable[[Sequence[Result]], None]
Way = Callable[[Path, str, int, Tell], None]
"""(folder of videos, name of the model, cores, where results go)."""


def ours(folder: Path, model: str, cores: int, tell: Tell) -> None:
    """The product: a decoding process a core, one scoring process, tables."""
    tables = tempfile.mkdtemp(prefix="tables-")
    job = make_job(
        {
            "name": "side-by-side",
            "tables": tables,
            "catalog": {"source": str(folder)},
            "models": [{"name": model, "weights": _weights(model), "num_threads": cores, "workers": {"num_cpus": 0.5}}],
            "decode": {"workers": {"min": cores, "max": cores, "num_cpus": 0.5}},
            "limits": {"timeout_s": 10.0},
        },
        "benchmark",
    )
    run_job(plan_job(job), _Teller(tell), RunOptions(worker=_CraftedDecodeWorker))
    with kvq_batch.open(tables) as quality:
        clips = quality.sql("SELECT video_id, frame_indices FROM clips").to_pylist()
    tell([{"video": clip["video_id"], "frames": clip["frame_indices"]} for clip in clips])


class _CraftedDecodeWorker(DecodeWorker):
    """The decoding stage, whose children die of files that kill."""

    task_function: ClassVar[str] = "benchmarks.crafted:decode_crafted"


class _Teller(SilentObserver):
    """Tells what is committed."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def committed(self, scores: Sequence[Row], failures: Sequence[Row]) -> None:
        failed = [{"video": row["video_id"], "failure": row["error"]} for row in failures if row["final"]]
        self._tell([{"video": row["video_id"], "score": row["raw_score"]} for row in scores] + failed)


def loop(folder: Path, model: str, cores: int, tell: Tell) -> None:
    """One process, one video after the other; torch has all cores."""
    scorer = _scorer(model, cores)
    for path in _videos(folder):
        tell([_result(path, *plain_clip(path), scorer)])


class _Videos(Dataset[tuple[str, NDArray[np.uint8], list[int]]]):
    """A clip an item."""

    def __init__(self, paths: Sequence[Path], read: Read) -> None:
        self._paths = paths
        self._read = read

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[str, NDArray[np.uint8], list[int]]:
        path = self._paths[index]
        return str(path), *self._read(path)


def dataloader(folder: Path, model: str, cores: int, tell: Tell) -> None:
    """A decoding worker a core; the main process scores, with all cores."""
    _load(folder, model, cores, tell, plain_clip)


def dataloader_with_our_reader(folder: Path, model: str, cores: int, tell: Tell) -> None:
    """The same, with the library's own probe, reader and sampler in those workers."""
    _load(folder, model, cores, tell, our_clip)


def _load(folder: Path, model: str, cores: int, tell: Tell, read: Read) -> None:
    scorer = _scorer(model, cores)
    loader = DataLoader(_Videos(_videos(folder), read), batch_size=1, num_workers=cores, collate_fn=_only_one)
    for path, clip, frames in loader:
        tell([_result(Path(path), clip, frames, scorer)])


def _only_one(items: list[Any]) -> Any:
    return items[0]


class _PlainActor:
    """Decodes and scores in its own process."""

    def __init__(self, model: str) -> None:
        self._scorer = _scorer(model, 1)

    def __call__(self, row: Result) -> Result:
        path = Path(row["path"])
        return _result(path, *plain_clip(path), self._scorer)


def ray_data(folder: Path, model: str, cores: int, tell: Tell) -> None:
    """`map` over an actor a core that decodes and scores in its own process; Ray's defaults."""
    import ray

    ray.init(address="local", num_cpus=cores, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    actor: Any = _PlainActor  # Ray's types know callable classes no better than as functions
    dataset = ray.data.from_items([{"path": str(path)} for path in _videos(folder)]).map(
        actor,
        fn_constructor_args=(model,),
        compute=ray.data.ActorPoolStrategy(size=cores),
        num_cpus=1,
    )
    for row in dataset.iter_rows():
        tell([row])


def daft(folder: Path, model: str, cores: int, tell: Tell) -> None:
    """A class of as many instances as cores over a column of paths; Daft's native runner and defaults."""
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
            return _result(Path(path), *plain_clip(Path(path)), self._scorer)

    scorer = library.cls(PlainScorer, max_concurrency=cores)(model)
    frame = library.from_pydict({"path": [str(path) for path in _videos(folder)]}).into_batches(1)
    for row in frame.select(scorer.score(library.col("path")).alias("result")).iter_rows():
        tell([row["result"]])


WAYS: Mapping[str, Way] = {
    "ours": ours,
    "plain loop": loop,
    "torch DataLoader": dataloader,
    "DataLoader, our reader": dataloader_with_our_reader,
    "plain Ray Data": ray_data,
    "Daft": daft,
}


def available() -> Iterator[str]:
    """The names of the ways that can go here."""
    for name in WAYS:
        if name != "Daft" or find_spec("daft") is not None:
            yield name
        else:
            print("Daft is not installed here and is left out.", file=sys.stderr)


def plain_clip(path: Path) -> tuple[NDArray[np.uint8], list[int]]:
    """`Read` as published.

    The frames are those of our sampler, as the published one draws; the resize is ours: torch's rounds ties otherwise,
    in one value of 1,000 of a blurred clip, which moves its sharpness by 1.6e-4 of itself.
    """
    import decord

    open_as_decoder(path)
    video = decord.VideoReader(str(path))
    numbers = Sampling().indices(len(video)).tolist()
    decoded = {number: video[number].asnumpy() for number in sorted(set(numbers))}
    return resize(np.stack([decoded[number] for number in numbers]), (448, 448)), numbers


def our_clip(path: Path) -> tuple[NDArray[np.uint8], list[int]]:
    """`Read` as this library does it, in the calling process."""
    open_as_decoder(path)
    probed = probe(path, VideoLimits())
    reader, _ = open_reader(choose_decoder(probed))
    windows = ClipPolicy().windows(probed.facts.duration_s)
    (clip,) = decode_clips(path, probed, windows, [FrameRequest()], path.name, range(1), Decoding(reader))
    return clip.frames[0].pixels, clip.frames[0].indices.tolist()


def _result(path: Path, clip: NDArray[np.uint8], frames: list[int], scorer: Scorer) -> Result:
    return {"video": path.name, "score": scorer.score([clip])[0].raw_score, "frames": frames}


def _scorer(model: str, num_threads: int) -> Scorer:
    torch.set_num_threads(num_threads)
    return registry.build(ModelOptions(model, _weights(model), num_threads=num_threads))


def _weights(model: str) -> str | None:
    return "untrained" if model.startswith("kvq") else None


def _videos(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())
