"""Ours beside what one would write without it: same videos, same model, one run; then one broken video among good ones.

    python -m benchmarks.side_by_side [--models luma-sharpness] [--ways ours "plain loop"] [--broken truncated]

Each way (`benchmarks.ways`) runs in a process of its own, one after the other, from nothing to its end, over 12 videos
and over the same 12 several times. What a video costs is the difference of these two runs over what one has more (rates
between first and last result would leave out what is in flight at the end); what is left is start and end. Core-
seconds are user and system time of that process and all that it starts (for Ray: its servers and workers), memory the
sum of their proportional sets. Every way has one BLAS thread a process, and torch as many as it asks for. Ways that do
not see the same frames, or whose scores differ by more than 1e-4, end the comparison. What other processes took of the
machine meanwhile is told beside each run: where that is much, seconds mean nothing, above all for Ray, whose workers
are nice by 15.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.crafted import BROKEN
from benchmarks.process_tree import ProcessTree, machine_core_seconds
from benchmarks.tables import print_table
from kvq_batch.domain.errors import FatalError
from kvq_batch.media.synthesis import DEGRADATIONS, ClipShape, write_demo_clips

TOLERANCE = 1e-4
"""Largest difference of two ways' scores: absolute below 1, relative above."""

MODELS = ("luma-sharpness", "kvq-tiny")

_LOOK_EVERY_S = 0.2

# Idle BLAS threads wait at full speed: where one way has them and another not, they are most of the difference.
_ONE_BLAS_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")

_VERSIONS = tuple(d for d in DEGRADATIONS if (d.name, d.level) not in {("compression", 1), ("downscale", 1)})
_NUM_SCENES = 3


@dataclass(slots=True)
class Trial:
    """What came of one way over one folder. `exit_code` is None where it was still at work when its time was up."""

    scores: dict[str, float] = field(default_factory=dict)
    frames: dict[str, list[int]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    exit_code: int | None = None
    seconds: float = 0.0
    core_seconds: float = 0.0
    others_core_seconds: float = 0.0
    peak_bytes: int = 0
    said: str = ""

    def take(self, results: Sequence[Mapping[str, Any]]) -> None:
        """Notes results that were told."""
        for result in results:
            video = result["video"]
            for name, held in (("score", self.scores), ("frames", self.frames), ("failure", self.failures)):
                if name in result:
                    held[video] = result[name]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a way takes for a video, and to start and end; seconds of the clock, and core-seconds."""

    video_s: float
    video_core_s: float
    start_s: float
    start_core_s: float
    peak_bytes: int

    @classmethod
    def of(cls, few: Trial, many: Trial) -> "Cost":
        """The line through two whole runs."""
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


def try_way(way: str, model: str, folder: Path, cores: int, limit_s: float) -> Trial:
    """One way over the videos of a folder, in a process of its own, with everything that it started ended after it."""
    trial = Trial()
    temporary = Path(tempfile.mkdtemp(prefix="kvq-"))  # short: Ray's sockets stand below it
    environment = {**os.environ, **_ONE_BLAS_THREAD, "DO_NOT_TRACK": "true"}
    environment |= {"RAY_TMPDIR": str(temporary), "TMPDIR": str(temporary)}
    # Not stdout: ours sends what is printed there while Ray is up into Ray's log.
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "benchmarks.side_by_side", "--one", way, model, str(folder), str(cores)]
    log = temporary / "log"
    started, busy_before = time.monotonic(), machine_core_seconds()
    with log.open("wb") as output:
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
            tree.look()
            trial.exit_code = process.poll()
            with suppress(queue.Empty):
                trial.take(json.loads(lines.get(timeout=min(_LOOK_EVERY_S, left_s))))
    finally:
        trial.seconds = time.monotonic() - started
        tree.kill()
        trial.core_seconds, trial.peak_bytes = tree.core_seconds, tree.peak_bytes
        trial.others_core_seconds = machine_core_seconds() - busy_before - trial.core_seconds
        process.wait()
    # The pipe ends with the last process that holds it; what was told before that counts.
    reader.join()
    while not lines.empty():
        trial.take(json.loads(lines.get()))
    trial.said = log.read_text(errors="replace")
    shutil.rmtree(temporary, ignore_errors=True)
    return trial


def _read(descriptor: int, lines: "queue.SimpleQueue[str]") -> None:
    """Puts the lines of a pipe into `lines`, until it ends."""
    with open(descriptor, encoding="utf-8") as stream:
        for line in stream:
            lines.put(line)


def run_one(way: str, model: str, folder: Path, cores: int, descriptor: int) -> None:
    """One way, in this process, telling results into an open pipe, a line of JSON a batch."""
    from benchmarks.ways import WAYS

    os.set_inheritable(descriptor, False)
    with open(descriptor, "w", encoding="utf-8", buffering=1) as stream:
        WAYS[way](folder, model, cores, lambda results: print(json.dumps(list(results)), file=stream))


def check_agreement(trials: Mapping[str, Trial], videos: Sequence[str]) -> None:
    """Refuses a comparison of ways that did not do the same.

    Raises:
        FatalError: a way ended early, saw other frames, or gave other scores than the first.
    """
    first_name, first = next(iter(trials.items()))
    for name, trial in trials.items():
        if trial.exit_code != 0 or set(trial.scores) != set(videos):
            last = trial.said.strip()[-2000:]
            raise FatalError(f"{name}: {len(trial.scores)} of {len(videos)} scored, exit {trial.exit_code}: {last}")
        for video in videos:
            if trial.frames[video] != first.frames[video]:
                raise FatalError(f"{video}: {name} saw other frames than {first_name}; the ways are not comparable")
            ours, theirs = first.scores[video], trial.scores[video]
            if abs(ours - theirs) > TOLERANCE * max(1.0, abs(ours)):
                raise FatalError(f"{video}: {first_name} scores it {ours:.6f}, {name} {theirs:.6f}; not comparable")


def verdict(trial: Trial, good: Sequence[str], broken: str) -> str:
    """What a way did with one broken video among good ones, in words."""
    scored = len(set(good) & set(trial.scores))
    all_scored = scored == len(good)
    if trial.exit_code is None:
        end = f"still at work after {trial.seconds:.0f} s"
    elif trial.exit_code < 0:
        end = f"ends by {signal.Signals(-trial.exit_code).name}"
    else:
        end = "ends well" if trial.exit_code == 0 else "ends with an error"
    others = f"scores all {len(good)} others" if all_scored else f"loses {len(good) - scored} of {len(good)} others"
    if broken in trial.scores:
        name = "gives it a score as if it were whole"
    elif broken in trial.failures:
        name = f"names it ({trial.failures[broken]})"
    else:
        name = "names it in a traceback" if broken in trial.said else "does not name it"
    return f"{end}; {others}; {name}"


def compare(ways: Sequence[str], model: str, few: Path, many: Path, cores: int, limit_s: float) -> list[dict[str, Any]]:
    """A row for each way, over the same good videos, few and many."""
    trials: dict[Path, dict[str, Trial]] = {few: {}, many: {}}
    costs: dict[str, Cost] = {}
    for way in ways:
        for folder, others in trials.items():
            others[way] = try_way(way, model, folder, cores, limit_s)
            _report(f"{model}, {len(list(folder.iterdir()))} videos, {way}", others[way])
            check_agreement(others, sorted(path.name for path in folder.iterdir()))
        costs[way] = Cost.of(trials[few][way], trials[many][way])
    base = costs[ways[0]]
    return [
        {
            "model": model,
            "way": way,
            "core-s a video": f"{cost.video_core_s:.2f}",
            f"of {ways[0]}": f"{cost.video_core_s / base.video_core_s:.2f}",
            "s a video": f"{cost.video_s:.2f}",
            f"videos/s of {ways[0]}": f"{base.video_s / cost.video_s:.2f}",
            "core-s to start and end": f"{cost.start_core_s:.1f}",
            "s to start and end": f"{cost.start_s:.1f}",
            "peak memory, MiB": cost.peak_bytes >> 20,
        }
        for way, cost in costs.items()
    ]


def poison(
    ways: Sequence[str], kinds: Sequence[str], videos: Sequence[Path], folder: Path, cores: int, limit_s: float
) -> list[dict[str, Any]]:
    """A row for each way: what it does with one broken video of each kind among good ones."""
    rows: list[dict[str, Any]] = [{"way": way} for way in ways]
    for kind in kinds:
        for row in rows:
            place = Path(tempfile.mkdtemp(dir=folder)) / "videos"
            place.mkdir()
            bad = len(videos) // 2
            broken = BROKEN[kind](videos[bad], place).name
            good = [video for number, video in enumerate(videos) if number != bad]
            for video in good:
                (place / video.name).hardlink_to(video)
            trial = try_way(row["way"], "luma-sharpness", place, cores, limit_s)
            row[kind] = verdict(trial, [video.name for video in good], broken)
            _report(f"{kind}, {row['way']}: {row[kind]}", trial)
    return rows


def _report(what: str, trial: Trial) -> None:
    """Tells what was just measured, beside the tables."""
    print(
        f"{what}: {len(trial.scores)} scores, {trial.seconds:.1f} s, {trial.core_seconds:.1f} core-s, "
        f"{trial.peak_bytes >> 20} MiB; all other processes meanwhile {trial.others_core_seconds:.1f} core-s",
        file=sys.stderr,
        flush=True,
    )


def _make_videos(folder: Path, shape: ClipShape, times: int) -> tuple[Path, Path]:
    """Two folders: some videos, and the same so many times under other names."""
    made = [clip.path for clip in write_demo_clips(folder / "made", _NUM_SCENES, shape, _VERSIONS)]
    few, many = folder / "few", folder / "many"
    for place, copies in ((few, 1), (many, times)):
        place.mkdir()
        for number, clip in enumerate(made * copies):
            (place / f"video-{number:03}.mp4").hardlink_to(clip)
    return few, many


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3, help="how often the longer run has the 12 videos")
    parser.add_argument("--size", default="1280x720", help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--models", nargs="*", default=list(MODELS), help="none: only the broken videos")
    parser.add_argument("--ways", nargs="+", help="default: all that can go here; ratios are to the first")
    parser.add_argument("--broken", nargs="*", choices=list(BROKEN), default=["truncated", "killer"], help="kinds")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--limit-s", type=float, default=600.0, help="seconds that a way may take over good videos")
    parser.add_argument("--broken-limit-s", type=float, default=60.0, help="the same, with a broken one among them")
    parser.add_argument("--output", choices=["markdown", "json"], default="markdown")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        way, model, videos, cores, descriptor = arguments.one
        run_one(way, model, Path(videos), int(cores), int(descriptor))
        return
    from benchmarks.ways import available

    # Ended by a signal, it still ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    ways = arguments.ways or list(available())
    width, height = map(int, arguments.size.split("x"))
    with tempfile.TemporaryDirectory(prefix="kvq-bench-") as name:
        few, many = _make_videos(Path(name), ClipShape(width_px=width, height_px=height), arguments.times)
        for model in arguments.models:
            print_table(compare(ways, model, few, many, arguments.cores, arguments.limit_s), arguments.output)
            print(flush=True)
        if arguments.broken:
            videos = sorted(few.iterdir())
            rows = poison(ways, arguments.broken, videos, Path(name), arguments.cores, arguments.broken_limit_s)
            print_table(rows, arguments.output)


if __name__ == "__main__":
    main()
