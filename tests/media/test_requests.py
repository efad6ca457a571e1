"""Requests of several kinds are answered from one decode: planes, extractors, and streams in chunks."""

import subprocess
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from kvq_batch.domain.errors import DecodeError, ScoreError
from kvq_batch.domain.frames import (
    ClipSampling,
    ClipTimes,
    EveryFrame,
    Extractor,
    Frame,
    FrameRequest,
    Planes,
    RateSampling,
    SampledClip,
    Sampling,
)
from kvq_batch.domain.video import Window
from kvq_batch.media import decode
from kvq_batch.media.decode import DecodeTask
from kvq_batch.media.decoders import open_reader
from kvq_batch.media.isolation import IsolatedDecoder
from kvq_batch.media.local_files import clip_of_file, read_frames
from kvq_batch.media.probe import VideoLimits, probe
from kvq_batch.media.resize import resize
from tests.support.material import Material

NATIVE = FrameRequest(Sampling(2, 2, 1), None)


class PlaneMeans:
    """Extraction of the means of the planes of each frame, with the frame number: float32 [T, 4]."""

    def __init__(self, clip: SampledClip, shift: float = 0.0) -> None:
        self._rows = np.zeros((len(clip.indices), 4), np.float32)
        self._shift = shift

    def add(self, frame: Frame) -> None:
        means = [float(plane.mean()) + self._shift for plane in frame.planes]
        self._rows[frame.rows] = [frame.number, *means, *[0.0] * (3 - len(means))]

    def finish(self) -> NDArray[Any]:
        return self._rows


class AllSamples:
    """Extraction of all samples of the planes of each frame: float32 [T, samples]."""

    def __init__(self, clip: SampledClip) -> None:
        self._rows: list[NDArray[np.float32]] = []

    def add(self, frame: Frame) -> None:
        self._rows.append(np.concatenate([plane.ravel() for plane in frame.planes]).astype(np.float32))

    def finish(self) -> NDArray[Any]:
        return np.stack(self._rows)


class Refusal(PlaneMeans):
    def finish(self) -> NDArray[Any]:
        raise ScoreError("too_small", "The frames are too small for this model.", True)


MEANS = FrameRequest(
    EveryFrame(), None, planes="yuv420p", extractor=Extractor("means", 1, f"{__name__}:PlaneMeans", (("shift", 1.0),))
)


def ffmpeg_planes(path: Path, pixel_format: str) -> bytes:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-fps_mode", "passthrough"]
    command += ["-f", "rawvideo", "-pix_fmt", pixel_format, "-"]
    return subprocess.run(command, capture_output=True, check=True).stdout


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv"])
def test_planes_are_those_of_ffmpeg(material: Material, name: str) -> None:
    means = clip_of_file(material(name), MEANS, 1)
    rgb = read_frames(material(name), [0])[0]
    height, width = rgb.shape[:2]
    luma, chroma = height * width, (height // 2) * (width // 2)
    frames = np.frombuffer(ffmpeg_planes(material(name), "yuv420p"), np.uint8).reshape(-1, luma + 2 * chroma)
    planes = np.split(frames, [luma, luma + chroma], axis=1)
    expected = np.stack([np.arange(len(frames)), *[plane.mean(axis=1) + 1 for plane in planes]], axis=1)
    np.testing.assert_allclose(means, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "planes", "pixel_format"),
    [
        ("h264-10bit.mp4", "yuv", "yuv420p10le"),
        ("h264-10bit.mp4", "yuv420p", "yuv420p"),
        ("h264-422.mp4", "yuv", "yuv422p"),
        ("h264-422.mp4", "yuv420p", "yuv420p"),
    ],
)
def test_planes_of_other_depths_and_subsamplings_are_those_of_ffmpeg(
    material: Material, name: str, planes: Planes, pixel_format: str
) -> None:
    every = Extractor("samples", 1, f"{__name__}:AllSamples")
    found = clip_of_file(material(name), FrameRequest(Sampling(4, 1, 1), None, planes=planes, extractor=every), 1)
    kind = np.dtype("<u2" if "10" in pixel_format else np.uint8)
    frames = np.frombuffer(ffmpeg_planes(material(name), pixel_format), kind).reshape(-1, found.shape[1])
    indices = Sampling(4, 1, 1).indices(len(frames))
    np.testing.assert_array_equal(found, frames[indices])
    assert (found.max() > 255) == (kind.itemsize == 2)


def test_chunks_hold_whole_groups(material: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    request = FrameRequest(EveryFrame(), (32, 48), is_streamed=True, stream_group=5)
    for num_bytes, per_chunk in ((7 * 32 * 48 * 3, 5), (12 * 32 * 48 * 3, 10), (1, 5)):
        monkeypatch.setattr(decode, "STREAM_CHUNK_BYTES", num_bytes)
        path = material("seventy-one-frames.mp4")
        probed = probe(path, VideoLimits())
        whole = [Window(0.0, probed.facts.duration_s + 1)]
        reader, _ = open_reader("pyav")
        parts = list(decode.decode_clips(path, probed, whole, [request], "a", range(1), decode.Decoding(reader)))
        sizes = [len(part.frames[0].pixels) for part in parts]
        assert sizes == [*[per_chunk] * (71 // per_chunk), 1]
        assert {part.num_chunks for part in parts} == {len(sizes)}


def test_streamed_request_comes_in_chunks(material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = material("h264.mp4")
    whole = clip_of_file(path, FrameRequest(EveryFrame(), None), 1)
    streamed = FrameRequest(EveryFrame(), (32, 48), is_streamed=True)
    with IsolatedDecoder(1, tmp_path, 60.0) as decoder:
        task = DecodeTask(path, "a", (streamed, NATIVE, MEANS_IN_CHILD))
        parts = [part for video in decoder.stream(task) for part in video.clips]
    last = parts[-1]
    assert [part.num_chunks for part in parts] == [1, 1]
    assert [frames.pixels.size > 0 for frames in last.frames] == [False, True, True]
    np.testing.assert_array_equal(parts[0].frames[0].pixels, resize(whole, (32, 48)))
    np.testing.assert_array_equal(last.frames[1].pixels, whole[last.frames[1].indices])
    np.testing.assert_array_equal(last.frames[2].pixels[:, 0], np.arange(len(whole)))

    # Seven frames for each chunk.
    monkeypatch.setattr(decode, "STREAM_CHUNK_BYTES", 7 * 32 * 48 * 3)
    np.testing.assert_array_equal(clip_of_file(path, streamed, 1), parts[0].frames[0].pixels)


MEANS_IN_CHILD = FrameRequest(EveryFrame(), None, extractor=Extractor("means", 1, f"{__name__}:PlaneMeans"))


def test_extractor_rejects_video_for_its_models_only(material: Material, tmp_path: Path) -> None:
    refusal = FrameRequest(EveryFrame(), None, extractor=Extractor("refusal", 1, f"{__name__}:Refusal"))
    with IsolatedDecoder(1, tmp_path, 60.0) as decoder:
        clip = decoder.submit(DecodeTask(material("h264.mp4"), "a", (NATIVE, refusal))).result().clips[0]
    assert clip.frames[0].error is None
    assert len(clip.frames[0].pixels) == 4
    error = clip.frames[1].error
    assert error is not None
    assert (error.code, error.permanent) == ("too_small", True)


def test_stream_that_is_closed_early_leaves_nothing(material: Material, tmp_path: Path) -> None:
    with IsolatedDecoder(1, tmp_path, 60.0) as decoder:
        task = DecodeTask(material("h264.mp4"), "a", (FrameRequest(EveryFrame(), None, is_streamed=True), NATIVE))
        stream = decoder.stream(task)
        next(stream)
        stream.close()
        assert [path.suffix for path in tmp_path.glob("*/*")] == [".log"]
        assert len(list(decoder.stream(task))) == 2


def test_damaged_video_fails_a_stream(tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    with IsolatedDecoder(1, tmp_path, 60.0) as decoder:
        task = DecodeTask(broken, "a", (FrameRequest(EveryFrame(), None, is_streamed=True),))
        with pytest.raises(Exception, match="not_a_video"):
            list(decoder.stream(task))


def test_rate_sampling_takes_nearest_frames() -> None:
    clip = ClipTimes(5.0 + np.arange(75) / 25, 25.0)
    assert RateSampling(2.0).select(clip, "").tolist() == [0, 12, 25, 37, 50, 62]
    assert RateSampling(1.0, 0.5).select(clip, "").tolist() == [12, 37, 62]
    assert RateSampling(1.0).select(ClipTimes(np.array([0.0]), 0.0), "").tolist() == [0]


def test_clip_sampling_is_that_of_the_paper() -> None:
    """By hand: n = 300, S = 64, so (n - S + 1) / 4 = 59.25, and the runs start at 29, 88, 148 and 207."""
    indices = ClipSampling().select(ClipTimes(np.arange(300) / 30, 30.0), "").reshape(4, 32)
    assert indices[:, 0].tolist() == [29, 88, 148, 207]
    assert np.unique(np.diff(indices, axis=1)).tolist() == [2]
    short = ClipSampling(2, 4, 2).select(ClipTimes(np.arange(5) / 5, 5.0), "")
    assert short.tolist() == [0, 2, 4, 1, 0, 2, 4, 1]


def test_given_offsets_are_exact() -> None:
    offsets = np.array([3, 0, 1])
    assert Sampling(3, 2, 2).indices(30, offsets=offsets).tolist() == [3, 5, 10, 12, 21, 23]


@pytest.mark.parametrize(("kind", "is_antialiased"), [("bilinear", False), ("bilinear-antialias", True)])
@pytest.mark.parametrize("size", [(224, 224), (37, 90), (90, 301)])
def test_bilinear_resize_is_that_of_torch(kind: Any, is_antialiased: bool, size: tuple[int, int]) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (130, 210, 3), np.uint8)
    tensor = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    made = torch.nn.functional.interpolate(tensor, size, mode="bilinear", antialias=is_antialiased)
    expected = made.round().clamp(0, 255)[0].permute(1, 2, 0).numpy()
    difference = np.abs(resize(frame, size, kind=kind).astype(np.int16) - expected)
    # Sums in another order move values that are next to a tie.
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def test_impossible_requests_are_rejected() -> None:
    with pytest.raises(ValueError, match="need an extractor"):
        FrameRequest(EveryFrame(), None, planes="yuv")
    with pytest.raises(ValueError, match="cannot be streamed"):
        FrameRequest(EveryFrame(), None, extractor=Extractor("x", 1, "x:y"), is_streamed=True)


def test_decord_has_no_planes(material: Material) -> None:
    from kvq_batch.media.decord_reader import READER
    from kvq_batch.media.probe import VideoLimits, probe

    path = material("h264.mp4")
    ((_, picture),) = READER.pictures(path, probe(path, VideoLimits()), np.array([0]), 1)
    with pytest.raises(DecodeError, match="decoder_unsuitable"):
        picture.yuv("yuv")


@pytest.mark.parametrize("size", [(224, 224), (37, 90), (90, 301)])
def test_lanczos_resize_is_that_of_pillow(size: tuple[int, int]) -> None:
    frame = np.random.default_rng(0).integers(90, 166, (130, 210, 3), np.uint8)
    expected = np.asarray(Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.LANCZOS), np.int16)
    difference = np.abs(resize(frame, size, kind="lanczos").astype(np.int16) - expected)
    # Pillow rounds to 8 bits, and clips, between the axes.
    assert difference.max() <= 2
    assert difference.mean() < 0.3
