"""The scoring stage of one model: adds the model's results to tables of clips.

A worker builds its model once, and fails if the weights differ from those that the driver saw. A batch that raises is
scored again clip by clip, so that one bad clip costs only itself. A batch that does not fit into memory is halved. A
worker whose GPU context is broken raises DeviceLostError: each further clip would fail. The driver decides about
retries.
"""

import logging
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from kvq_batch.domain.errors import DeviceLostError, FatalError, ItemError, OutOfMemoryError
from kvq_batch.domain.scorer import Clip, ModelOptions, PipelinedScorer, Prediction, Scorer
from kvq_batch.engine.stream import RESULT, clip_array, prediction_values
from kvq_batch.models.device_errors import first_line, is_device_lost, is_out_of_memory
from kvq_batch.models.host_threads import set_num_threads
from kvq_batch.models.registry import build
from kvq_batch.storage.redact import redact

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ScoreSettings:
    """Settings of the scoring workers of one model.

    `model_id` identifies the model as the driver saw it. `model_index` is its index in the job and `requests` the
    indices of its frame requests. `drops` are the requests whose frames no later model needs.
    """

    model: ModelOptions
    model_id: str
    model_index: int
    requests: tuple[int, ...]
    drops: tuple[int, ...]
    batch_size: int


class ScoreWorker:
    """Worker that scores clips with one model.

    Raises:
        FatalError: the weights on this machine differ from those that the driver saw.
    """

    def __init__(self, settings: ScoreSettings) -> None:
        self._settings = settings
        scorer = build(settings.model)
        if scorer.spec.card.model_id != settings.model_id:
            raise FatalError(
                f"model {settings.model.name!r} is {scorer.spec.card.model_id} on this worker but "
                f"{settings.model_id} on the driver: put the same weights at {settings.model.weights} on every machine"
            )
        self._is_tuple = len(scorer.spec.requests) > 1
        self._batches = Batches(scorer, settings.batch_size)

    def close(self) -> None:
        """Do nothing: the model is freed with the worker."""

    def set_num_threads(self, number: int) -> None:
        """Use `number` CPU threads in the calls of this thread."""
        set_num_threads(number)

    def __call__(self, clips: pa.Table) -> pa.Table:
        """Return the clips with the column `result_m`, without the frames in `drops`.

        Raises:
            DeviceLostError: this process cannot score any clip any more.
        """
        settings = self._settings
        model_mask = clips["model_mask"].to_numpy()
        is_due = ((model_mask >> settings.model_index) & 1).astype(bool)
        results: list[dict[str, Any] | None] = [None] * clips.num_rows
        has_frames = np.ones(clips.num_rows, bool)
        for request in settings.requests:
            has_frames &= clips[f"shape_{request}"].is_valid().to_numpy()
            refused = clips[f"refused_{request}"]
            for row in np.flatnonzero(is_due & refused.is_valid().to_numpy()):
                results[int(row)] = refused[int(row)].as_py()
        rows = np.flatnonzero(is_due & has_frames)
        for row, result in zip(rows, self._batches.score([self._clip(clips, int(row)) for row in rows]), strict=True):
            results[int(row)] = result
        kept = clips.drop_columns([f"frames_{r}" for r in settings.drops])
        return kept.append_column(f"result_{settings.model_index}", pa.array(results, RESULT))

    def _clip(self, clips: pa.Table, row: int) -> Clip:
        arrays = tuple(clip_array(clips, request, row) for request in self._settings.requests)
        return arrays if self._is_tuple else arrays[0]


class Batches:
    """Scores clips in batches of one scorer, and remembers the batch size that fits into memory."""

    def __init__(self, scorer: Scorer, size: int) -> None:
        self._scorer = scorer
        self.size = size

    def score(self, clips: Sequence[Clip]) -> list[dict[str, Any]]:
        """Return one value of `RESULT` per clip, in order."""
        if isinstance(self._scorer, PipelinedScorer) and len(clips) > 1:
            return self._score_overlapped(self._scorer, clips)
        return self._score_in_turn(clips)

    def _score_overlapped(self, scorer: PipelinedScorer, clips: Sequence[Clip]) -> list[dict[str, Any]]:
        """Start each batch before the results of the one before are fetched.

        A block of one batch is cut into two, so that at least half of its copies overlap with computing. After an error
        in a batch its clips are scored again in turn, which finds the clip or the device to blame.
        """
        size = -(-len(clips) // 2)
        results: list[dict[str, Any]] = []
        pending: tuple[Sequence[Clip], Callable[[], list[Prediction]] | None] | None = None
        first, clock = 0, time.perf_counter()
        while pending is not None or first < len(clips):
            following = None
            if batch := clips[first : first + min(size, self.size)]:
                first += len(batch)
                following = batch, _start(scorer, batch)
            if pending is not None:
                found = _finish(scorer, *pending)
                if found is None:
                    results += self._score_in_turn(pending[0])
                else:
                    share_s = (time.perf_counter() - clock) / len(found)
                    results += [result | {"score_s": share_s} for result in found]
                clock = time.perf_counter()
            pending = following
        return results

    def _score_in_turn(self, clips: Sequence[Clip]) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = []
        size_before = self.size
        while len(results) < len(clips):
            batch = clips[len(results) : len(results) + self.size]
            try:
                results += score_clips(self._scorer, batch)
                size_before = self.size
            except OutOfMemoryError as error:
                message = redact(str(error))
                if len(batch) > 1:
                    self.size = len(batch) // 2
                    _LOG.warning("%s; continuing with batches of %d", message, self.size)
                else:
                    # The clip is too large, not the batch: use the previous size for the next clips.
                    self.size = size_before
                    results.append({"error": "out_of_memory", "message": f"{message}; give the model more memory"})
        return results


def _start(scorer: PipelinedScorer, clips: Sequence[Clip]) -> Callable[[], list[Prediction]] | None:
    """Return what waits for the predictions, None if an error was raised: the clips are then scored again."""
    try:
        return scorer.start(clips)
    except Exception:  # noqa: BLE001 - scoring the clips again handles every error
        _LOG.debug("a batch of %d clips cannot be started", len(clips), exc_info=True)
        return None


def _finish(
    scorer: PipelinedScorer, clips: Sequence[Clip], wait: Callable[[], list[Prediction]] | None
) -> list[dict[str, Any]] | None:
    """Return the values of `RESULT` of clips that were started, None if an error was raised."""
    if wait is None:
        return None
    try:
        return [prediction_values(found, scorer.spec.has_score) for _, found in zip(clips, wait(), strict=True)]
    except Exception:  # noqa: BLE001 - scoring the clips again handles every error
        _LOG.debug("a batch of %d clips failed", len(clips), exc_info=True)
        return None


def score_clips(scorer: Scorer, clips: Sequence[Clip]) -> list[dict[str, Any]]:
    """Return one value of `RESULT` per clip, in order, with `error` for a clip that the model cannot score.

    Raises:
        OutOfMemoryError: the clips do not fit into memory together.
        DeviceLostError: this process cannot score any clip any more.
    """
    started = time.perf_counter()
    try:
        predictions = zip(clips, scorer.score(clips), strict=True)
        results = [prediction_values(prediction, scorer.spec.has_score) for _, prediction in predictions]
    except OutOfMemoryError:
        raise
    except Exception as error:
        if is_out_of_memory(error, len(clips)):
            # The frames of the traceback hold what the model had made so far.
            traceback.clear_frames(error.__traceback__)
            raise OutOfMemoryError(f"{len(clips)} clip(s) do not fit: {first_line(error)}") from error
        if is_device_lost(error):
            raise DeviceLostError(f"its GPU cannot be used any more: {first_line(error)}") from error
        if len(clips) == 1 and isinstance(error, ItemError):
            return [{"error": error.code, "message": redact(error.message), "permanent": error.permanent}]
        if len(clips) == 1:
            return [{"error": type(error).__name__, "message": redact(str(error))}]
    else:
        share_s = (time.perf_counter() - started) / len(clips)
        return [result | {"score_s": share_s} for result in results]
    # After the handler, so that the errors of single clips do not have the batch's as their context.
    return [result for clip in clips for result in score_clips(scorer, [clip])]
