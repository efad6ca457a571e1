"""Facts of odd files, and files that the probe refuses."""

import numpy as np
import pytest

from kvq_batch.domain.errors import DecodeError, ItemError, ProbeError
from kvq_batch.media.containers import check_completeness
from kvq_batch.media.probe import VideoLimits, probe
from tests.support.material import Material

LIMITS = VideoLimits()

COUNTS = {
    "h264.mp4": 100, "h264-fragmented.mp4": 100, "h264.mkv": 100, "h264.ts": 100, "h264.avi": 100, "h264.flv": 100,
    "h264-elementary.h264": 100, "h264-interlaced.ts": 100, "h264-open-gop.mp4": 100, "hevc.mp4": 100,
    "hevc-10bit.mkv": 100, "vp8.webm": 100, "vp9.webm": 100, "vp9-alt-ref.webm": 100, "av1.mkv": 100, "mpeg2.mpg": 100,
    "mpeg2.ts": 100, "mpeg4.avi": 100, "mjpeg.avi": 100, "mjpeg.mov": 100, "ffv1.mkv": 100, "raw.y4m": 100,
    "animated.gif": 42, "variable-rate.mp4": 80, "one-frame.mp4": 1, "five-frames.webm": 5, "wrong-count.avi": 100,
    "seventy-one-frames.mp4": 71, "edit-list.mp4": 75, "with-audio.mp4": 100,
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_frames_are_counted(material: Material, name: str) -> None:
    probed = probe(material(name), LIMITS)
    assert probed.facts.num_frames == COUNTS[name] == len(probed.times_s)
    assert probed.times_s[0] == 0
    assert np.all(np.diff(probed.times_s) > 0)
    assert probed.facts.duration_s > probed.times_s[-1]


def test_facts_of_an_ordinary_file(material: Material) -> None:
    facts = probe(material("bt709.mp4"), LIMITS).facts
    assert (facts.width_px, facts.height_px, facts.rotation_deg, facts.sample_aspect_ratio) == (320, 240, 0, 1.0)
    assert (facts.codec, facts.pixel_format, facts.bit_depth, facts.field_order) == (
        "h264",
        "yuv420p",
        8,
        "progressive",
    )
    assert facts.frame_rate == pytest.approx(25)
    assert facts.duration_s == pytest.approx(4)
    assert not facts.is_variable_frame_rate
    colors = (facts.color_primaries, facts.color_transfer, facts.color_matrix, facts.color_range)
    assert colors == ("bt709", "bt709", "bt709", "tv")


def test_facts_of_odd_files(material: Material) -> None:
    assert probe(material("variable-rate.mp4"), LIMITS).facts.is_variable_frame_rate
    assert probe(material("h264-10bit.mp4"), LIMITS).facts.bit_depth == 10
    assert probe(material("sample-aspect.mp4"), LIMITS).facts.sample_aspect_ratio == pytest.approx(4 / 3)
    assert probe(material("h264-interlaced.ts"), LIMITS).facts.field_order == "tt"
    assert probe(material("full-range.mp4"), LIMITS).facts.color_range == "pc"
    assert probe(material("av1.mkv"), LIMITS).facts.codec == "av1"


@pytest.mark.parametrize(("name", "clockwise"), [("rotated-90.mp4", 270), ("rotated-180.mp4", 180)])
def test_size_is_of_the_upright_picture(material: Material, name: str, clockwise: int) -> None:
    facts = probe(material(name), LIMITS).facts
    assert facts.rotation_deg == clockwise
    upright = (240, 320) if clockwise == 270 else (320, 240)
    assert (facts.width_px, facts.height_px) == upright


def test_best_of_several_streams(material: Material) -> None:
    probed = probe(material("several-streams.mp4"), LIMITS)
    assert probed.stream_index == 1
    assert probed.facts.width_px == 320


def test_long_groups_have_one_keyframe(material: Material) -> None:
    probed = probe(material("h264-long-gop.mp4"), LIMITS)
    assert np.flatnonzero(probed.frame_is_key).tolist() == [0]
    assert not probed.has_open_groups
    assert probe(material("h264-open-gop.mp4"), LIMITS).has_open_groups


REFUSED = {
    "empty.mp4": "empty_file", "html.mp4": "not_a_video", "garbage.mp4": "not_a_video", "playlist.mp4": "not_a_video",
    "concat.mp4": "not_a_video", "audio-only.mp4": "no_video", "audio-with-cover.mp3": "no_video",
    "still.png": "still_image", "still.jpg": "still_image", "one-frame.gif": "still_image", "pq.mp4": "hdr_refused",
    "hlg.mp4": "hdr_refused", "cut-h264.mp4": "truncated",
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_by_name(material: Material, name: str) -> None:
    with pytest.raises(ProbeError) as caught:
        probe(material(name), LIMITS)
    assert caught.value.code == REFUSED[name]
    assert caught.value.permanent


@pytest.mark.parametrize(
    "name",
    [
        "cut-h264-faststart.mp4",
        "cut-h264-fragmented.mp4",
        "cut-h264.mkv",
        "cut-vp8.webm",
        "cut-h264.avi",
        "cut-h264.flv",
        "cut-raw.y4m",
        "lone-index.mp4",
    ],
)
def test_truncated_files_fail_and_are_permanent(material: Material, name: str) -> None:
    with pytest.raises(DecodeError) as caught:
        probe(material(name), LIMITS)
    assert caught.value.code == "truncated"
    assert caught.value.permanent


def test_whole_files_lack_nothing(material: Material) -> None:
    for name in ("h264.mp4", "h264-fragmented.mp4", "h264.mkv", "vp8.webm", "mjpeg.avi", "h264.ts"):
        assert check_completeness(material(name)).loss is None, name


def test_limits(material: Material) -> None:
    with pytest.raises(ProbeError) as caught:
        probe(material("h264.mp4"), VideoLimits(max_frame_pixels=320 * 240 - 1))
    assert caught.value.code == "frame_too_large"
    assert probe(material("h264.mp4"), VideoLimits(max_frame_pixels=320 * 240)).facts.num_frames == 100
    assert probe(material("pq.mp4"), VideoLimits(hdr="as-is")).facts.color_transfer == "smpte2084"


def test_missing_file_is_not_permanent(material: Material) -> None:
    with pytest.raises(ItemError) as caught:
        probe(material.folder / "nowhere.mp4", LIMITS)
    assert caught.value.code == "file_not_found"
    assert not caught.value.permanent
