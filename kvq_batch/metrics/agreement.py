"""How well a model's numbers agree with labels: the figures of video quality studies, each with what it is worth.

    srcc, krcc           order: Spearman's, and Kendall's tau-b
    plcc, rmse           after the logistic of four parameters (`logistic`), the practice since VQEG
    plcc_linear,         as the published KVQ code computes them (KVQ_SPEC section 5): no curve, and the scores moved
    rmse_linear          to mean and population standard deviation of the labels
    srcc_within          mean over sources of the order among versions of one source

Versions of one source are no independent videos, so that intervals come from drawing whole sources with replacement
(percentiles of the draws). A figure that does not exist is None with a sentence why, never NaN. This module reads no
table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from kvq_batch.domain.errors import SpecError
from kvq_batch.metrics.bootstrap import Figure, bootstrap_figures, mean_figure
from kvq_batch.metrics.logistic import Logistic, fit_logistic
from kvq_batch.metrics.ranks import Pairs, Ranking, Real, pearson, spearman

MIN_VIDEOS = 4
MIN_VERSIONS = 3
"""Videos of one source that make an order."""

FIGURES = ("srcc", "krcc", "plcc", "rmse", "plcc_linear", "rmse_linear", "srcc_within")

_MAX_FOR_KRCC = 50_000
"""All pairs of more videos than these would take minutes."""
_DRAW_TOLERANCE = 1e-6
"""Enough for an interval, and a third quicker than the tolerance of the fit itself."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """All figures of one set of videos; `curve` is None where there is no fit.

    With `is_step` the curve of least error is a step: plcc and rmse hold, and it is no calibration.
    """

    num_videos: int
    num_sources: int
    figures: dict[str, Figure]
    curve: Logistic | None
    is_step: bool = False

    def row(self) -> dict[str, Any]:
        """The figures as flat columns: x, x_low, x_high, and `remarks` with every reason once."""
        row: dict[str, Any] = {"videos": self.num_videos, "sources": self.num_sources}
        reasons: dict[str, list[str]] = {}
        for name in FIGURES:
            figure = self.figures[name]
            row |= {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high}
            if figure.reason:
                reasons.setdefault(figure.reason, []).append(name)
        parameters = self.curve.parameters if self.curve else (None,) * 4
        row |= dict(zip(("b1", "b2", "b3", "b4"), parameters, strict=True))
        remarks = [
            reason if len(names) >= len(FIGURES) - 1 else f"{', '.join(names)}: {reason}"
            for reason, names in reasons.items()
        ]
        if self.curve is not None and self.is_step:
            remarks.append(f"the best curve is a step at a score of {self.curve.b3:.4g}")
        row["remarks"] = "; ".join(remarks)
        return row


def agree(
    scores: Real, labels: Real, sources: Sequence[str] | None = None, n_resamples: int = 1000, seed: int = 0
) -> Agreement:
    """The agreement of `scores` with `labels` (both [N]); without `sources` every video is its own.

    Raises:
        SpecError: values that are no finite numbers.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    for name, values in (("scores", scores), ("labels", labels)):
        if not np.isfinite(values).all():
            raise SpecError(f"{np.count_nonzero(~np.isfinite(values))} {name} are no finite numbers")
    num = len(scores)
    names = sources if sources is not None else [str(i) for i in range(num)]
    distinct, source_of = np.unique(np.asarray(names, dtype=object).astype(str), return_inverse=True)
    reason = _why_none(scores, labels)
    if reason:
        return Agreement(num, len(distinct), dict.fromkeys(FIGURES, Figure(None, reason=reason)), None)
    curve = fit_logistic(scores, labels)
    set_of_videos = _Videos(scores, labels, source_of, len(distinct), curve if isinstance(curve, Logistic) else None)
    figures = bootstrap_figures(set_of_videos.figures, len(distinct), n_resamples, seed) | _krcc(
        set_of_videos, n_resamples, seed
    )
    if isinstance(curve, str):
        figures |= {name: Figure(None, reason=curve) for name in ("plcc", "rmse")}
    # Where nobody names sources, there is nothing to explain.
    figures["srcc_within"] = Figure(None) if sources is None else _within(set_of_videos, n_resamples, seed)
    is_step = isinstance(curve, Logistic) and curve.is_step(scores)
    return Agreement(num, len(distinct), figures, set_of_videos.curve, is_step)


class _Videos:
    """One set of videos, and its figures under any draws of its sources."""

    def __init__(
        self, scores: Real, labels: Real, source_of: NDArray[np.int64], num_sources: int, curve: Logistic | None
    ) -> None:
        self.scores, self.labels = scores, labels
        self.source_of, self.num_sources = source_of, num_sources
        self.curve = curve
        self._by_score, self._by_label = Ranking(scores), Ranking(labels)

    def figures(self, draws: Real) -> dict[str, Real]:
        """Figures but krcc and srcc_within, float64 [D] each, under `draws` [D, S]; NaN where there is none."""
        weights = draws[:, self.source_of]
        linear = pearson(self.scores, self.labels, weights)
        mean = (weights @ self.labels) / weights.sum(axis=1)
        spread = np.sqrt(np.maximum((weights @ self.labels**2) / weights.sum(axis=1) - mean**2, 0))
        found = {
            "srcc": spearman(self._by_score, self._by_label, weights),
            "plcc_linear": linear,
            # mean((s (x - m_x) / s_x - (y - m_y))^2) = 2 s^2 (1 - r), with s the spread of the labels.
            "rmse_linear": spread * np.sqrt(np.maximum(2 * (1 - linear), 0)),
        }
        if self.curve is not None:
            found["plcc"], found["rmse"] = self._curved(weights)
        return found

    def _curved(self, weights: Real) -> tuple[Real, Real]:
        """plcc and rmse, [D], each draw with a curve of its own."""
        plcc, rmse = np.full(len(weights), np.nan), np.full(len(weights), np.nan)
        for i, weight in enumerate(weights):
            drawn = weight > 0
            x, y, w = self.scores[drawn], self.labels[drawn], weight[drawn]
            if np.ptp(y) == 0:
                continue
            is_whole = len(weights) == 1 and bool((weight == 1).all())
            curve = self.curve if is_whole else fit_logistic(x, y, w, self.curve, _DRAW_TOLERANCE)
            if isinstance(curve, Logistic):
                fitted = curve(x)
                plcc[i] = pearson(fitted, y, w[None])[0]
                rmse[i] = np.sqrt((w * (fitted - y) ** 2).sum() / w.sum())
        return plcc, rmse


def _krcc(videos: _Videos, n_resamples: int, seed: int) -> dict[str, Figure]:
    if len(videos.scores) > _MAX_FOR_KRCC:
        tau = float(kendalltau(videos.scores, videos.labels, method="asymptotic").statistic)
        return {"krcc": Figure(tau, reason=f"no interval of more than {_MAX_FOR_KRCC} videos")}
    pairs = Pairs(videos.scores, videos.labels, videos.source_of)
    return bootstrap_figures(
        lambda draws: {"krcc": pairs.kendall(draws)}, videos.num_sources, n_resamples, seed, n_resamples
    )


def _why_none(scores: Real, labels: Real) -> str:
    """Why these videos have no agreement at all; empty where they have."""
    if len(scores) < MIN_VIDEOS:
        return f"{len(scores)} videos; at least {MIN_VIDEOS} are needed"
    if np.ptp(scores) == 0:
        return f"all {len(scores)} scores are {scores[0]:.6g}: they have no order"
    if np.ptp(labels) == 0:
        return f"all {len(labels)} labels are {labels[0]:.6g}: they have no order"
    return ""


def _within(videos: _Videos, n_resamples: int, seed: int) -> Figure:
    """Mean over sources of SRCC among the videos of one, with the interval over sources."""
    orders = []
    for source in range(videos.num_sources):
        own = videos.source_of == source
        if np.count_nonzero(own) >= MIN_VERSIONS:
            x, y = videos.scores[own], videos.labels[own]
            orders.append(float(spearman(Ranking(x), Ranking(y), np.ones((1, len(x))))[0]))
    if not orders:
        return Figure(None, reason=f"no source has {MIN_VERSIONS} videos")
    return mean_figure(orders, n_resamples, seed)
