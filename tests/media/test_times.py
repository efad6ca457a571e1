"""Times of frames as players show them: gaps, held frames, jumping clocks, and times that the decoder contradicts."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvq_batch.domain.errors import DecodeError
from kvq_batch.domain.frames import EveryFrame, FrameRequest, Sampling
from kvq_batch.domain.video import ClipPolicy, Window
from kvq_batch.media import decode
from kvq_batch.media.decode import DecodeTask, Decoding, decode_clips, decode_task
from kvq_batch.media.decoders import open_reader
from kvq_batch.media.probe import VideoLimits, probe
from kvq_batch.media.scratch import map_arrays
from tests.media.test_keyframes import assert_as_ffmpeg
from tests.support.material import encode, ffmpeg
from tests.support.reference import our_frames, reference_frames
from tests.support.remux import hold_last, move_clock, remux, show_in_coding_order, swap_late_times, swap_times

_X264 = ("-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p", "-g", "24")
_X265 = ("-c:v", "libx265", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-x265-params", "log-level=error:pools=1")
SOURCES: dict[str, tuple[str, ...]] = {
    "h264.mp4": _X264,
    "h264-no-b.mp4": (*_X264, "-bf", "0"),
    "hevc.mp4": _X265,
    "mpeg4.mp4": ("-c:v", "mpeg4", "-bf", "2", "-g", "24"),
    "mpeg2.mkv": ("-c:v", "mpeg2video", "-bf", "2", "-g", "15"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("times")


def source(folder: Path, name: str) -> Path:
    path = folder / name
    return path if path.exists() else encode(path, *SOURCES[name], size="160x96", seconds=4)


def transport_stream(folder: Path, name: str) -> Path:
    path = folder / f"{Path(name).stem}.ts"
    if not path.exists():
        ffmpeg("-i", str(source(folder, name)), "-c", "copy", str(path))
    return path


# Windows


SLIDES = [("mp4", _X264), ("mkv", _X264), ("ts", _X264), ("flv", _X264), ("webm", ("-c:v", "libvpx"))]


@pytest.mark.parametrize(("extension", "options"), SLIDES)
def test_windows_without_a_start_get_the_frame_on_screen(
    tmp_path: Path, extension: str, options: tuple[str, ...]
) -> None:
    path = encode(tmp_path / f"slides.{extension}", *options, size="160x96", rate="1/5", seconds=20)
    probed = probe(path, VideoLimits())
    assert probed.facts.duration_s == pytest.approx(20)
    expected = reference_frames(path)
    windows = ClipPolicy(every_s=2).windows(probed.facts.duration_s)
    reader, _ = open_reader("pyav")
    request = FrameRequest(Sampling(2, 2, 1), None)
    clips = list(decode_clips(path, probed, windows, [request], "k", range(len(windows)), Decoding(reader)))
    # A picture every 5 s: at its end each window of 2 s shows the last one that has started.
    assert [clip.frames[0].indices.tolist() for clip in clips] == [[int((w.end_s - 0.01) // 5)] * 4 for w in windows]
    for clip in clips:
        for rgb, number in zip(clip.frames[0].pixels, clip.frames[0].indices, strict=True):
            assert np.array_equal(rgb, expected[number])


def test_window_inside_the_last_frame(folder: Path) -> None:
    path = remux(source(folder, "h264.mp4"), folder / "held-window.mp4", hold_last(5))
    probed = probe(path, VideoLimits())
    reader, _ = open_reader("pyav")
    request = FrameRequest(Sampling(1, 2, 1), None)
    (clip,) = decode_clips(path, probed, [Window(6, 8)], [request], "k", range(1), Decoding(reader))
    assert clip.frames[0].indices.tolist() == [99, 99]
    with pytest.raises(DecodeError, match=r"ends at 8\.96 s.*in the catalog") as caught:
        list(decode_clips(path, probed, [Window(9, 12)], [request], "k", range(1), Decoding(reader)))
    assert caught.value.code == "empty_window"


# Durations


@pytest.mark.parametrize("name", ["h264.mp4", "h264-no-b.mp4", "hevc.mp4"])
@pytest.mark.parametrize("extension", ["mp4", "mov", "mkv"])
def test_last_frame_is_held(folder: Path, name: str, extension: str) -> None:
    path = remux(source(folder, name), folder / f"held-{name}.{extension}", hold_last(20))
    facts = probe(path, VideoLimits()).facts
    assert facts.duration_s == pytest.approx(99 / 25 + 20, abs=0.002)
    assert facts.frame_rate == pytest.approx(100 / (99 / 25 + 20), rel=1e-3)


def test_duration_of_one_tick_is_ignored(folder: Path) -> None:
    path = remux(source(folder, "h264-no-b.mp4"), folder / "tick.mp4", hold_last(1 / 12800))
    assert probe(path, VideoLimits()).facts.duration_s == pytest.approx(4)


@pytest.mark.parametrize("seconds", [3600.0, 12.0, -1.0, -3.0, -20.0, 40_000.0])
@pytest.mark.parametrize("name", ["h264.mp4", "h264-no-b.mp4", "mpeg2.mkv"])
def test_clock_jumps_add_no_time(folder: Path, name: str, seconds: float) -> None:
    path = move_clock(transport_stream(folder, name), folder / f"{name}{seconds}.ts", 0.61, seconds)
    probed = probe(path, VideoLimits())
    assert probed.facts.duration_s == pytest.approx(4)
    assert probed.facts.frame_rate == pytest.approx(25)
    assert np.allclose(np.diff(probed.times_s), 0.04)
    assert_as_ffmpeg(path)


@pytest.mark.parametrize("name", ["h264.mp4", "mpeg2.mkv"])
def test_joined_transport_streams(folder: Path, name: str) -> None:
    path = folder / f"joined-{name}.ts"
    path.write_bytes(transport_stream(folder, name).read_bytes() * 2)
    assert probe(path, VideoLimits()).facts.duration_s == pytest.approx(8)
    assert_as_ffmpeg(path)


@pytest.mark.parametrize("first", ["slow.ts", "fast.ts"])
def test_joined_streams_of_different_delay(tmp_path: Path, first: str) -> None:
    slow = encode(tmp_path / "slow.ts", *_X264, size="160x96", seconds=4)
    fast = encode(tmp_path / "fast.ts", *_X264, "-bf", "0", size="160x96", rate="50", seconds=4)
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in ((slow, fast) if first == "slow.ts" else (fast, slow))))
    assert probe(path, VideoLimits()).facts.duration_s == pytest.approx(8, abs=0.1)
    assert_as_ffmpeg(path)


def test_clock_that_wraps_around(folder: Path) -> None:
    path = folder / "wraps.ts"
    ffmpeg("-i", str(source(folder, "h264.mp4")), "-c", "copy", "-output_ts_offset", str(2**33 / 90_000 - 2), str(path))
    assert probe(path, VideoLimits()).facts.duration_s == pytest.approx(4)
    assert_as_ffmpeg(path)


def test_short_gap_of_a_transport_stream_is_time(folder: Path) -> None:
    path = move_clock(transport_stream(folder, "h264-no-b.mp4"), folder / "gap.ts", 0.61, 8)
    assert probe(path, VideoLimits()).facts.duration_s == pytest.approx(12)
    assert_as_ffmpeg(path)


# Frames out of order


@pytest.mark.parametrize("name", ["h264.mp4", "hevc.mp4", "mpeg4.mp4", "mpeg2.mkv"])
@pytest.mark.parametrize("extension", ["mp4", "mkv"])
def test_times_in_coding_order(folder: Path, name: str, extension: str) -> None:
    path = remux(source(folder, name), folder / f"coding-{name}.{extension}", show_in_coding_order)
    probed = probe(path, VideoLimits())
    assert probed.counting == "decoding"
    assert np.allclose(np.diff(probed.times_s), 0.04)
    assert_as_ffmpeg(path)


def test_frames_in_order_are_not_counted_by_decoding(folder: Path) -> None:
    assert probe(source(folder, "h264-no-b.mp4"), VideoLimits()).counting == "packets"
    assert probe(source(folder, "h264.mp4"), VideoLimits()).counting == "packets"


def test_swapped_times_are_counted_by_decoding(folder: Path) -> None:
    path = remux(source(folder, "hevc.mp4"), folder / "swapped.mkv", swap_times)
    with pytest.raises(DecodeError) as caught:
        our_frames(path)
    assert caught.value.code == "frame_order"
    scratch = folder / "scratch"
    layout = decode_task(DecodeTask(path, "k", (FrameRequest(Sampling(8, 4, 2), None),)), scratch)
    assert layout.probed is not None
    assert layout.probed.counting == "decoding"
    expected = reference_frames(path)
    (frames,) = layout.clips[0].frames
    pixels = map_arrays(scratch, list(layout.extents))[frames.extent]
    for rgb, number in zip(pixels, frames.indices, strict=True):
        assert np.array_equal(rgb, expected[number])


def test_stream_starts_again_if_times_are_wrong_in_a_late_part(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = remux(source(folder, "hevc.mp4"), folder / "late.mkv", swap_late_times)
    monkeypatch.setattr(decode, "STREAM_CHUNK_BYTES", 10 * 96 * 160 * 3)
    task = DecodeTask(path, "k", (FrameRequest(EveryFrame(), None, is_streamed=True),))
    layouts = decode.run_task(task, folder / "late")
    assert isinstance(layouts, Iterator)
    parts = [
        (clip.decode_pass, clip.chunk_index, map_arrays(layout.file, list(layout.extents))[0])
        for layout in layouts
        for clip in layout.clips
        if layout.file is not None
    ]
    passes = [decode_pass for decode_pass, _, _ in parts]
    assert passes[0] == 0
    assert passes == sorted(passes)
    last = [(index, pixels) for decode_pass, index, pixels in parts if decode_pass == passes[-1] > 0]
    assert [index for index, _ in last] == list(range(len(last)))
    expected = reference_frames(path)
    np.testing.assert_array_equal(np.concatenate([pixels for _, pixels in last]), np.stack(expected))


def test_wrong_times_after_the_first_clips_say_what_to_do(folder: Path) -> None:
    path = remux(source(folder, "hevc.mp4"), folder / "late.mkv", swap_late_times)
    task = DecodeTask(
        path, "k", (FrameRequest(EveryFrame(), None, is_streamed=True),), probed=probe(path, VideoLimits())
    )
    layouts = decode.run_task(task, folder / "later")
    assert isinstance(layouts, Iterator)
    with pytest.raises(DecodeError, match=r"the container's times are wrong\. Encode the video again\."):
        list(layouts)


@pytest.mark.parametrize("start", [1.1, 2.3])
@pytest.mark.parametrize("extension", ["mp4", "mkv"])
def test_excerpts(folder: Path, start: float, extension: str) -> None:
    path = folder / f"excerpt-{start}.{extension}"
    ffmpeg("-ss", str(start), "-t", "1.3", "-i", str(source(folder, "h264.mp4")), "-c", "copy", str(path))
    assert_as_ffmpeg(path)
