"""What a person sees of a run while it goes, and what a log collector reads.

A bar on a terminal; nothing where stderr is no terminal; one JSON object a line where asked for. All of it on stderr.
This module reads the account and never writes to it.
"""

import json
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

if TYPE_CHECKING:
    from kvq_batch.engine.rows import Row
    from kvq_batch.engine.work_tracker import WorkTracker

_LOG = "kvq_batch.log"

_OF_A_SCORE = ("video_id", "model_id", "model_origin", "raw_score", "num_clips", "decode_s", "score_s")
_OF_A_LABEL = ("label_id", "video_id", "scene_id", "name", "vmaf", "rendition_uri", "make_s")
_OF_A_FAILURE = ("video_id", "model_id", "stage", "error", "message", "attempt", "final", "permanent")


class RunProgress:
    """A bar with what is done and what failed, things a second, time left, and the stage that holds the others up.

    `workers` are the most workers of each stage that the account measures.
    """

    def __init__(self, workers: Mapping[str, int], things: str = "videos", done: str = "scored") -> None:
        self._console = Console(stderr=True, highlight=False)
        self._workers = workers
        self._things = things
        self._done = done
        self._first: float | None = None
        # In 80 columns every word of it stands; the bar takes what is left.
        self._bar = Progress(
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4)),
            MofNCompleteColumn(),
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            TextColumn("ETA", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True),
            console=self._console,
            transient=True,
            expand=True,
            # The engine parts Ray's words from ours meanwhile; two who hold the streams would trip over each other.
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def started(self, run_id: str, num_videos: int) -> None:
        self._bar.update(self._task, description="starting workers", total=num_videos)

    def progressed(self, tracker: "WorkTracker") -> None:
        now = time.monotonic()
        if self._first is None:
            # Starting workers is no part of the speed: the clock starts when the first result was begun.
            self._first = now - sum(tracker.busy_s.values())
        elapsed_s = max(now - self._first, 1e-9)
        busy = {stage: spent_s / elapsed_s / self._workers[stage] for stage, spent_s in tracker.busy_s.items()}
        slowest = max(busy, key=lambda stage: busy[stage])
        rate = tracker.num_videos_done / elapsed_s
        words = (
            f"{tracker.num_scored} {self._done}, {tracker.num_failed} failed, {rate:.3g} {self._things}/s, "
            f"{slowest}-bound {min(busy[slowest], 1):.0%}"
        )
        self._bar.update(self._task, completed=tracker.num_videos_done, description=words)

    def committed(self, scores: "Sequence[Row]", failures: "Sequence[Row]") -> None:
        """A bar needs no word for each commit."""

    def told(self, text: str) -> None:
        if self._console.is_terminal:
            self.note(text)

    def note(self, text: str) -> None:
        """A sentence above the bar, said without a terminal too."""
        self._console.print(text, markup=False, soft_wrap=True)


class JsonLog:
    """One JSON object a line: what happened, when, in which run, to which video."""

    def __init__(self) -> None:
        self._run_id: str | None = None
        # Whoever stops a run is answered by a thread of its own.
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to put away."""

    def started(self, run_id: str, num_videos: int) -> None:
        self._run_id = run_id
        self._write("run started", num_videos=num_videos)

    def progressed(self, tracker: "WorkTracker") -> None:
        """Each outcome is logged when it is committed."""

    def committed(self, scores: "Sequence[Row]", failures: "Sequence[Row]") -> None:
        for row in scores:
            if "label_id" in row:
                self._write("labelled", **{name: row[name] for name in _OF_A_LABEL})
            else:
                self._write("scored", **{name: row[name] for name in _OF_A_SCORE})
        for row in failures:
            self._write("failed", **{name: row[name] for name in _OF_A_FAILURE})

    def told(self, text: str) -> None:
        self._write("note", message=text)

    def note(self, text: str) -> None:
        self.told(text)

    def _write(self, event: str, **fields: Any) -> None:
        moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"time": moment, "run_id": self._run_id, "event": event, **fields}
        with self._lock:
            sys.stderr.write(json.dumps(line, ensure_ascii=False) + "\n")
            sys.stderr.flush()


def use_log(context: Any) -> JsonLog:
    """A JSON log for the rest of this command, so that errors go there too."""
    log = JsonLog()
    context.meta[_LOG] = log
    return log


def log_of(context: Any) -> JsonLog | None:
    """The log that this command writes, if it writes one."""
    log = context.meta.get(_LOG)
    return log if isinstance(log, JsonLog) else None
