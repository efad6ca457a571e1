"""Agreement of scores with labels: the metrics of video quality studies, with bootstrap confidence intervals.

    srcc, krcc           rank correlation: Spearman's, and Kendall's tau-b
    plcc, rmse           after the four-parameter logistic (`logistic`), the practice since VQEG
    plcc_linear,         as the published KVQ code computes them (KVQ_SPEC section 5): without a curve, with the scores
    rmse_linear          shifted and scaled to mean and population standard deviation of the labels
    srcc_within          mean over references of the SRCC among the renditions of one reference

Renditions of one reference are not independent, so intervals come from a bootstrap over whole references. An undefined
metric is None with a reason, never NaN.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from kvq_batch.domain.errors import SpecError
from kvq_batch.metrics.bootstrap import MetricValue, bootstrap_mean, bootstrap_metrics
from kvq_batch.metrics.logistic import Logistic, fit_logistic
from kvq_batch.metrics.ranks import Pairs, Ranking, Real, pearson, spearman

MIN_VIDEOS = 4
_UNIT = "references"
MIN_PER_REFERENCE = 3
"""Videos of one reference that `srcc_within` needs."""

METRICS = ("srcc", "krcc", "plcc", "rmse", "plcc_linear", "rmse_linear", "srcc_within")

_MAX_FOR_KRCC = 50_000
"""With more videos, counting all pairs for the interval would take minutes."""
_RESAMPLE_TOLERANCE = 1e-6
"""Tolerance of the fits of resamples: accurate enough for an interval, and a third faster."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """All metrics of one set of videos. `curve` is None if there is no fit.

    If `is_step`, the best curve is a step: plcc and rmse are valid, but the curve is not a calibration.
    """

    num_videos: int
    num_references: int
    metrics: dict[str, MetricValue]
    curve: Logistic | None
    is_step: bool = False

    def row(self) -> dict[str, Any]:
        """Return the metrics as flat columns: x, x_low, x_high, and `remarks` with every reason once."""
        row: dict[str, Any] = {"videos": self.num_videos, "references": self.num_references}
        reasons: dict[str, list[str]] = {}
        for name in METRICS:
            metric = self.metrics[name]
            row |= {name: metric.value, f"{name}_low": metric.low, f"{name}_high": metric.high}
            if metric.reason:
                reasons.setdefault(metric.reason, []).append(name)
        parameters = self.curve.parameters if self.curve else (None,) * 4
        row |= dict(zip(("b1", "b2", "b3", "b4"), parameters, strict=True))
        remarks = [
            reason if len(names) >= len(METRICS) - 1 else f"{', '.join(names)}: {reason}"
            for reason, names in reasons.items()
        ]
        if self.curve is not None and self.is_step:
            remarks.append(f"the best curve is a step at a score of {self.curve.b3:.4g}")
        row["remarks"] = "; ".join(remarks)
        return row


def agree(
    scores: Real, labels: Real, references: Sequence[str] | None = None, n_resamples: int = 1000, seed: int = 0
) -> Agreement:
    """Return the agreement of `scores` with `labels` (both [N]). `references` [N] names the reference of each video.

    Without `references` every video counts as its own.

    Raises:
        SpecError: values that are not finite.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    for name, values in (("scores", scores), ("labels", labels)):
        if not np.isfinite(values).all():
            raise SpecError(f"{np.count_nonzero(~np.isfinite(values))} {name} are not finite numbers")
    num = len(scores)
    names = references if references is not None else [str(i) for i in range(num)]
    distinct, reference_of = np.unique(np.asarray(names, dtype=object).astype(str), return_inverse=True)
    reason = _why_undefined(scores, labels)
    if reason:
        return Agreement(num, len(distinct), dict.fromkeys(METRICS, MetricValue(None, reason=reason)), None)
    curve = fit_logistic(scores, labels)
    videos = _Videos(scores, labels, reference_of, len(distinct), curve if isinstance(curve, Logistic) else None)
    metrics = bootstrap_metrics(videos.metrics, len(distinct), n_resamples, seed, unit=_UNIT)
    metrics |= _krcc(videos, n_resamples, seed)
    if isinstance(curve, str):
        metrics |= {name: MetricValue(None, reason=curve) for name in ("plcc", "rmse")}
    # Without references, an empty srcc_within needs no reason.
    metrics["srcc_within"] = MetricValue(None) if references is None else _within(videos, n_resamples, seed)
    is_step = isinstance(curve, Logistic) and curve.is_step(scores)
    return Agreement(num, len(distinct), metrics, videos.curve, is_step)


def correlate(x: Real, y: Real) -> dict[str, float | None]:
    """Return srcc, krcc and plcc of two series of scores (both [N], finite), without a curve and without intervals.

    They are None for fewer than MIN_VIDEOS values, or if one of the series is constant.
    """
    if _why_undefined(x, y):
        return {"srcc": None, "krcc": None, "plcc": None}
    weights = np.ones((1, len(x)))
    return {
        "srcc": float(spearman(Ranking(x), Ranking(y), weights)[0]),
        "krcc": float(kendalltau(x, y, method="asymptotic").statistic),
        "plcc": float(pearson(x, y, weights)[0]),
    }


class _Videos:
    """One set of videos, and its metrics under any resamples of its references."""

    def __init__(
        self, scores: Real, labels: Real, reference_of: NDArray[np.int64], num_references: int, curve: Logistic | None
    ) -> None:
        self.scores, self.labels = scores, labels
        self.reference_of, self.num_references = reference_of, num_references
        self.curve = curve
        self._by_score, self._by_label = Ranking(scores), Ranking(labels)

    def metrics(self, counts: Real) -> dict[str, Real]:
        """Return all but krcc and srcc_within, float64 [R] each, for `counts` [R, C]; NaN if undefined."""
        weights = counts[:, self.reference_of]
        linear = pearson(self.scores, self.labels, weights)
        mean = (weights @ self.labels) / weights.sum(axis=1)
        spread = np.sqrt(np.maximum((weights @ self.labels**2) / weights.sum(axis=1) - mean**2, 0))
        found = {
            "srcc": spearman(self._by_score, self._by_label, weights),
            "plcc_linear": linear,
            # mean((s (x - m_x) / s_x - (y - m_y))^2) = 2 s^2 (1 - r), where s is the standard deviation of the labels.
            "rmse_linear": spread * np.sqrt(np.maximum(2 * (1 - linear), 0)),
        }
        if self.curve is not None:
            found["plcc"], found["rmse"] = self._after_logistic(weights)
        return found

    def _after_logistic(self, weights: Real) -> tuple[Real, Real]:
        """Return plcc and rmse, [R] each; a curve is fitted to each resample."""
        plcc, rmse = np.full(len(weights), np.nan), np.full(len(weights), np.nan)
        for i, weight in enumerate(weights):
            is_drawn = weight > 0
            x, y, w = self.scores[is_drawn], self.labels[is_drawn], weight[is_drawn]
            if np.ptp(y) == 0:
                continue
            is_whole = len(weights) == 1 and bool((weight == 1).all())
            curve = self.curve if is_whole else fit_logistic(x, y, w, self.curve, _RESAMPLE_TOLERANCE)
            if isinstance(curve, Logistic):
                fitted = curve(x)
                plcc[i] = pearson(fitted, y, w[None])[0]
                rmse[i] = np.sqrt((w * (fitted - y) ** 2).sum() / w.sum())
        return plcc, rmse


def _krcc(videos: _Videos, n_resamples: int, seed: int) -> dict[str, MetricValue]:
    if len(videos.scores) > _MAX_FOR_KRCC:
        tau = float(kendalltau(videos.scores, videos.labels, method="asymptotic").statistic)
        return {"krcc": MetricValue(tau, reason=f"no interval for more than {_MAX_FOR_KRCC} videos")}
    pairs = Pairs(videos.scores, videos.labels, videos.reference_of)
    return bootstrap_metrics(
        lambda counts: {"krcc": pairs.kendall(counts)}, videos.num_references, n_resamples, seed, n_resamples, _UNIT
    )


def _why_undefined(scores: Real, labels: Real) -> str:
    """Return why no metric is defined for these videos, or an empty string."""
    if len(scores) < MIN_VIDEOS:
        return f"{len(scores)} videos; at least {MIN_VIDEOS} are needed"
    if np.ptp(scores) == 0:
        return f"all {len(scores)} scores are {scores[0]:.6g}: no order"
    if np.ptp(labels) == 0:
        return f"all {len(labels)} labels are {labels[0]:.6g}: no order"
    return ""


def _within(videos: _Videos, n_resamples: int, seed: int) -> MetricValue:
    """Return the mean over references of the SRCC among the videos of one, with its interval."""
    values = []
    for reference in range(videos.num_references):
        own = videos.reference_of == reference
        if np.count_nonzero(own) >= MIN_PER_REFERENCE:
            x, y = videos.scores[own], videos.labels[own]
            values.append(float(spearman(Ranking(x), Ranking(y), np.ones((1, len(x))))[0]))
    if not values:
        return MetricValue(None, reason=f"no reference has {MIN_PER_REFERENCE} videos")
    return bootstrap_mean(values, n_resamples, seed, _UNIT)
