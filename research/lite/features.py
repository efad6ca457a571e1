"""Hand-made features for no-reference quality, of the frames of a clip at native size, in numpy and scipy.

They measure the detail in each band, natural scene statistics, block grids of codecs, widths of edges, noise in smooth
areas, banding, and changes between frames. Most features are logarithms, because perception and VMAF depend on ratios.

Axes: T frames, H rows, W columns. Luma is float32 in grey levels, 0 to 255.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

Real = NDArray[np.float32]
Found = Iterator[tuple[str, float]]

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# Half a grey level: smaller values are rounding errors.
_FLOOR = 0.5
_NUM_BANDS = 4
# As in BRISQUE (IEEE TIP 21(12), 2012), section III: sigma 7/6 over 7 pixels; 1 grey level is added to the deviation.
_LOCAL_SIGMA = 7 / 6
_NEIGHBOURS = {"right": (0, 1), "below": (1, 0), "falling": (1, 1), "rising": (1, -1)}
_FLAT_BLOCK = 8
_EDGE_SHARE = 0.03
_EDGE_REACH = 5


def features_of(frames: NDArray[np.uint8], slot_frames: int) -> dict[str, float]:
    """Return the features of a clip uint8 RGB [T, H, W, 3] by name; all are finite.

    They are measured on the first frame of the first slot, and on the changes in that slot.
    """
    # A second slot takes twice the time and gives nearly the same values.
    first = frames[:1]
    luma = first @ _LUMA
    following = (frames[1:slot_frames] @ _LUMA) - luma
    laplacian = _laplacian(luma)
    found: dict[str, float] = {}
    for group in (
        _bands(luma),
        _natural(luma, "native", tuple(_NEIGHBOURS)),
        _natural(_halved(luma), "half", ("right", "below")),
        _grids(luma),
        _gradients(luma),
        _edges(luma),
        _noise(laplacian),
        _levels(luma),
        _motion(following, laplacian),
        _light(first, luma),
    ):
        found.update(group)
    return found


def _log(value: np.floating | float, floor: float = 0.01) -> float:
    return float(np.log(max(float(value), 0.0) + floor))


def _blurred(luma: Real, sigma: float) -> Real:
    out = gaussian_filter1d(luma, sigma, axis=-2, truncate=3.0, mode="nearest")
    blurred: Real = gaussian_filter1d(out, sigma, axis=-1, truncate=3.0, mode="nearest")
    return blurred


def _halved(luma: Real) -> Real:
    """Return means of 2x2 pixels."""
    height, width = (extent // 2 * 2 for extent in luma.shape[1:])
    even = luma[:, :height, :width]
    total: Real = even[:, ::2, ::2] + even[:, 1::2, ::2] + even[:, ::2, 1::2] + even[:, 1::2, 1::2]
    return total * np.float32(0.25)


def _blocks(values: Real, side: int) -> Real:
    """Return means over blocks of `side` pixels, [T, H // side, W // side]."""
    num, height, width = len(values), values.shape[1] // side, values.shape[2] // side
    cut = values[:, : height * side, : width * side].reshape(num, height, side, width * side).mean(2)
    means: Real = cut.reshape(num, height, width, side).mean(3)
    return means


def _bands(luma: Real) -> Found:
    """Yield, for each octave, the amount of detail and its spread over pixels and over the frame."""
    level = luma
    for number in range(_NUM_BANDS):
        coarse = _blurred(level, 0.8)
        band = level - coarse
        square = band * band
        energy = float(square.mean())
        logs = np.log(np.abs(band) + np.float32(_FLOOR))
        yield f"band{number} log rms", _log(energy) / 2
        yield f"band{number} mean log", float(logs.mean())
        yield f"band{number} deviation of log", float(logs.std())
        yield f"band{number} log kurtosis", _log(float((square * square).mean()) / (energy * energy + 1e-3), 0.1)
        if number < 2:
            low, middle, high = np.percentile(np.log(_blocks(square, 16) + np.float32(0.1)), (10, 50, 90))
            yield f"band{number} calm blocks", float(low)
            yield f"band{number} common blocks", float(middle)
            yield f"band{number} busy blocks", float(high)
        level = _halved(coarse)


def _natural(luma: Real, scale: str, directions: tuple[str, ...]) -> Found:
    """Yield statistics of mean-subtracted, contrast-normalised luma and of products of neighbours, as in BRISQUE."""
    mean = _blurred(luma, _LOCAL_SIGMA)
    deviation = np.sqrt(np.abs(_blurred(luma * luma, _LOCAL_SIGMA) - mean * mean))
    normal = (luma - mean) / (deviation + 1)
    spread = float(np.abs(normal).mean())
    power = float((normal * normal).mean())
    yield f"{scale} normal power", _log(power)
    # This ratio determines the shape of a generalised Gaussian.
    yield f"{scale} normal shape", _log(spread * spread / (power + 1e-6))
    yield f"{scale} local deviation", float(np.log(deviation + np.float32(_FLOOR)).mean())
    for name in directions:
        down, right = _NEIGHBOURS[name]
        height, width = normal.shape[1] - down, normal.shape[2] - abs(right)
        left = max(0, -right)
        near = normal[:, :height, left : left + width]
        product = near * normal[:, down : down + height, left + right : left + right + width]
        size = np.abs(product)
        total, absolute, squared = float(product.mean()), float(size.mean()), float((product * product).mean())
        yield f"{scale} {name} mean", total
        # Means over the positive and the negative half.
        yield f"{scale} {name} like", _log((absolute + total) / 2, 0.001)
        yield f"{scale} {name} unlike", _log((absolute - total) / 2, 0.001)
        yield f"{scale} {name} shape", _log(absolute * absolute / (squared + 1e-6))


def _grids(luma: Real) -> Found:
    """Yield differences across block borders relative to those inside blocks, and the share of flat blocks."""
    profiles = [np.abs(np.diff(luma, axis=axis)).mean((0, 3 - axis)) for axis in (1, 2)]
    for side in (8, 16):
        own, best = [], []
        for profile in profiles:
            whole = profile[: len(profile) // side * side].reshape(-1, side).mean(0)
            others = (whole.sum() - whole) / (side - 1)
            ratios = np.log((whole + 0.05) / (others + 0.05))
            own.append(ratios[side - 1])
            best.append(ratios.max())
        yield f"grid of {side} at fixed phase", float(np.mean(own))
        yield f"grid of {side} at best phase", float(np.mean(best))
    means = _blocks(luma, _FLAT_BLOCK)
    variance = _blocks(luma * luma, _FLAT_BLOCK) - means * means
    yield "flat blocks", float((variance < _FLOOR).mean())


def _gradients(luma: Real) -> Found:
    size = np.abs(luma[:, :-1, 1:] - luma[:, :-1, :-1]) + np.abs(luma[:, 1:, :-1] - luma[:, :-1, :-1])
    some = size[:, ::2, ::2]
    middle, high, top = np.percentile(some, (50, 90, 98))
    yield "gradient mean", _log(size.mean())
    yield "gradient median", _log(middle, 0.1)
    yield "gradient 90%", _log(high, 0.1)
    yield "gradient 98%", _log(top, 0.1)
    yield "no gradient", float((size < 0.2).mean())


def _edges(luma: Real) -> Found:
    """Yield widths of the steepest edges in pixels: the luma range around an edge divided by its slope."""
    widths = []
    for turned in (luma, luma.transpose(0, 2, 1)):
        slope = np.abs(turned[:, ::2, 2:] - turned[:, ::2, :-2]) / 2
        slope = slope[:, :, _EDGE_REACH:-_EDGE_REACH]
        limit = max(float(np.percentile(slope[:, ::2], 100 * (1 - _EDGE_SHARE))), 2.0)
        frame, row, column = np.nonzero(slope[:, ::2] >= limit)
        reach = np.arange(-_EDGE_REACH, _EDGE_REACH + 1)
        about = turned[frame[:, None], 4 * row[:, None], column[:, None] + _EDGE_REACH + 1 + reach]
        widths.append(np.ptp(about, axis=1) / slope[:, ::2][frame, row, column])
    every = np.concatenate(widths)
    # Without edges: the largest width that can be measured.
    low, middle, high = np.percentile(every, (10, 50, 90)) if len(every) else (2 * _EDGE_REACH,) * 3
    yield "narrow edges", _log(low)
    yield "common edges", _log(middle)
    yield "wide edges", _log(high)


def _laplacian(luma: Real) -> Real:
    """Return a second difference that ignores slopes (Immerkaer, CVIU 64(2), 1996): 36 times the variance of noise."""
    across = luma[:, :, 2:] - 2 * luma[:, :, 1:-1] + luma[:, :, :-2]
    both: Real = across[:, 2:] - 2 * across[:, 1:-1] + across[:, :-2]
    return both


def _noise(laplacian: Real) -> Found:
    """Yield the standard deviation of noise in grey levels, in the smoothest blocks and in typical ones."""
    size = _blocks(np.abs(laplacian), _FLAT_BLOCK) * np.float32(np.sqrt(np.pi / 2) / 6)
    calm, low, middle = np.percentile(size, (2, 15, 50))
    yield "noise in calm blocks", _log(calm, 0.05)
    yield "noise in quiet blocks", _log(low, 0.05)
    yield "noise in common blocks", _log(middle, 0.05)


def _levels(luma: Real) -> Found:
    """Yield measures of banding: the share of grey levels in use, and how few levels most pixels have."""
    counts = np.bincount(np.rint(luma).astype(np.uint8).ravel(), minlength=256).astype(np.float64)
    shares = counts[counts > 0] / counts.sum()
    span = np.ptp(np.flatnonzero(counts)) + 1
    rising = np.diff(counts[np.flatnonzero(counts)[0] :][:span]) if span > 1 else np.zeros(1)
    yield "levels used", float(np.count_nonzero(counts) / span)
    yield "entropy of levels", float(-(shares * np.log2(shares)).sum())
    yield "uneven levels", _log(np.abs(rising).sum() / counts.sum())
    yield "sixteen levels hold", float(np.sort(shares)[-16:].sum())


def _motion(following: Real, laplacian: Real) -> Found:
    """Yield the change from one frame to the next, and its share of fine detail; 0 if slots have one frame."""
    if not following.size:
        following = np.zeros((1, 3, 3), np.float32)
    size = np.abs(following)
    fine = float(np.abs(_laplacian(following)).mean())
    yield "change mean", _log(size.mean(), 0.05)
    yield "change median", _log(np.median(size[:, ::2, ::2]), 0.05)
    yield "no change", float((size < 0.2).mean())
    yield "fine change", _log(fine, 0.1)
    yield "fine change of detail", _log(fine / (float(np.abs(laplacian).mean()) + 0.1), 0.05)


def _light(first: NDArray[np.uint8], luma: Real) -> Found:
    """Yield contrast, clipped luma, and colourfulness (Hasler and Suesstrunk, SPIE 5007, 2003)."""
    some = luma[:, ::2, ::2]
    dark, bright = np.percentile(some, (2, 98))
    red, green, blue = (first[:, ::2, ::2, channel].astype(np.float32) for channel in range(3))
    across, along = red - green, (red + green) / 2 - blue
    means = np.hypot(across.mean(), along.mean())
    yield "mean light", float(some.mean() / 255)
    yield "contrast", _log(some.std())
    yield "range of light", float((bright - dark) / 255)
    yield "clipped light", float(((some < 2) | (some > 253)).mean())
    yield "colourfulness", _log(np.hypot(across.std(), along.std()) + 0.3 * means, 0.1)
