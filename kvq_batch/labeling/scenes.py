"""Procedural scenes and synthetic camera motion: references without a licence, and the known motion of still pictures.

Scenes are unlimited, with varied texture, edges, smoothness and motion. Layout, palette, sizes and motion of each are
drawn from a seed. They complement the four of the demo (`media/synthesis.py`). They are not photographs.

The camera pans, zooms, rotates and shakes. With some seeds a piece of the picture moves in front of the rest, which
covers and uncovers pixels. The view is magnified by a few percent at most, because interpolated pixels are soft.

Legend: T frames, H rows, W columns, 3 = RGB.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from kvq_batch.config.recipe import CameraMotion
from kvq_batch.domain.errors import LabelError
from kvq_batch.media.synthesis import SCENES, ClipShape, fractal, to_uint8

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
    picture: NDArray[np.uint8],
    height_px: int,
    width_px: int,
    num_frames: int,
    rng: np.random.Generator,
    camera: CameraMotion = "moving",
) -> NDArray[np.uint8]:
    """Return uint8 RGB [T, H, W, 3]: camera motion over `picture` (uint8 RGB), scaled down first by a random factor.

    Views of one seed start near the same place, whatever the motion.

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
    if camera != "moving":
        return _level_view(reduced, first, size, num_frames, rng, is_panned=camera == "slow")
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


def _level_view(
    picture: NDArray[np.uint8],
    first: _Pose,
    size: tuple[int, int],
    num_frames: int,
    rng: np.random.Generator,
    is_panned: bool,
) -> NDArray[np.uint8]:
    """Return a view without rotation and zoom, panned by less than a pixel a frame or at rest, on whole pixels."""
    still = Image.fromarray(picture)
    start = _inside(first._replace(turn=0.0, zoom=1.0), still, size)
    if is_panned:
        angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.9)
        shifts = np.arange(num_frames)[:, None] * speed * (np.cos(angle), np.sin(angle))
        poses = [_inside(start._replace(x=start.x + dx, y=start.y + dy), still, size) for dx, dy in shifts.tolist()]
        return np.stack([np.asarray(_view(still, pose, size)) for pose in poses])
    height, width = size
    top, left = round(start.y - height / 2), round(start.x - width / 2)
    view = picture[top : top + height, left : left + width]
    return np.repeat(view[None], num_frames, axis=0)


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


Frames = Iterator[NDArray[np.uint8]]
Scene = Callable[[ClipShape, np.random.Generator], Frames]

_WORDS = [
    "the",
    "quality",
    "of",
    "a",
    "picture",
    "is",
    "lost",
    "where",
    "nobody",
    "looks",
    "and",
    "found",
    "again",
    "by",
    "those",
    "who",
    "count",
    "every",
    "grain",
    "of",
    "it",
]


def make_scene(name: str, seed: int, shape: ClipShape) -> NDArray[np.uint8]:
    """Return uint8 RGB [T, H, W, 3] of the scene `name`, one of `ALL_SCENES`."""
    return np.stack(list(ALL_SCENES[name](shape, np.random.default_rng(seed))))


def leaves(shape: ClipShape, rng: np.random.Generator) -> Frames:
    """Dead leaves model: textured shapes of all sizes that occlude each other, with camera motion."""
    side = _canvas(shape)
    texture = fractal(rng, side, side, float(rng.uniform(0.9, 1.6)))
    picture = np.full((side, side, 3), 128, np.uint8)
    still = Image.fromarray(picture)
    draw = ImageDraw.Draw(still)
    palette = _palette(rng)
    smallest = side / rng.uniform(60, 200)
    for _ in range(int(rng.integers(1500, 4000))):
        # The density of sizes is 1 / r ** 3, which makes the picture scale-invariant.
        size = smallest / np.sqrt(1 - rng.random() * (1 - (smallest / (side / 4)) ** 2))
        x, y = rng.uniform(0, side, 2)
        colour = tuple(int(c) for c in palette[rng.integers(len(palette))] * rng.uniform(0.6, 1.15))
        corners = int(rng.integers(2, 7))
        if corners == 2:
            draw.ellipse([x - size, y - size, x + size, y + size], fill=colour)
        else:
            draw.regular_polygon((x, y, size), corners, rotation=float(rng.uniform(0, 360)), fill=colour)
    shaded = np.asarray(still).astype(np.float32) * (1 + float(rng.uniform(0.03, 0.25)) * texture[..., None])
    yield from _filmed(np.clip(shaded, 0, 255).astype(np.uint8), shape, rng)


def weave(shape: ClipShape, rng: np.random.Generator) -> Frames:
    """Cloth: gratings of random direction and frequency, in patches with soft borders."""
    side = _canvas(shape)
    y, x = np.mgrid[:side, :side].astype(np.float32)
    count = int(rng.integers(5, 14))
    places = rng.uniform(0, side, (count, 2))
    nearest = np.argmin([np.hypot(y - py, x - px) for py, px in places], axis=0)
    colours = _palette(rng, count) / 255
    picture = np.empty((side, side, 3), np.float32)
    bend = 6 * fractal(rng, side, side, 2.0)
    for index in range(count):
        period, turn = rng.uniform(3.5, 30), rng.uniform(0, np.pi)
        wave = np.sin(2 * np.pi * ((x + bend) * np.cos(turn) + (y - bend) * np.sin(turn)) / period)
        cross = np.sin(2 * np.pi * (y * np.cos(turn) - x * np.sin(turn)) / (period * rng.uniform(0.5, 2)))
        cloth = 0.55 + 0.25 * wave + 0.12 * cross * (rng.random() < 0.6)
        inside = nearest == index
        picture[inside] = cloth[inside][:, None] * colours[index]
    yield from _filmed(to_uint8(picture), shape, rng)


def glow(shape: ClipShape, rng: np.random.Generator) -> Frames:
    """Wide soft lights that move over a gradient, where banding and blocking are visible first; little or no grain."""
    y, x = np.mgrid[: shape.height_px, : shape.width_px].astype(np.float32)
    y, x = y / shape.height_px, x / shape.width_px
    slope = rng.uniform(-0.4, 0.4, (2, 3)).astype(np.float32)
    floor = rng.uniform(0.15, 0.6, 3).astype(np.float32)
    lights = [
        (rng.uniform(0, 1, 2), rng.normal(0, 0.006, 2), rng.uniform(0.15, 0.5), rng.uniform(-0.2, 0.5, 3))
        for _ in range(int(rng.integers(2, 6)))
    ]
    grain = float(rng.choice([0.0, 0.004, 0.01]))
    for t in range(shape.num_frames):
        picture = floor + y[..., None] * slope[0] + x[..., None] * slope[1]
        for place, speed, width, colour in lights:
            cy, cx = (place + speed * t).tolist()
            shine = np.exp(((y - cy) ** 2 + (x - cx) ** 2) * (-0.5 / width**2))
            picture += shine[..., None] * colour.astype(np.float32)
        yield to_uint8(picture + grain * rng.standard_normal(y.shape, np.float32)[..., None])


def page(shape: ClipShape, rng: np.random.Generator) -> Frames:
    """Printed words of several sizes on a plain or mottled background, with camera motion."""
    side = _canvas(shape)
    dark = rng.random() < 0.5
    ground, ink = rng.uniform(0.02, 0.25, 3), rng.uniform(0.75, 1.0, 3)
    if not dark:
        ground, ink = ink, ground
    mottled = ground + float(rng.choice([0.0, 0.05])) * fractal(rng, side, side, 1.4)[..., None]
    still = Image.fromarray(to_uint8(np.broadcast_to(mottled, (side, side, 3))))
    draw = ImageDraw.Draw(still)
    top = 4
    while top < side:
        size = int(rng.choice([11, 14, 18, 26, 40, 64]))
        font = ImageFont.load_default(size)
        words = " ".join(rng.choice(_WORDS, side // (2 * size) + 3))
        colour = to_uint8((ink + rng.normal(0, 0.08, 3))[None])[0]
        draw.text((int(rng.integers(0, 40)), top), words, fill=tuple(int(c) for c in colour), font=font)
        top += int(size * rng.uniform(1.2, 1.7))
    yield from _filmed(np.asarray(still), shape, rng)


def water(shape: ClipShape, rng: np.random.Generator) -> Frames:
    """Draw a water surface of many waves, each with the speed of its wavelength, lit from the side."""
    y, x = np.mgrid[: shape.height_px, : shape.width_px].astype(np.float32)
    count = 24
    length = np.exp(rng.uniform(np.log(6), np.log(160), count))
    turn = rng.normal(rng.uniform(0, 2 * np.pi), 0.7, count)
    phase = rng.uniform(0, 2 * np.pi, count)
    steep = rng.uniform(0.3, 1.0, count) / np.sqrt(count)
    number = 2 * np.pi / length
    # Python floats keep float32 arrays in float32, which is twice as fast as with numpy doubles.
    waves = np.stack([number * np.cos(turn), number * np.sin(turn), phase, steep * np.cos(turn - 0.7)], axis=1).tolist()
    deep, bright = (_palette(rng, 2) / 255).astype(np.float32)
    for t in range(shape.num_frames):
        slope = np.zeros(y.shape, np.float32)
        for k_x, k_y, start, rise in waves:
            slope += rise * np.cos(k_x * x + k_y * y + (start - 0.9 * t * (k_x * k_x + k_y * k_y) ** 0.25))
        light = np.clip(0.5 + 0.9 * slope, 0, 1)[..., None]
        glint = np.clip((light - 0.93) * 10, 0, 1)
        yield to_uint8(deep * (1 - light) + bright * light + 0.6 * glint)


def confetti(shape: ClipShape, rng: np.random.Generator) -> Frames:
    """Hundreds of small pieces that fall and turn over a soft background: much motion, few still pixels."""
    height, width = shape.height_px, shape.width_px
    ground = 0.4 + 0.12 * fractal(rng, height, width, 2.2)[..., None] * rng.uniform(0.3, 1.0, 3)
    backdrop = Image.fromarray(to_uint8(ground + rng.uniform(-0.2, 0.2, 3)))
    count = int(rng.integers(120, 500))
    place = rng.uniform(0, 1, (count, 2)) * (width, height)
    speed = np.stack([rng.normal(rng.normal(0, 2), 1.5, count), rng.normal(2.5, 1.5, count)], axis=1)
    size, turn, spin = rng.uniform(2, 10, count), rng.uniform(0, 6.28, count), rng.normal(0, 0.25, count)
    colours = _palette(rng, count)
    for t in range(shape.num_frames):
        frame = backdrop.copy()
        draw = ImageDraw.Draw(frame)
        now = (place + speed * t) % (width, height)
        for i in range(count):
            angle = turn[i] + spin[i] * t
            long, thin = (
                size[i] * np.array([np.cos(angle), np.sin(angle)]),
                0.4 * size[i] * abs(np.sin(3 * angle)) + 0.5,
            )
            across = thin * np.array([-np.sin(angle), np.cos(angle)])
            corners = [now[i] + long + across, now[i] + long - across, now[i] - long - across, now[i] - long + across]
            draw.polygon([(float(cx), float(cy)) for cx, cy in corners], fill=tuple(int(c) for c in colours[i]))
        yield np.asarray(frame)


def city(shape: ClipShape, rng: np.random.Generator) -> Frames:
    """Rows of houses with windows that pass at different speeds, the nearer the faster."""
    height, width = shape.height_px, shape.width_px
    sky = np.linspace(0.9, 0.45, height)[:, None, None] * rng.uniform(0.4, 1.0, 3)
    sky_picture = to_uint8(np.broadcast_to(sky, (height, width, 3)))
    layers = [_houses(height, width + 8 * shape.num_frames, depth, rng) for depth in (0.35, 0.6, 1.0)]
    for t in range(shape.num_frames):
        frame = sky_picture.copy()
        for speed, (picture, is_house) in zip((1, 3, 7), layers, strict=True):
            seen = np.s_[:, speed * t : speed * t + width]
            frame = np.where(is_house[seen][..., None], picture[seen], frame)
        yield frame


ALL_SCENES: dict[str, Scene] = SCENES | {
    "leaves": leaves,
    "weave": weave,
    "glow": glow,
    "page": page,
    "water": water,
    "confetti": confetti,
    "city": city,
}


def _canvas(shape: ClipShape) -> int:
    """Return the size of a picture with a margin for camera motion."""
    return int(1.35 * max(shape.height_px, shape.width_px))


def _filmed(picture: NDArray[np.uint8], shape: ClipShape, rng: np.random.Generator) -> Frames:
    yield from moving_view(picture, shape.height_px, shape.width_px, shape.num_frames, rng)


def _palette(rng: np.random.Generator, count: int = 12) -> NDArray[np.float64]:
    """Return colours around a random mean, float64 [count, 3] in [0, 255]."""
    mean, spread = rng.uniform(60, 190, 3), rng.uniform(20, 60)
    return np.clip(rng.normal(mean, spread, (count, 3)), 8, 247)


def _houses(
    height: int, width: int, depth: float, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return a row of houses uint8 [H, W, 3] and its mask, bool [H, W]."""
    still, mask = Image.new("RGB", (width, height)), Image.new("L", (width, height))
    draw, outline = ImageDraw.Draw(still), ImageDraw.Draw(mask)
    left = 0
    palette = _palette(rng) * depth
    while left < width:
        wide = int(rng.uniform(30, 110) * (0.6 + depth))
        tall = int(height * rng.uniform(0.25, 0.75) * (1.3 - 0.6 * depth))
        box = [left, height - tall, left + wide - 1, height]
        wall = palette[rng.integers(len(palette))]
        draw.rectangle(box, fill=tuple(int(c) for c in wall))
        outline.rectangle(box, fill=255)
        step = int(rng.integers(7, 18))
        for top in range(height - tall + 4, height - step, step):
            for x in range(left + 3, left + wide - step // 2, step):
                lit = rng.random()
                pane = tuple(int(c) for c in np.clip(wall * (0.4 + 1.6 * lit), 0, 255))
                draw.rectangle([x, top, x + step // 2, top + step // 2], fill=pane)
        left += wide + int(rng.integers(-6, 24)) if rng.random() < 0.8 else wide
    return np.asarray(still), np.asarray(mask) > 0
