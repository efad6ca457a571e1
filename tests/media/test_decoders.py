"""Frames of both readers, compared with a decode of the whole file."""

import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kvq_batch.domain.errors import DecodeError
from kvq_batch.domain.frames import FrameRequest, Sampling
from kvq_batch.domain.video import ClipPolicy, Window
from kvq_batch.media.decode import Decoding, decode_clips
from kvq_batch.media.decoders import DecoderName, choose_decoder, open_reader
from kvq_batch.media.probe import Probed, VideoLimits, probe
from kvq_batch.media.resize import resize
from tests.support.material import Material, ffmpeg
from tests.support.reference import reference_frames

BOTH = [
    "h264.mp4", "h264-fragmented.mp4", "h264.mkv", "h264.flv", "h264-422.mp4", "h264-444.mkv", "h264-long-gop.mp4",
    "hevc.mp4", "vp8.webm", "vp9.webm", "vp9-alt-ref.webm", "mjpeg.avi", "mjpeg.mov", "raw.y4m", "portrait.mp4",
    "odd-size.mp4", "one-frame.mp4", "five-frames.webm", "seventy-one-frames.mp4", "wrong-count.avi", "with-audio.mp4",
    "several-streams.mp4", "variable-rate.mp4", "bt709.mp4", "full-range.mp4", "sample-aspect.mp4",
]  # fmt: skip
PYAV_ONLY = [
    "h264.ts", "h264.avi", "h264-elementary.h264", "h264-open-gop.mp4", "h264-10bit.mp4", "h264-interlaced.ts",
    "hevc-10bit.mkv", "hevc-open-gop.mp4", "hevc-temporal-layers.mp4", "vp9-10bit.webm", "av1.mkv", "mpeg2.mpg",
    "mpeg2.ts", "mpeg4.avi", "mpeg4.mp4", "ffv1.mkv", "animated.gif", "odd-size.webm", "tiny.mp4", "rotated-90.mp4",
    "rotated-180.mp4", "rotated-270.mp4",
]  # fmt: skip
# decord's rule lets these through, and decord itself finds out (edit list) or does not (gradual refresh).
BEYOND_THE_RULE = ["h264-intra-refresh.mp4", "edit-list.mp4"]


@cache
def whole_decode(path: Path) -> tuple[Probed, list[NDArray[np.uint8]]]:
    """Return every frame of a file as ffmpeg decodes it, in order and leaving nothing out, upright."""
    probed = probe(path, VideoLimits())
    return probed, reference_frames(path, stream=probed.stream_index)


def assert_exact(material: Material, name: str, decoder: DecoderName) -> None:
    path = material(name)
    probed, truth = whole_decode(path)
    num_frames = probed.facts.num_frames
    assert num_frames == len(truth)
    assert choose_decoder(probed, decoder) == decoder
    reader, _ = open_reader(decoder)
    rng = np.random.default_rng(5)
    choices = [np.arange(num_frames), np.unique(Sampling().indices(num_frames)), np.array([num_frames - 1])]
    choices += [np.unique(rng.integers(0, num_frames, count)) for count in (1, 2, 5)]
    for wanted in choices:
        got = {number: rgb.copy() for number, rgb in reader.frames(path, probed, wanted, 1)}
        assert sorted(got) == wanted.tolist()
        for number, rgb in got.items():
            assert np.array_equal(rgb, truth[number]), f"frame {number} of {wanted}"


@pytest.mark.parametrize("name", BOTH + PYAV_ONLY + BEYOND_THE_RULE)
def test_pyav_is_exact(material: Material, name: str) -> None:
    assert_exact(material, name, "pyav")


@pytest.mark.parametrize("name", BOTH)
def test_decord_is_exact_where_allowed(material: Material, name: str) -> None:
    assert_exact(material, name, "decord")


@pytest.mark.parametrize("name", PYAV_ONLY)
def test_decord_is_rejected_elsewhere(material: Material, name: str) -> None:
    probed = probe(material(name), VideoLimits())
    assert choose_decoder(probed) == "pyav"
    with pytest.raises(DecodeError) as caught:
        choose_decoder(probed, "decord")
    assert caught.value.code == "decoder_unsuitable"


def test_decord_counts_other_frames(material: Material) -> None:
    path = material("edit-list.mp4")
    probed = probe(path, VideoLimits())
    reader, _ = open_reader("decord")
    with pytest.raises(DecodeError) as caught:
        list(reader.frames(path, probed, np.array([0]), 1))
    assert caught.value.code == "decoder_unsuitable"


def test_rotated_pictures_are_upright(material: Material) -> None:
    _, stored = whole_decode(material("h264.mp4"))
    for degrees, quarters in ((90, 1), (180, 2), (270, 3)):
        path = material(f"rotated-{degrees}.mp4")
        reader, _ = open_reader("pyav")
        ((_, rgb),) = reader.frames(path, probe(path, VideoLimits()), np.array([7]), 1)
        assert np.array_equal(rgb, np.rot90(stored[7], quarters))


def test_damage_is_an_error(material: Material) -> None:
    path = material("damaged.mp4")
    probed = probe(path, VideoLimits())
    reader, _ = open_reader("pyav")
    with pytest.raises(DecodeError) as caught:
        list(reader.frames(path, probed, np.arange(probed.facts.num_frames), 1))
    assert caught.value.code in ("corrupt_frame", "undecodable", "frame_missing")
    assert caught.value.permanent


# Planes of integers, stored without loss, so that no encoder's version is in the golden; what is: swscale's bicubic
# flags and the file's matrix. A change here is a change of every score. (Resized frames have goldens of their own, with
# a tolerance: the order of a float32 sum differs between processors.)
CHECKSUMS = {"unknown": 1236675453, "bt709": 358278406}


@pytest.mark.parametrize("matrix", CHECKSUMS)
def test_checksums_of_frames(matrix: str, tmp_path: Path) -> None:
    height, width, count = 90, 160, 12
    y, x = np.mgrid[0:height, 0:width]
    planes = b""
    for frame in range(count):
        luma = (x * 3 + y * 2 + frame * 5 + (x // 8 + y // 8) % 2 * 40) % 220 + 16
        blue, red = (x[::2, ::2] + 2 * frame) % 225 + 16, (y[::2, ::2] * 2 + x[::2, ::2]) % 225 + 16
        planes += b"".join(p.astype(np.uint8).tobytes() for p in (luma, blue, red))
    raw, path = tmp_path / "planes.yuv", tmp_path / "lossless.mp4"
    raw.write_bytes(planes)
    tags = "null" if matrix == "unknown" else f"setparams=colorspace={matrix}:range=tv"
    source = ("-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", f"{width}x{height}", "-r", "25", "-i", str(raw))
    ffmpeg(*source, "-vf", tags, "-c:v", "libx264", "-qp", "0", str(path))
    probed = probe(path, VideoLimits())
    assert probed.facts.color_matrix == matrix
    requests = [FrameRequest(Sampling(3, 4, 1), None)]
    decoders: tuple[DecoderName, ...] = ("pyav", "decord")
    for decoder in decoders:
        reader, _ = open_reader(decoder)
        windows = [Window(0, probed.facts.duration_s)]
        (clip,) = decode_clips(path, probed, windows, requests, "k", range(1), Decoding(reader))
        assert zlib.crc32(clip.frames[0].pixels.tobytes()) == CHECKSUMS[matrix], decoder


def test_clips_have_frames_of_their_windows(material: Material) -> None:
    path = material("h264.mkv")
    probed, truth = whole_decode(path)
    windows = ClipPolicy(every_s=1.0).windows(probed.facts.duration_s)
    assert len(windows) == 4
    reader, _ = open_reader("pyav")
    request = FrameRequest(Sampling(2, 2, 1), (40, 56))
    clips = list(decode_clips(path, probed, windows, [request, request], "k", range(1, 4), Decoding(reader)))
    assert [c.clip_index for c in clips] == [1, 2, 3]
    for clip in clips:
        frames = clip.frames[0]
        assert clip.frames[1].pixels is frames.pixels
        assert np.all((frames.times_s >= clip.window.start_s - 1e-6) & (frames.times_s < clip.window.end_s))
        for row, number in enumerate(frames.indices):
            assert np.array_equal(frames.pixels[row], resize(truth[number], (40, 56)))


def test_windows_of_variable_rates_go_by_time(material: Material) -> None:
    path = material("variable-rate.mp4")
    probed = probe(path, VideoLimits())
    reader, _ = open_reader("pyav")
    request = FrameRequest(Sampling(1, 1, 1), None)
    (clip,) = decode_clips(path, probed, [Window(1.2, 2.4)], [request], "k", range(1), Decoding(reader))
    assert 1.2 <= clip.frames[0].times_s[0] < 2.4


def test_window_past_the_end_is_rejected(material: Material) -> None:
    path = material("h264.mp4")
    probed = probe(path, VideoLimits())
    reader, _ = open_reader("pyav")
    with pytest.raises(DecodeError) as caught:
        list(decode_clips(path, probed, [Window(9.0, 12.0)], [FrameRequest()], "k", range(1), Decoding(reader)))
    assert caught.value.code == "empty_window"


def test_native_frames_have_one_size(material: Material) -> None:
    path = material("sizes-change.h264")
    probed = probe(path, VideoLimits())
    reader, _ = open_reader("pyav")
    windows = [Window(0, probed.facts.duration_s)]
    sized = FrameRequest(Sampling(), (64, 64))
    (clip,) = decode_clips(path, probed, windows, [sized], "k", range(1), Decoding(reader))
    assert clip.frames[0].pixels.shape == (32, 64, 64, 3)
    with pytest.raises(DecodeError) as caught:
        list(decode_clips(path, probed, windows, [FrameRequest(Sampling(), None)], "k", range(1), Decoding(reader)))
    assert caught.value.code == "frame_size_changes"
