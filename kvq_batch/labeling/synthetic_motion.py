"""Synthetic camera motion over a still picture: known motion of a pristine reference.

Pan, zoom, rotation and hand shake. With some seeds a piece of the picture moves in front of the rest, which covers and
uncovers pixels. The view is magnified by a few percent at most, because interpolated pixels are soft.

Legend: T frames, H rows, W columns, 3 = RGB.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kvq_batch.domain.errors import LabelError

_ZOOM = (1.0, 1.06)
_MAX_TURN = np.deg2rad(4.0)
_MAX_SPEED_PX = 5.0


class _Pose(NamedTuple):
    """Centre in pixels of the picture, rotation in radians, and pixels of the view per pixel of the picture."""

    x: float
    y: float
    turn: float
    zoom: float


def moving_view(
    picture: NDArray[np.uint8], height_px: int, width_px: int, num_frames: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Return uint8 RGB [T, H, W, 3]: camera motion over `picture` (uint8 RGB), scaled down first by a random factor.

    Raises:
        LabelError: the picture is smaller than the view (reference_too_small).
    """
    room = min(picture.shape[0] / height_px, picture.shape[1] / width_px)
    if room < 1:
        raise LabelError(
            "reference_too_small",
            f"its {picture.shape[1]} x {picture.shape[0]} pixels do not hold {width_px} x {height_px}",
            True,
        )
    # A margin of a tenth is left for the motion.
    reduced = _reduced(picture, rng.uniform(1.0, max(1.0, room / 1.1)), height_px, width_px)
    still = Image.fromarray(reduced)
    size = (height_px, width_px)
    first = _draw(rng, still, size, None, num_frames)
    last = _draw(rng, still, size, first, num_frames)
    trembling = np.cumsum(rng.normal(0, 0.25, (num_frames, 2)), axis=0) * (rng.random() < 0.5)
    front = _Front(reduced, size, rng) if rng.random() < 0.5 else None
    frames = np.empty((num_frames, *size, 3), np.uint8)
    for t, share in enumerate(np.linspace(0, 1, num_frames)):
        pose = _Pose(*(a + (b - a) * share for a, b in zip(first, last, strict=True)))
        shaken = pose._replace(x=pose.x + trembling[t, 0], y=pose.y + trembling[t, 1])
        frames[t] = np.asarray(_view(still, _inside(shaken, still, size), size))
        if front is not None:
            front.draw(frames[t], t)
    return frames


def _reduced(picture: NDArray[np.uint8], factor: float, height_px: int, width_px: int) -> NDArray[np.uint8]:
    size = (max(width_px, round(picture.shape[1] / factor)), max(height_px, round(picture.shape[0] / factor)))
    if size == (picture.shape[1], picture.shape[0]):
        return picture
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def _draw(
    rng: np.random.Generator, still: Image.Image, size: tuple[int, int], start: _Pose | None, num_frames: int
) -> _Pose:
    """Return a random pose near `start` whose view is inside the picture."""
    zoom, turn = rng.uniform(*_ZOOM), rng.uniform(-_MAX_TURN, _MAX_TURN)
    place = rng.random(2)
    if start is None:
        x, y = place * (still.width, still.height)
    else:
        reach = rng.uniform(0, _MAX_SPEED_PX) * num_frames
        x, y = (start.x, start.y) + (2 * place - 1) * reach
    return _inside(_Pose(float(x), float(y), turn, zoom), still, size)


def _inside(pose: _Pose, still: Image.Image, size: tuple[int, int]) -> _Pose:
    """Return the nearest pose whose view is inside the picture; without rotation if there is no other way."""
    height, width = size
    cos, sin = abs(np.cos(pose.turn)), abs(np.sin(pose.turn))
    half_x, half_y = (
        (width * cos + height * sin) / 2 / pose.zoom,
        (height * cos + width * sin) / 2 / pose.zoom,
    )
    if 2 * half_x > still.width or 2 * half_y > still.height:
        zoom = max(pose.zoom, width / still.width, height / still.height)
        pose = pose._replace(turn=0.0, zoom=zoom)
        half_x, half_y = width / 2 / zoom, height / 2 / zoom
    return pose._replace(
        x=float(np.clip(pose.x, half_x, still.width - half_x)), y=float(np.clip(pose.y, half_y, still.height - half_y))
    )


def _view(still: Image.Image, pose: _Pose, size: tuple[int, int]) -> Image.Image:
    height, width = size
    a, b = np.cos(pose.turn) / pose.zoom, np.sin(pose.turn) / pose.zoom
    left = pose.x - a * width / 2 - b * height / 2
    top = pose.y + b * width / 2 - a * height / 2
    return still.transform((width, height), Image.Transform.AFFINE, (a, b, left, -b, a, top), Image.Resampling.BICUBIC)


class _Front:
    """A soft disk cut from the picture that crosses the view on a straight line."""

    def __init__(self, picture: NDArray[np.uint8], size: tuple[int, int], rng: np.random.Generator) -> None:
        height, width = size
        radius = int(rng.uniform(0.1, 0.2) * min(size))
        side = 2 * radius
        top, left = (int(rng.integers(0, extent - side + 1)) for extent in picture.shape[:2])
        self._disk = picture[top : top + side, left : left + side].astype(np.float32)
        y, x = np.mgrid[:side, :side] - radius + 0.5
        self._mask = np.clip(radius - np.hypot(y, x), 0, 1).astype(np.float32)[..., None]
        self._start = rng.uniform(0, 1, 2) * (height - side, width - side)
        self._speed = rng.uniform(-4, 4, 2)
        self._room = np.array([height - side, width - side])

    def draw(self, frame: NDArray[np.uint8], t: int) -> None:
        """Draw the disk at time `t` into `frame`; it bounces at the borders."""
        where = np.abs((self._start + self._speed * t + self._room) % (2 * self._room) - self._room)
        top, left = np.rint(where).astype(int)
        side = len(self._disk)
        behind = frame[top : top + side, left : left + side]
        behind[:] = np.rint(behind * (1 - self._mask) + self._disk * self._mask)
