"""Scorer of causes: turns the measures of a clip into severities of 0 to 1, in numpy.

S slots, R rows, C columns.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.scorer import Prediction, ScorerSpec
from kvq_batch.features.causes.extraction import Measures, unpack
from kvq_batch.models.causes.config import CausesConfig, Range

Floats = NDArray[np.float32]

# Share of the cells with an edge that are sharper than the frame's value: a picture in focus has sharp edges somewhere.
_SHARPEST = 0.25
# Texture counts as noise, so a frame has the noise of its smoothest quarter.
_SMOOTHEST = 0.25
# A tenth of the frame has stronger bands: they are seen in a sky, even if the rest of the picture is textured.
_BANDED = 0.9
# Bars count only if the picture is not dark as a whole.
_DARK_FRAME = 0.9


class CausesScorer:
    """A `Scorer` of causes. It has no score.

    Its outputs are one severity per cause for the whole clip: of a statistic of each frame, averaged over the slots.
    """

    def __init__(self, spec: ScorerSpec, config: CausesConfig) -> None:
        self._spec = spec
        self._config = config

    @property
    def spec(self) -> ScorerSpec:
        return self._spec

    def score(self, clips: Sequence[Floats]) -> list[Prediction]:
        """Return one prediction per clip, in order; clips are results of `CauseExtraction`, float32 [S, n]."""
        return [self._predict(unpack(clip, (self._config.num_rows, self._config.num_cols))) for clip in clips]

    def _predict(self, found: Measures) -> Prediction:
        config = self._config
        combing, frame_combing = self._combing(found)
        is_black = ramp(found.frame("dark"), config.black)
        whole = {
            "under_exposure": np.where(is_black > 0, 0, ramp(found.frame("highlight"), config.under_exposure)),
            "black": is_black,
            **self._repeats(found.changes, is_black),
            "letterbox": self._letterbox(found),
        }
        cells = {
            "blur": ramp(found.cell("width"), config.blur),
            "noise": ramp(found.cell("noise"), config.noise),
            "blockiness": ramp(found.cell("blocks"), config.blockiness),
            "banding": ramp(found.cell("bands"), config.banding),
            "over_exposure": ramp(found.cell("white"), config.over_exposure),
            "combing": combing,
        }
        frames = {
            "blur": ramp(_quantile(found.cell("width"), _SHARPEST), config.frame_blur),
            "noise": ramp(_quantile(found.cell("noise"), _SMOOTHEST), config.frame_noise),
            "blockiness": ramp(found.cell("blocks").mean(axis=(1, 2)), config.frame_blockiness),
            "banding": ramp(_quantile(found.cell("bands"), _BANDED), config.frame_banding),
            "over_exposure": ramp(found.cell("white").mean(axis=(1, 2)), config.frame_over_exposure),
            "combing": frame_combing,
        }
        outputs = {name: float(values.mean()) for name, values in {**frames, **whole}.items()}
        causes = {name: values.astype(np.float32) for name, values in {**cells, **whole}.items()}
        return Prediction(raw_score=0.0, outputs=outputs, causes=causes)

    def _combing(self, found: Measures) -> tuple[Floats, Floats]:
        """Return the severity per cell [S, R, C] and per frame [S], from the share of moving pixels that comb."""
        combs, moves = np.nan_to_num(found.cell("combs")), np.nan_to_num(found.cell("moves"))
        least = self._config.min_moving_share
        cells = ramp(np.where(moves >= least, combs / np.maximum(moves, least), 0), self._config.combing)
        comb, move = combs.mean(axis=(1, 2)), moves.mean(axis=(1, 2))
        return cells, ramp(
            np.where(move >= least / 4, comb / np.maximum(move, least / 4), 0), self._config.frame_combing
        )

    def _repeats(self, changes: Floats, is_black: Floats) -> dict[str, Floats]:
        """Return the severities [S] of `freeze` and `repeated_frames`, from the changes between frames [S, pairs].

        A pair is still if its largest change is below a fixed level, or far below the usual one of the clip: a codec
        changes a repeated frame a little. A slot is frozen if all of its pairs are still. In other slots, the severity
        is twice the share of still pairs. A black picture repeats, but that is not a fault of its own.
        """
        is_pair = np.isfinite(changes)
        usual = float(np.median(changes[is_pair])) if is_pair.any() else 0.0
        is_still = is_pair & (changes <= max(self._config.still_levels, self._config.still_ratio * usual))
        share = is_still.sum(axis=1) / np.maximum(1, is_pair.sum(axis=1))
        is_frozen = (share == 1) & (is_black < 1)
        return {
            "freeze": is_frozen.astype(np.float32),
            "repeated_frames": np.where(share < 1, np.minimum(1, 2 * share), 0).astype(np.float32),
        }

    def _letterbox(self, found: Measures) -> Floats:
        """Return the severity [S] of bars that are in all slots, but for slots that are dark as a whole."""
        is_lit = found.frame("dark") < _DARK_FRAME
        bars = found.frame("bars")
        smallest = bars[is_lit].min() if is_lit.any() else 0.0
        return np.where(is_lit, ramp(np.float32(smallest), self._config.letterbox), 0).astype(np.float32)


def ramp(values: NDArray[np.floating] | np.floating, ends: Range) -> Floats:
    """Return 0 at the first of `ends`, 1 at the second, linear between and constant beyond; 0 for NaN."""
    low, high = ends
    return np.nan_to_num(np.clip((np.asarray(values) - low) / (high - low), 0, 1)).astype(np.float32)


def _quantile(cells: Floats, share: float) -> Floats:
    """Return a quantile of the cells of each slot that are not NaN, float32 [S]; NaN if there is none."""
    flat = np.sort(cells.reshape(len(cells), -1), axis=1)
    known = np.isfinite(flat).sum(axis=1)
    index = np.minimum((share * known).astype(int), np.maximum(known - 1, 0))
    return np.asarray(flat[np.arange(len(flat)), index])
