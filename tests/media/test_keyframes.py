"""Packets that a container marks as keyframes and that are none: frames are those of ffmpeg's own decode."""

from pathlib import Path

import numpy as np
import pytest

from kvq_batch.domain.errors import DecodeError
from kvq_batch.domain.frames import Sampling
from kvq_batch.media.decoders import choose_decoder
from kvq_batch.media.probe import VideoLimits, probe
from tests.support.material import encode
from tests.support.reference import our_frames, reference_frames
from tests.support.remux import Change, Packets, mark_all_as_keyframes, mark_every_seventh, remux

_X264 = ("-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p")
_X265 = ("-c:v", "libx265", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-x265-params")
SOURCES: dict[str, tuple[str, ...]] = {
    "mpeg4.mp4": ("-c:v", "mpeg4", "-bf", "2", "-g", "24"),
    "h263.mov": ("-c:v", "h263p", "-g", "24"),
    "h264.mp4": (*_X264, "-g", "24"),
    "h264-open-gop.mkv": (*_X264, "-x264-params", "open-gop=1:keyint=24:bframes=3:scenecut=0"),
    "h264-refresh.mp4": (*_X264, "-x264-params", "intra-refresh=1:keyint=25:bframes=0"),
    "hevc.mkv": (*_X265, "log-level=error:pools=1:keyint=24:bframes=3"),
    "hevc-open-gop.mp4": (*_X265, "log-level=error:pools=1:open-gop=1:keyint=24:bframes=3"),
    "vp9.webm": ("-c:v", "libvpx-vp9", "-cpu-used", "8", "-deadline", "realtime", "-g", "40"),
    "ffv1.mkv": ("-c:v", "ffv1", "-g", "25"),
    "msmpeg4.mkv": ("-c:v", "msmpeg4", "-g", "20"),
    "cinepak.mov": ("-c:v", "cinepak", "-g", "20"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keyframes")


def source(folder: Path, name: str) -> Path:
    path = folder / name
    return path if path.exists() else encode(path, *SOURCES[name], size="160x96", seconds=3)


def assert_as_ffmpeg(path: Path) -> None:
    """Compare all frames, those of the default sampler, and some near each other at random with ffmpeg's."""
    expected = reference_frames(path)
    num_frames = len(expected)
    assert probe(path, VideoLimits()).facts.num_frames == num_frames
    rng = np.random.default_rng(7)
    choices = [np.arange(num_frames), np.unique(Sampling().indices(num_frames)), np.array([num_frames - 1])]
    choices += [np.arange(start, min(start + 5, num_frames)) for start in rng.integers(0, num_frames, 6)]
    for wanted in choices:
        frames = our_frames(path, wanted)
        assert sorted(frames) == wanted.tolist()
        for number, rgb in frames.items():
            assert np.array_equal(rgb, expected[number]), f"frame {number} of {wanted}"


@pytest.mark.parametrize("change", [mark_all_as_keyframes, mark_every_seventh])
@pytest.mark.parametrize("name", SOURCES)
def test_false_keyframes(folder: Path, name: str, change: Change) -> None:
    assert_as_ffmpeg(remux(source(folder, name), folder / f"{change.__name__}-{name}", change))


@pytest.mark.parametrize("name", ["mpeg4.mp4", "h263.mov", "hevc.mkv", "hevc-open-gop.mp4", "ffv1.mkv"])
def test_true_keyframes_are_looked_up(folder: Path, name: str) -> None:
    path = remux(source(folder, name), folder / f"looked-up-{name}", mark_all_as_keyframes)
    is_key = probe(path, VideoLimits()).packet_is_key
    assert 1 < np.count_nonzero(is_key) < 10
    assert np.array_equal(is_key, probe(source(folder, name), VideoLimits()).packet_is_key)


@pytest.mark.parametrize("name", ["mpeg4.mp4", "h264.mp4", "hevc-open-gop.mp4"])
@pytest.mark.parametrize("extension", ["mp4", "mkv"])
def test_file_starts_without_a_keyframe(folder: Path, name: str, extension: str) -> None:
    def without_start(packets: Packets) -> Packets:
        mark_all_as_keyframes(packets)
        return packets[5:]

    assert_as_ffmpeg(remux(source(folder, name), folder / f"headless-{name}.{extension}", without_start))


@pytest.mark.parametrize("name", ["h264-open-gop.mkv", "hevc-open-gop.mp4"])
def test_keyframe_and_frames_that_lead_it(folder: Path, name: str) -> None:
    path = source(folder, name)
    expected = reference_frames(path)
    keys = np.flatnonzero(probe(path, VideoLimits()).frame_is_key)[1:]
    for key in keys.tolist():
        frames = our_frames(path, np.arange(key - 2, key + 1))
        assert all(np.array_equal(rgb, expected[number]) for number, rgb in frames.items())


def test_animations_are_never_entered_in_the_middle(tmp_path: Path) -> None:
    for name in ("moving.apng", "moving.gif"):
        options = ("-f", "apng") if name.endswith("apng") else ()
        assert_as_ffmpeg(encode(tmp_path / name, "-r", "10", *options, size="160x96"))


def test_decord_is_rejected_for_false_keyframes(folder: Path) -> None:
    path = remux(source(folder, "hevc-open-gop.mp4"), folder / "decord.mp4", mark_all_as_keyframes)
    with pytest.raises(DecodeError, match="keyframe") as caught:
        choose_decoder(probe(path, VideoLimits()), "decord")
    assert caught.value.code == "decoder_unsuitable"
