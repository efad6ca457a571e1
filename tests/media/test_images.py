"""Animated images and streams of images are videos; single images are refused."""

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kvq_batch.domain.errors import ProbeError
from kvq_batch.media.probe import VideoLimits, probe
from tests.support.material import encode
from tests.support.reference import our_frames, reference_frames

MOVING = {
    "moving.mjpeg": ("-c:v", "mjpeg", "-f", "mjpeg"),
    "moving.gif": (),
    "moving.apng": ("-plays", "0"),
    "moving.png": ("-f", "apng"),
    "several.png": ("-c:v", "png", "-f", "image2pipe"),
    "moving.avif": ("-c:v", "libaom-av1", "-cpu-used", "8", "-pix_fmt", "yuv420p"),
}


def refusal(path: Path) -> ProbeError:
    with pytest.raises(ProbeError) as caught:
        probe(path, VideoLimits())
    assert caught.value.permanent
    return caught.value


def test_a_stream_of_pictures_named_as_one(tmp_path: Path) -> None:
    path = encode(tmp_path / "stream.mjpeg", "-frames:v", "8", size="160x120").rename(tmp_path / "stream%d.jpg")
    assert probe(path, VideoLimits()).facts.num_frames == 8


@pytest.mark.parametrize("name", MOVING)
def test_moving_images_are_videos(tmp_path: Path, name: str) -> None:
    path = encode(tmp_path / name, *MOVING[name], "-frames:v", "8", size="160x120", rate="10")
    probed = probe(path, VideoLimits())
    truth = reference_frames(path, stream=probed.stream_index)
    frames = our_frames(path)
    assert probed.facts.num_frames == len(truth) == len(frames) == 8
    assert probed.facts.duration_s == pytest.approx(8 / (25 if name in ("moving.mjpeg", "several.png") else 10))
    for number, rgb in frames.items():
        assert np.array_equal(rgb, truth[number]), number


@pytest.mark.parametrize("name", ["one.jpg", "one.png", "one.gif", "one.apng", "one.webp", "one.avif", "one.bmp"])
def test_one_image_is_refused(tmp_path: Path, name: str) -> None:
    still = ("-still-picture", "1", "-c:v", "libaom-av1", "-cpu-used", "8") if name == "one.avif" else ()
    path = encode(tmp_path / name, *still, "-frames:v", "1", size="160x120")
    assert refusal(path).code == "still_image"


def test_animated_webp_is_refused_with_the_reason(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (64, 48), (40 * i, 90, 120)) for i in range(4)]
    path = tmp_path / "moving.webp"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100)
    error = refusal(path)
    assert error.code == "unknown_codec"
    assert "animated WebP" in error.message


def jpeg(folder: Path, number: int) -> bytes:
    path = folder / f"{number}.jpg"
    Image.effect_mandelbrot((160, 120), (-2 + number / 9, -1, 1, 1), 80).convert("RGB").save(path)
    return path.read_bytes()


def test_a_photo_with_a_gain_map_is_one_image(tmp_path: Path) -> None:
    # The index of further pictures is an application segment behind the start of the first.
    first, second = jpeg(tmp_path, 0), jpeg(tmp_path, 1)
    index = b"\xff\xe2\x00\x08MPF\x00II"
    path = tmp_path / "photo.jpg"
    path.write_bytes(first[:2] + index + first[2:] + second)
    assert refusal(path).code == "still_image"


def test_a_photo_with_a_film_behind_it_is_one_image(tmp_path: Path) -> None:
    noise = bytes(zlib.crc32(bytes([i & 255, i >> 8])) & 255 for i in range(5000))
    path = tmp_path / "photo.mjpeg"
    path.write_bytes(jpeg(tmp_path, 0) + b"\x00\x00\x00\x18ftypmp42" + noise + jpeg(tmp_path, 1))
    assert refusal(path).code == "still_image"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_exif(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    data = b""
    for number in range(3):
        path = tmp_path / f"{number}.jpg"
        picture = Image.effect_mandelbrot((160, 120), (-2 + number / 9, -1, 1, 1), 80).convert("RGB")
        picture.save(path, exif=exif, quality=95)
        data += path.read_bytes()
    stream = tmp_path / "stream.mjpeg"
    stream.write_bytes(data)
    truth, frames = reference_frames(stream), our_frames(stream)
    assert len(frames) == 3
    for number, rgb in frames.items():
        assert np.array_equal(rgb, truth[number])
