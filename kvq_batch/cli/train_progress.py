"""What a person sees of a training while it goes: a bar on a terminal, a sentence at each validation anywhere.

A training in processes of its own is followed by the curve that it writes. This module changes nothing of a training.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from kvq_batch.training.validation import Validation

_LOOKS_EVERY_S = 2.0


class TrainProgress:
    """A `TrainObserver` with a bar; also shows the decoding before it."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bar = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TextColumn("ETA"),
            TimeRemainingColumn(compact=True),
            console=self._console,
            transient=True,
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

    def decoded(self, done: int, total: int) -> None:
        self._bar.update(self._task, description="decoding", completed=done, total=total)

    def started(self, step: int, steps: int, num_train: int, num_validation: int) -> None:
        self._bar.update(self._task, description="training", completed=step, total=steps)
        self.note(f"training on {num_train} clips, {num_validation} held out; step {step} of {steps}")

    def stepped(self, step: int, row: Mapping[str, float]) -> None:
        self._bar.update(self._task, description=f"loss {row['loss']:.4f}", completed=step)

    def validated(self, validation: "Validation", is_best: bool) -> None:
        self._say(validation.step, validation.srcc, validation.plcc, is_best)

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def following(self, folder: Path, steps: int) -> Iterator[None]:
        """Shows a training that another process writes into `folder`."""
        from kvq_batch.training.curve import read_curve
        from kvq_batch.training.trainer import CURVE, VALIDATION

        ended = threading.Event()

        def rows(name: str) -> list[dict[str, float]]:
            path = folder / name
            return read_curve(path) if path.exists() else []

        told = len(rows(VALIDATION))

        def follow() -> None:
            nonlocal told
            while not ended.wait(_LOOKS_EVERY_S):
                if curve := rows(CURVE):
                    self._bar.update(self._task, total=steps)
                    self.stepped(int(curve[-1]["step"]), curve[-1])
                for row in (validations := rows(VALIDATION))[told:]:
                    self._say(int(row["step"]), row["srcc"], row["plcc"], bool(row["is_best"]))
                told = max(told, len(validations))

        thread = threading.Thread(target=follow, name="follow-training", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _say(self, step: int, srcc: float, plcc: float, is_best: bool) -> None:
        self.note(f"step {step}: SRCC {srcc:.4f}, PLCC {plcc:.4f} on held-out scenes" + ", the best yet" * is_best)
