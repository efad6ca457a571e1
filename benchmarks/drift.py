"""False-alarm rate and power of the drift guard, simulated: `python -m benchmarks.drift`.

Each night has its own mean, and videos around it. Scores are normal, or have a long lower tail as those of catalogs do
(minus a gamma variable of shape 2). Sizes of nights are equal, or log-uniform between 100 and 2000. The guard looks at
the median and the 5th percentile with half the rate each, as `kvq-batch run` does. `shift` moves the newest night, in
standard deviations of a video.
"""

import argparse
import sys

import numpy as np
from numpy.typing import NDArray

from benchmarks.tables import print_table
from kvq_batch.metrics.drift import prediction_margin, quantile_variance

QUANTILES = (0.5, 0.05)
BLOCK = 100


def simulate(
    num_nights: int, between: float, kind: str, sizes: str, shift: float, rate: float, repeats: int, seed: int
) -> float:
    """Return the share of newest nights with an alarm; `between` is the standard deviation of the means of nights."""
    generator = np.random.default_rng(seed)

    def nights(moved: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return quantiles and their sampling variances, [quantiles, BLOCK] each, of one night in BLOCK repeats."""
        num = 500 if sizes == "equal" else int(np.exp(generator.uniform(np.log(100), np.log(2000))))
        normal, skewed = generator.normal(0, 1, (BLOCK, num)), generator.gamma(2, 1, (BLOCK, num))
        videos = normal if kind == "normal" else (2 - skewed) / np.sqrt(2)
        videos += generator.normal(0, between, (BLOCK, 1)) + moved
        found = [np.quantile(videos, share, axis=1) for share in QUANTILES]
        variances = [[quantile_variance(row, share) for row in videos] for share in QUANTILES]
        return np.array(found), np.array(variances)

    alarms = 0
    for _ in range(repeats // BLOCK):
        earlier, earlier_variances = map(np.stack, zip(*(nights(0.0) for _ in range(num_nights)), strict=True))
        newest, newest_variances = nights(shift)
        for i in range(BLOCK):
            alarms += any(
                abs(newest[q, i] - earlier[:, q, i].mean())
                > prediction_margin(
                    earlier[:, q, i], earlier_variances[:, q, i], newest_variances[q, i], rate / len(QUANTILES)
                )
                for q in range(len(QUANTILES))
            )
    return alarms / (repeats // BLOCK * BLOCK)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=0.01, help="stated false-alarm rate")
    parser.add_argument("--repeats", type=int, default=4000)
    parser.add_argument("--output", choices=("markdown", "json"), default="markdown")
    arguments = parser.parse_args()
    rows = []
    for num_nights in (5, 10, 30):
        for between in (0.0, 0.2):
            for kind, sizes in (("normal", "equal"), ("skewed", "equal"), ("skewed", "varied")):
                row: dict[str, object] = {
                    "earlier nights": num_nights, "spread between nights": between, "scores": kind, "sizes": sizes,
                }  # fmt: skip
                for shift in (0.0, 0.5, 1.0):
                    name = "false alarms" if shift == 0 else f"found, shift {shift:g}"
                    repeats = arguments.repeats if shift == 0 else max(BLOCK, arguments.repeats // 10)
                    found = simulate(num_nights, between, kind, sizes, -shift, arguments.rate, repeats, 1)
                    row[name] = f"{100 * found:.2f}%" if shift == 0 else f"{100 * found:.0f}%"
                rows.append(row)
    print_table(rows, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
