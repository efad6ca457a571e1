"""What a person sees of a run while it goes, and what a log collector reads.

A bar on a terminal; nothing where stderr is no terminal; one JSON object a line where asked for. All of it on stderr.
This module reads the ledger and never writes to it.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kvq_batch.engine.ledger import Ledger
from kvq_batch.engine.rows import Row


class RunProgress:
    """A bar with scored, failed, videos a second, time left, and the stage that holds the others up."""

    def __init__(self, decode_workers: int, score_workers: int) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._workers = {"decode": decode_workers, "score": score_workers}
        self._started = time.monotonic()
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[words]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=None, words="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def started(self, run_id: str, num_videos: int) -> None:
        self._started = time.monotonic()
        self._bar.update(self._task, description="scoring", total=num_videos)

    def progressed(self, ledger: Ledger) -> None:
        elapsed_s = max(time.monotonic() - self._started, 1e-9)
        busy = {
            "decode": ledger.decode_s / elapsed_s / self._workers["decode"],
            "score": ledger.score_s / elapsed_s / self._workers["score"],
        }
        slowest = max(busy, key=lambda stage: busy[stage])
        rate = ledger.num_videos_done / elapsed_s
        words = (
            f"{ledger.num_scored} scored, {ledger.num_failed} failed, {rate:.2f} videos/s, "
            f"bound by {slowest} ({min(busy[slowest], 1):.0%} busy)"
        )
        self._bar.update(self._task, completed=ledger.num_videos_done, words=words)

    def committed(self, scores: Sequence[Row], failures: Sequence[Row]) -> None:
        """A bar needs no word for each commit."""

    def told(self, text: str) -> None:
        if self._console.is_terminal:
            self._bar.console.print(text, markup=False)


class JsonLog:
    """One JSON object a line: what happened, when, in which run, to which video."""

    def __init__(self) -> None:
        self._run_id: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to put away."""

    def started(self, run_id: str, num_videos: int) -> None:
        self._run_id = run_id
        self._write("run started", num_videos=num_videos)

    def progressed(self, ledger: Ledger) -> None:
        """Each outcome is logged when it is committed."""

    def committed(self, scores: Sequence[Row], failures: Sequence[Row]) -> None:
        for row in scores:
            self._write("scored", **_part(row, "video_id", "model_id", "raw_score", "num_clips", "decode_s", "score_s"))
        for row in failures:
            self._write("failed", **_part(row, "video_id", "model_id", "stage", "error", "message", "attempt", "final"))

    def told(self, text: str) -> None:
        self._write(text)

    def _write(self, event: str, **fields: Any) -> None:
        moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"time": moment, "run_id": self._run_id, "event": event, **fields}
        sys.stderr.write(json.dumps(line, ensure_ascii=False) + "\n")


def _part(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: row[name] for name in names}
