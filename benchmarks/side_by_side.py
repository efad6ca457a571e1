"""Compare kvq-batch with plain code in other frameworks, on good videos and with a broken one among them.

    python -m benchmarks.side_by_side [--models kvq-lite] [--ways ours "plain loop"] [--broken truncated] [--repeats 3]

Each way (`benchmarks.ways`) runs in a separate process, one after the other, over 12 videos and over the same 12 many
times. The cost of a video is the difference of these two runs, divided by the number of additional videos; the rest is
start and end. (Rates between first and last result would omit what is in flight at the end.) Core-seconds are user and
system time of the process and its descendants (for Ray: its servers and workers); memory is the sum of their
proportional set sizes. Every way has one BLAS thread per process, and as many torch threads as it requests. The
comparison stops if two ways see different frames or their scores differ by more than 1e-4. The core-seconds of other
processes are printed for each run: if they are many, the seconds mean nothing, most of all for Ray, whose workers have
niceness 15. With `--repeats` the ways take turns, and the least seconds and core-seconds of each count.
"""

import argparse
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.crafted import BROKEN
from benchmarks.process_tree import ProcessTree, machine_core_seconds
from benchmarks.tables import print_table
from kvq_batch.domain.errors import FatalError
from kvq_batch.media.synthesis import DEGRADATIONS, ClipShape, write_demo_clips

TOLERANCE = 1e-4
"""Largest allowed difference of scores: absolute below 1, relative above."""

MODELS = ("luma-sharpness", "kvq-lite", "kvq-tiny")

_SAMPLE_EVERY_S = 0.2

# Idle BLAS threads spin: if only one way has them, they are most of the difference.
_ONE_BLAS_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")

_DEGRADATIONS = tuple(d for d in DEGRADATIONS if (d.name, d.level) not in {("compression", 1), ("downscale", 1)})
_NUM_SCENES = 3


@dataclass(slots=True)
class Trial:
    """Outcome of one way over one folder. `exit_code` is None if it was still running at its time limit."""

    scores: dict[str, float] = field(default_factory=dict)
    frames: dict[str, list[int]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    exit_code: int | None = None
    seconds: float = 0.0
    core_seconds: float = 0.0
    others_core_seconds: float = 0.0
    peak_bytes: int = 0
    log: str = ""

    def add(self, results: Sequence[Mapping[str, Any]]) -> None:
        """Add results that the process has sent."""
        for result in results:
            video = result["video"]
            for name, values in (("score", self.scores), ("frames", self.frames), ("failure", self.failures)):
                if name in result:
                    values[video] = result[name]


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of a video, and of start and end, in seconds and core-seconds."""

    video_s: float
    video_core_s: float
    start_s: float
    start_core_s: float
    peak_bytes: int

    @classmethod
    def of(cls, few: Trial, many: Trial) -> "Cost":
        """Return the line through two whole runs."""
        more = len(many.scores) - len(few.scores)
        video_s = (many.seconds - few.seconds) / more
        video_core_s = (many.core_seconds - few.core_seconds) / more
        return cls(
            video_s=video_s,
            video_core_s=video_core_s,
            start_s=few.seconds - len(few.scores) * video_s,
            start_core_s=few.core_seconds - len(few.scores) * video_core_s,
            peak_bytes=max(few.peak_bytes, many.peak_bytes),
        )


def run_way(way: str, model: str, folder: Path, cores: int, limit_s: float) -> Trial:
    """Run one way over the videos of a folder in a separate process, then kill all its descendants."""
    trial = Trial()
    temporary = Path(tempfile.mkdtemp(prefix="kvq-"))  # short, because Ray's sockets are below it
    environment = {**os.environ, **_ONE_BLAS_THREAD, "DO_NOT_TRACK": "true"}
    environment |= {"RAY_TMPDIR": str(temporary), "TMPDIR": str(temporary)}
    # Not stdout: kvq-batch redirects it to Ray's log while Ray runs.
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "benchmarks.side_by_side", "--one", way, model, str(folder), str(cores)]
    log_file = temporary / "log"
    started, busy_before_s = time.monotonic(), machine_core_seconds()
    with log_file.open("wb") as output:
        process = subprocess.Popen(
            [*command, str(writing)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            pass_fds=[writing],
        )
    os.close(writing)
    tree, lines = ProcessTree(process.pid), queue.SimpleQueue[str]()
    reader = threading.Thread(target=_read, args=(reading, lines), daemon=True)
    reader.start()

    try:
        while (left_s := started + limit_s - time.monotonic()) > 0 and trial.exit_code is None:
            tree.sample()
            trial.exit_code = process.poll()
            with suppress(queue.Empty):
                trial.add(json.loads(lines.get(timeout=min(_SAMPLE_EVERY_S, left_s))))
    finally:
        trial.seconds = time.monotonic() - started
        tree.kill()
        trial.core_seconds, trial.peak_bytes = tree.core_seconds, tree.peak_bytes
        trial.others_core_seconds = machine_core_seconds() - busy_before_s - trial.core_seconds
        process.wait()
    # The pipe ends when the last process that has it open ends; everything sent before counts.
    reader.join()
    while not lines.empty():
        trial.add(json.loads(lines.get()))
    trial.log = log_file.read_text(errors="replace")
    shutil.rmtree(temporary, ignore_errors=True)
    return trial


def _read(descriptor: int, lines: "queue.SimpleQueue[str]") -> None:
    """Put the lines of a pipe into `lines` until it ends."""
    with open(descriptor, encoding="utf-8") as stream:
        for line in stream:
            lines.put(line)


def run_one(way: str, model: str, folder: Path, cores: int, descriptor: int) -> None:
    """Run one way in this process and write its results to an open pipe, one line of JSON per batch."""
    from benchmarks.ways import HAND_SET, WAYS

    os.set_inheritable(descriptor, False)
    with open(descriptor, "w", encoding="utf-8", buffering=1) as stream:
        {**WAYS, **HAND_SET}[way](folder, model, cores, lambda results: print(json.dumps(list(results)), file=stream))


def check_agreement(trials: Mapping[str, Trial], videos: Sequence[str]) -> None:
    """Check that all ways did the same work.

    Raises:
        FatalError: a way ended early, or its frames or scores differ from those of the first.
    """
    first_name, first = next(iter(trials.items()))
    for name, trial in trials.items():
        if trial.exit_code != 0 or set(trial.scores) != set(videos):
            last = trial.log.strip()[-2000:]
            raise FatalError(f"{name}: {len(trial.scores)} of {len(videos)} scored, exit {trial.exit_code}: {last}")
        for video in videos:
            if trial.frames[video] != first.frames[video]:
                raise FatalError(f"{video}: {name} read other frames than {first_name}; the results are not comparable")
            ours, theirs = first.scores[video], trial.scores[video]
            if abs(ours - theirs) > TOLERANCE * max(1.0, abs(ours)):
                raise FatalError(
                    f"{video}: {first_name} scores it {ours:.6f}, {name} {theirs:.6f}; the results are not comparable"
                )


def verdict(trial: Trial, good: Sequence[str], broken: str) -> str:
    """Describe what a way did with one broken video among good ones."""
    scored = len(set(good) & set(trial.scores))
    all_scored = scored == len(good)
    if trial.exit_code is None:
        end = f"still running after {trial.seconds:.0f} s"
    elif trial.exit_code < 0:
        end = f"is killed by {signal.Signals(-trial.exit_code).name}"
    else:
        end = "succeeds" if trial.exit_code == 0 else "fails"
    others = f"scores all {len(good)} others" if all_scored else f"loses {len(good) - scored} of {len(good)} others"
    if broken in trial.scores:
        name = "gives it a score as if it were whole"
    elif broken in trial.failures:
        name = f"names it ({trial.failures[broken]})"
    else:
        name = "names it in a traceback" if broken in trial.log else "does not name it"
    return f"{end}; {others}; {name}"


def best(trials: Sequence[Trial]) -> Trial:
    """Return the last of several equal trials, with the least seconds and core-seconds of all."""
    return replace(
        trials[-1],
        seconds=min(trial.seconds for trial in trials),
        core_seconds=min(trial.core_seconds for trial in trials),
    )


def compare(
    ways: Sequence[str], model: str, few: Path, many: Path, cores: int, limit_s: float, repeats: int = 1
) -> list[dict[str, Any]]:
    """Return a row for each way, over the same good videos, few and many."""
    trials: dict[Path, dict[str, list[Trial]]] = {folder: {way: [] for way in ways} for folder in (few, many)}
    for _ in range(repeats):
        for way in ways:
            for folder, by_way in trials.items():
                trial = run_way(way, model, folder, cores, limit_s)
                _report(f"{model}, {len(list(folder.iterdir()))} videos, {way}", trial)
                first = by_way[ways[0]][0] if by_way[ways[0]] else trial
                check_agreement({ways[0]: first, way: trial}, sorted(path.name for path in folder.iterdir()))
                by_way[way].append(trial)
    whole = {way: best(found) for way, found in trials[many].items()}
    costs = {way: Cost.of(best(trials[few][way]), whole[way]) for way in ways}
    base, num_videos = costs[ways[0]], len(whole[ways[0]].scores)
    return [
        {
            "model": model,
            "way": way,
            "core-s per video": f"{cost.video_core_s:.2f}",
            f"relative to {ways[0]}": f"{cost.video_core_s / base.video_core_s:.2f}",
            "s per video": f"{cost.video_s:.2f}",
            f"videos/s relative to {ways[0]}": f"{base.video_s / cost.video_s:.2f}",
            "core-s to start and end": f"{cost.start_core_s:.1f}",
            "s to start and end": f"{cost.start_s:.1f}",
            f"videos/s of {num_videos}, with start": f"{num_videos / whole[way].seconds:.2f}",
            "core-s per video, with start": f"{whole[way].core_seconds / num_videos:.2f}",
            "peak memory, MiB": cost.peak_bytes >> 20,
        }
        for way, cost in costs.items()
    ]


def compare_broken(
    ways: Sequence[str], kinds: Sequence[str], videos: Sequence[Path], folder: Path, cores: int, limit_s: float
) -> list[dict[str, Any]]:
    """Return a row for each way: what it does with one broken video of each kind among good ones."""
    rows: list[dict[str, Any]] = [{"way": way} for way in ways]
    for kind in kinds:
        for row in rows:
            target = Path(tempfile.mkdtemp(dir=folder)) / "videos"
            target.mkdir()
            bad_index = len(videos) // 2
            broken = BROKEN[kind](videos[bad_index], target).name
            good = [video for index, video in enumerate(videos) if index != bad_index]
            for video in good:
                (target / video.name).hardlink_to(video)
            trial = run_way(row["way"], "luma-sharpness", target, cores, limit_s)
            row[kind] = verdict(trial, [video.name for video in good], broken)
            _report(f"{kind}, {row['way']}: {row[kind]}", trial)
    return rows


def _report(what: str, trial: Trial) -> None:
    """Print one measurement to stderr."""
    print(
        f"{what}: {len(trial.scores)} scores, {trial.seconds:.1f} s, {trial.core_seconds:.1f} core-s, "
        f"{trial.peak_bytes >> 20} MiB; all other processes {trial.others_core_seconds:.1f} core-s",
        file=sys.stderr,
        flush=True,
    )


def _make_videos(folder: Path, shape: ClipShape, times: int) -> tuple[Path, Path]:
    """Make two folders: some videos, and the same videos `times` times under other names."""
    made = [clip.path for clip in write_demo_clips(folder / "made", _NUM_SCENES, shape, _DEGRADATIONS)]
    few, many = folder / "few", folder / "many"
    for target, copies in ((few, 1), (many, times)):
        target.mkdir()
        for index, clip in enumerate(made * copies):
            (target / f"video-{index:03}.mp4").hardlink_to(clip)
    return few, many


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3, help="repetitions of the 12 videos in the longer run")
    parser.add_argument("--repeats", type=int, default=1, help="times that each way runs; the ways take turns")
    parser.add_argument("--size", default="1280x720", help="WIDTHxHEIGHT in pixels")
    parser.add_argument(
        "--models", nargs="*", default=list(MODELS), help="models to score with; none: only the broken videos"
    )
    parser.add_argument("--ways", nargs="+", help="default: all that are installed; ratios are relative to the first")
    parser.add_argument(
        "--broken", nargs="*", choices=list(BROKEN), default=["truncated", "killer"], help="kinds of broken videos"
    )
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--limit-s", type=float, default=600.0, help="time limit of a run over good videos")
    parser.add_argument("--broken-limit-s", type=float, default=60.0, help="time limit of a run with a broken video")
    parser.add_argument("--output", choices=["markdown", "json"], default="markdown")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        way, model, videos, cores, descriptor = arguments.one
        run_one(way, model, Path(videos), int(cores), int(descriptor))
        return
    from benchmarks.ways import available

    # Kill all processes that were started, also after SIGTERM.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    ways = arguments.ways or list(available())
    width, height = map(int, arguments.size.split("x"))
    with tempfile.TemporaryDirectory(prefix="kvq-bench-") as name:
        few, many = _make_videos(Path(name), ClipShape(width_px=width, height_px=height), arguments.times)
        for model in arguments.models:
            rows = compare(ways, model, few, many, arguments.cores, arguments.limit_s, arguments.repeats)
            print_table(rows, arguments.output)
            print(flush=True)
        if arguments.broken:
            videos = sorted(few.iterdir())
            rows = compare_broken(ways, arguments.broken, videos, Path(name), arguments.cores, arguments.broken_limit_s)
            print_table(rows, arguments.output)


if __name__ == "__main__":
    main()
