"""Ours beside what one would write without it: same videos, same model, one run; then one broken video among good ones.

    python -m benchmarks.side_by_side [--videos 36] [--models luma-sharpness kvq-tiny] [--ways ours "plain loop"]

Each way (`benchmarks.ways`) runs in a process of its own, one after the other. Core-seconds are user and system time
of that process and all that it starts (for Ray: its servers and workers), memory the sum of their proportional sets.
Rates and costs a video are taken from the first results told to the last, so that no start is in them; the start has
a column. Ways that do not see the same frames, or whose scores differ by more than 1e-4, end the comparison.
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

from benchmarks.crafted import killer, truncated
from benchmarks.process_tree import ProcessTree
from benchmarks.tables import print_table
from kvq_batch.domain.errors import FatalError
from kvq_batch.media.synthesis import ClipShape, write_demo_clips

TOLERANCE = 1e-4
"""Largest difference of two ways' scores: absolute below 1, relative above."""

_LOOK_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class Moment:
    """When some results had been told: seconds, core-seconds and videos since the start."""

    seconds: float
    core_seconds: float
    num_scored: int


@dataclass(slots=True)
class Trial:
    """What came of one way over one folder. `exit_code` is None where it was still at work when its time was up."""

    scores: dict[str, float] = field(default_factory=dict)
    frames: dict[str, list[int]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    moments: list[Moment] = field(default_factory=list)
    exit_code: int | None = None
    seconds: float = 0.0
    peak_bytes: int = 0
    said: str = ""

    def take(self, results: Sequence[Mapping[str, Any]], seconds: float, core_seconds: float) -> None:
        """Notes results that were told at this moment."""
        before = len(self.scores)
        for result in results:
            video = result["video"]
            for name, held in (("score", self.scores), ("frames", self.frames), ("failure", self.failures)):
                if name in result:
                    held[video] = result[name]
        if len(self.scores) > before:
            self.moments.append(Moment(seconds, core_seconds, len(self.scores)))

    @property
    def num_between(self) -> int:
        """Videos between the first results and the last."""
        return self.moments[-1].num_scored - self.moments[0].num_scored if self.moments else 0

    @property
    def videos_per_s(self) -> float:
        return self.num_between / (self.moments[-1].seconds - self.moments[0].seconds)

    @property
    def core_s_per_video(self) -> float:
        return (self.moments[-1].core_seconds - self.moments[0].core_seconds) / self.num_between

    @property
    def start_core_s(self) -> float:
        """Core-seconds up to the first results, less what these cost."""
        first = self.moments[0]
        return max(0.0, first.core_seconds - first.num_scored * self.core_s_per_video)


def try_way(way: str, model: str, folder: Path, cores: int, limit_s: float) -> Trial:
    """One way over the videos of a folder, in a process of its own, with everything that it started ended after it."""
    trial = Trial()
    temporary = Path(tempfile.mkdtemp(prefix="kvq-"))  # short: Ray's sockets stand below it
    environment = {**os.environ, "RAY_TMPDIR": str(temporary), "TMPDIR": str(temporary), "DO_NOT_TRACK": "true"}
    # Not stdout: ours sends what is printed there while Ray is up into Ray's log.
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "benchmarks.side_by_side", "--one", way, model, str(folder), str(cores)]
    log = temporary / "log"
    started = time.monotonic()
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

    def take(line: str) -> None:
        trial.take(json.loads(line), time.monotonic() - started, tree.core_seconds)

    try:
        while (left_s := started + limit_s - time.monotonic()) > 0 and trial.exit_code is None:
            tree.look()
            trial.exit_code = process.poll()
            with suppress(queue.Empty):
                line = lines.get(timeout=min(_LOOK_EVERY_S, left_s))
                tree.look()
                take(line)
    finally:
        trial.seconds, trial.peak_bytes = time.monotonic() - started, tree.peak_bytes
        tree.kill()
        process.wait()
    # The pipe ends with the last process that holds it; what was told before that counts.
    reader.join()
    while not lines.empty():
        take(lines.get())
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


def compare(ways: Sequence[str], model: str, folder: Path, cores: int, limit_s: float) -> list[dict[str, Any]]:
    """A row for each way, over the same good videos."""
    videos = sorted(path.name for path in folder.iterdir())
    trials: dict[str, Trial] = {}
    for way in ways:
        trials[way] = try_way(way, model, folder, cores, limit_s)
        check_agreement(trials, videos)
    for way, trial in trials.items():
        if not trial.num_between:
            raise FatalError(f"{way}: all results of {len(videos)} videos came at once; give it more (--videos)")
    base = trials[ways[0]]
    return [
        {
            "model": model,
            "way": way,
            "videos/s": f"{trial.videos_per_s:.3f}",
            f"of {ways[0]}": f"{trial.videos_per_s / base.videos_per_s:.2f}",
            "core-s a video": f"{trial.core_s_per_video:.2f}",
            f"of {ways[0]}'": f"{trial.core_s_per_video / base.core_s_per_video:.2f}",
            "core-s to start": f"{trial.start_core_s:.1f}",
            "peak memory, MiB": trial.peak_bytes >> 20,
        }
        for way, trial in trials.items()
    ]


def poison(
    ways: Sequence[str], videos: Sequence[Path], folder: Path, cores: int, limit_s: float
) -> list[dict[str, Any]]:
    """A row for each way: what it does with one truncated video, and with one that kills its decoder."""
    kinds = {"a truncated video": truncated, "a video that kills its decoder": killer}
    rows: list[dict[str, Any]] = [{"way": way} for way in ways]
    for kind, make in kinds.items():
        for row in rows:
            place = Path(tempfile.mkdtemp(dir=folder)) / "videos"
            place.mkdir()
            bad = len(videos) // 2
            broken = make(videos[bad], place).name
            good = [video for number, video in enumerate(videos) if number != bad]
            for video in good:
                (place / video.name).hardlink_to(video)
            trial = try_way(row["way"], "luma-sharpness", place, cores, limit_s)
            row[kind] = verdict(trial, [video.name for video in good], broken)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=36, help="how many, made anew; at least 4")
    parser.add_argument("--size", default="1280x720", help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--models", nargs="*", default=["luma-sharpness", "kvq-tiny"])
    parser.add_argument("--ways", nargs="+", help="default: all that can go here; ratios are to the first")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--broken-among", type=int, default=12, help="videos beside the broken one; 0 leaves this out")
    parser.add_argument("--limit-s", type=float, default=1200.0, help="seconds that a way may take over good videos")
    parser.add_argument("--poison-limit-s", type=float, default=180.0, help="the same, with a broken one among them")
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
        folder = Path(name)
        made = write_demo_clips(folder / "made", -(-arguments.videos // 6), ClipShape(width_px=width, height_px=height))
        (folder / "videos").mkdir()
        for number, clip in enumerate(made[: arguments.videos]):
            clip.path.rename(folder / "videos" / f"video-{number:03}.mp4")
        for model in arguments.models:
            print_table(compare(ways, model, folder / "videos", arguments.cores, arguments.limit_s), arguments.output)
            print(flush=True)
        if arguments.broken_among:
            few = sorted((folder / "videos").iterdir())[: arguments.broken_among + 1]
            print_table(poison(ways, few, folder, arguments.cores, arguments.poison_limit_s), arguments.output)


if __name__ == "__main__":
    main()
