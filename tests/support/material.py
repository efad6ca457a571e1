"""Odd and broken video files, made by ffmpeg when a test asks for them, each once per session.

No footage is stored: every file comes from ffmpeg's own test sources. Names say what is odd about a file.
"""

import subprocess
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import pytest

from kvq_batch.domain.errors import FatalError

_SOURCE = "testsrc2=size={size}:rate={rate}:duration={seconds}"


def ffmpeg(*arguments: str, output: Path | None = None) -> None:
    """Run the bundled ffmpeg; its errors are the exception's text. What it writes to a pipe goes to `output`."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-threads", "2", *arguments]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise FatalError(f"ffmpeg {' '.join(arguments)}: {done.stderr.decode(errors='replace').strip()}")
    if output is not None:
        output.write_bytes(done.stdout)


def encode(path: Path, *options: str, size: str = "320x240", rate: str = "25", seconds: float = 4.0) -> Path:
    """A test pattern of `size`, encoded with the ffmpeg output options."""
    source = _SOURCE.format(size=size, rate=rate, seconds=seconds)
    ffmpeg("-f", "lavfi", "-i", source, *options, str(path))
    return path


def cut(source: Path, path: Path, share: float = 0.6) -> Path:
    """The first part of a file's bytes."""
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


_H264 = ("-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p")
_HEVC = ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=error:pools=1", "-pix_fmt")
_AUDIO = ("-f", "lavfi", "-i", "sine=duration=4", "-c:a", "aac", "-shortest")

_ENCODED: dict[str, tuple[str, ...]] = {
    "h264.mp4": _H264,
    "short.mp4": (*_H264, "-frames:v", "10"),
    "h264-faststart.mp4": (*_H264, "-movflags", "+faststart"),
    "h264-fragmented.mp4": (*_H264, "-g", "20", "-movflags", "frag_keyframe+empty_moov"),
    "h264-10bit.mp4": ("-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p10le"),
    "h264-422.mp4": ("-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv422p"),
    "h264-444.mkv": ("-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv444p"),
    "h264.mkv": (*_H264, "-g", "30"),
    "h264.ts": (*_H264, "-g", "30"),
    "h264.avi": (*_H264, "-g", "30"),
    "h264.flv": (*_H264, "-g", "30"),
    "h264-elementary.h264": (*_H264, "-g", "30"),
    "h264-open-gop.mp4": (*_H264, "-x264-params", "open-gop=1:keyint=24:bframes=3:b-pyramid=normal:scenecut=0"),
    "h264-intra-refresh.mp4": (*_H264, "-x264-params", "intra-refresh=1:keyint=25:bframes=0"),
    "h264-interlaced.ts": (*_H264, "-flags", "+ildct+ilme", "-x264-params", "tff=1"),
    "h264-long-gop.mp4": (*_H264, "-g", "1000", "-sc_threshold", "0"),
    "hevc.mp4": (*_HEVC, "yuv420p"),
    "hevc-10bit.mkv": (*_HEVC, "yuv420p10le"),
    "hevc-open-gop.mp4": (
        *_HEVC[:5], "log-level=error:pools=1:open-gop=1:keyint=24:bframes=3", "-pix_fmt", "yuv420p",
    ),
    "hevc-temporal-layers.mp4": (
        *_HEVC[:5], "log-level=error:pools=1:temporal-layers=2:keyint=24:bframes=3", "-pix_fmt", "yuv420p",
    ),
    "vp8.webm": ("-c:v", "libvpx", "-cpu-used", "4", "-auto-alt-ref", "1", "-lag-in-frames", "16", "-g", "40"),
    "vp9.webm": ("-c:v", "libvpx-vp9", "-cpu-used", "8", "-deadline", "realtime", "-g", "40"),
    "vp9-alt-ref.webm": ("-c:v", "libvpx-vp9", "-cpu-used", "8", "-auto-alt-ref", "1", "-lag-in-frames", "16"),
    "vp9-10bit.webm": ("-c:v", "libvpx-vp9", "-cpu-used", "8", "-deadline", "realtime", "-pix_fmt", "yuv420p10le"),
    "av1.mkv": ("-c:v", "libsvtav1", "-preset", "12", "-g", "48", "-svtav1-params", "lp=2"),
    "mpeg2.mpg": ("-c:v", "mpeg2video", "-bf", "2", "-g", "15", "-q:v", "4"),
    "mpeg2.ts": ("-c:v", "mpeg2video", "-bf", "2", "-g", "15", "-q:v", "4"),
    "mpeg4.avi": ("-c:v", "mpeg4", "-bf", "2", "-q:v", "4"),
    "mpeg4.mp4": ("-c:v", "mpeg4", "-bf", "2", "-q:v", "4"),
    "mjpeg.avi": ("-c:v", "mjpeg", "-pix_fmt", "yuvj422p", "-q:v", "4"),
    "mjpeg.mov": ("-c:v", "mjpeg", "-pix_fmt", "yuvj420p", "-q:v", "4"),
    "ffv1.mkv": ("-c:v", "ffv1", "-pix_fmt", "yuv420p"),
    "raw.y4m": ("-pix_fmt", "yuv420p"),
    "animated.gif": ("-r", "10"),
    "bt709.mp4": (*_H264, "-vf", "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"),
    "full-range.mp4": ("-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuvj420p", "-color_range", "pc"),
    "odd-size.mp4": ("-c:v", "libx264", "-vf", "scale=321:243", "-pix_fmt", "yuv444p"),
    "odd-size.webm": ("-c:v", "libvpx", "-cpu-used", "8", "-deadline", "realtime", "-vf", "scale=321:243"),
    "sample-aspect.mp4": (*_H264, "-vf", "setsar=4/3"),
    "variable-rate.mp4": (*_H264, "-vf", "select='not(between(n,30,60))+not(mod(n,3))'", "-fps_mode", "vfr"),
    "still.png": ("-frames:v", "1"),
    "still.jpg": ("-frames:v", "1", "-update", "1"),
    "one-frame.gif": ("-frames:v", "1"),
    "one-frame.mp4": (*_H264, "-frames:v", "1"),
    "seventy-one-frames.mp4": (*_H264, "-frames:v", "71"),
    "five-frames.webm": ("-c:v", "libvpx", "-frames:v", "5"),
    "pq.mp4": (*_HEVC[:5], "log-level=error:pools=1:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc",
               "-pix_fmt", "yuv420p10le", "-frames:v", "10"),
    "hlg.mp4": (*_HEVC[:5], "log-level=error:pools=1:colorprim=bt2020:transfer=arib-std-b67:colormatrix=bt2020nc",
                "-pix_fmt", "yuv420p10le", "-frames:v", "10"),
}  # fmt: skip
_SIZES = {"portrait.mp4": "240x426", "tiny.mp4": "16x16", "large.mp4": "1280x720"}


class Material:
    """Files by name, made on first use in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, name: str) -> Path:
        """The file called `name`; see the tables of this module for what there is."""
        path = self.folder / name
        if not path.exists():
            self._make(name, path)
        return path

    def _make(self, name: str, path: Path) -> None:
        if name in _ENCODED:
            encode(path, *_ENCODED[name])
        elif name in _SIZES:
            encode(path, *_H264, size=_SIZES[name])
        elif name.startswith("cut-"):
            cut(self(name.removeprefix("cut-")), path)
        else:
            _MADE[name](self, path)


def _rotated(degrees: str) -> Callable[[Material, Path], None]:
    def make(material: Material, path: Path) -> None:
        ffmpeg("-display_rotation", degrees, "-i", str(material("h264.mp4")), "-c", "copy", str(path))

    return make


def _with_audio(material: Material, path: Path) -> None:
    ffmpeg("-i", str(material("h264.mp4")), *_AUDIO, "-c:v", "copy", str(path))


def _audio_only(_: Material, path: Path) -> None:
    ffmpeg(*_AUDIO, str(path))


def _cover_only(material: Material, path: Path) -> None:
    cover = (
        "-i",
        str(material("still.jpg")),
        "-map",
        "0",
        "-map",
        "1",
        "-c:v",
        "copy",
        "-disposition:v",
        "attached_pic",
    )
    ffmpeg("-f", "lavfi", "-i", "sine=duration=2", *cover, str(path))


def _several_streams(material: Material, path: Path) -> None:
    small = material.folder / "small-stream.mp4"
    encode(small, *_H264, size="160x120")
    inputs = ("-i", str(small), "-i", str(material("h264.mp4")))
    ffmpeg(
        *inputs,
        "-map",
        "0:v",
        "-map",
        "1:v",
        "-c",
        "copy",
        "-disposition:v:0",
        "0",
        "-disposition:v:1",
        "default",
        str(path),
    )


def _edit_list(material: Material, path: Path) -> None:
    """Starts between keyframes: the frames before the start are stored, marked, and not part of the video."""
    ffmpeg("-ss", "1.0", "-i", str(material("h264-long-gop.mp4")), "-c", "copy", str(path))


def _wrong_count(material: Material, path: Path) -> None:
    """An AVI whose two frame counts in the header say 9999."""
    data = bytearray(material("mjpeg.avi").read_bytes())
    for tag, offset in ((b"avih", 8 + 16), (b"strh", 8 + 32)):
        place = data.index(tag) + offset
        data[place : place + 4] = (9999).to_bytes(4, "little")
    path.write_bytes(data)


def _sizes_change(material: Material, path: Path) -> None:
    """An elementary stream that continues with pictures of another size."""
    second = material.folder / "second-size.h264"
    encode(second, *_H264, size="160x120", seconds=2)
    path.write_bytes(material("h264-elementary.h264").read_bytes() + second.read_bytes())


def _damaged(material: Material, path: Path) -> None:
    """Whole by its headers, with noise in the pictures."""
    data = bytearray(material("h264-faststart.mp4").read_bytes())
    for place in range(len(data) // 3, len(data) - 64, 997):
        data[place : place + 16] = bytes(range(240, 256))
    path.write_bytes(data)


def _written(content: bytes) -> Callable[[Material, Path], None]:
    def make(_: Material, path: Path) -> None:
        path.write_bytes(content)

    return make


def _lone_index(material: Material, path: Path) -> None:
    """An MP4 that says what it holds and holds none of it."""
    data = material("h264-faststart.mp4").read_bytes()
    path.write_bytes(data[: data.index(b"mdat") + 4])


_MADE: dict[str, Callable[[Material, Path], None]] = {
    "rotated-90.mp4": _rotated("90"),
    "rotated-180.mp4": _rotated("180"),
    "rotated-270.mp4": _rotated("270"),
    "with-audio.mp4": _with_audio,
    "audio-only.mp4": _audio_only,
    "audio-with-cover.mp3": _cover_only,
    "several-streams.mp4": _several_streams,
    "edit-list.mp4": _edit_list,
    "wrong-count.avi": _wrong_count,
    "sizes-change.h264": _sizes_change,
    "damaged.mp4": _damaged,
    "lone-index.mp4": _lone_index,
    "empty.mp4": _written(b""),
    "html.mp4": _written(b"<!DOCTYPE html>\n<html><body>403 Forbidden</body></html>\n" * 20),
    "garbage.mp4": _written(bytes(range(256)) * 64),
    "playlist.mp4": _written(b"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nh264.ts\n#EXT-X-ENDLIST\n"),
    "concat.mp4": _written(b"ffconcat version 1.0\nfile h264.mp4\n"),
}


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """Videos by name, made once a session."""
    return Material(tmp_path_factory.mktemp("material"))
