"""Intact and damaged files of many codecs and containers, and what the decoder says of them.

    python -m tests.support.damage

prints the tables of docs/reliability.md. Every file comes from ffmpeg's test pattern; damage is seeded. A damaged file
counts only if its frames differ from the intact ones.
"""

import argparse
import sys
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.errors import ItemError
from kvq_batch.media.decoders import open_reader
from kvq_batch.media.packets import best_stream
from kvq_batch.media.probe import VideoLimits, probe
from tests.support.material import ffmpeg

_X265 = "log-level=error:pools=1:keyint=25:bframes=3"
CODECS: dict[str, tuple[str, ...]] = {
    "h264": ("libx264", "-preset", "veryfast", "-g", "25", "-pix_fmt", "yuv420p"),
    "h264-open-gop": ("libx264", "-x264-params", "open-gop=1:keyint=20:bframes=3:scenecut=0", "-pix_fmt", "yuv420p"),
    "h264-refresh": ("libx264", "-x264-params", "intra-refresh=1:keyint=20:bframes=0", "-pix_fmt", "yuv420p"),
    "h264-slices": ("libx264", "-x264-params", "slices=4:keyint=25:cabac=0", "-pix_fmt", "yuv420p"),
    "hevc": ("libx265", "-preset", "ultrafast", "-x265-params", f"{_X265}:open-gop=0", "-pix_fmt", "yuv420p"),
    "hevc-open-gop": ("libx265", "-preset", "ultrafast", "-x265-params", f"{_X265}:open-gop=1", "-pix_fmt", "yuv420p"),
    "hevc-hash": ("libx265", "-preset", "ultrafast", "-x265-params", f"{_X265}:hash=1", "-pix_fmt", "yuv420p"),
    "vp8": ("libvpx", "-cpu-used", "8", "-auto-alt-ref", "1", "-lag-in-frames", "16", "-g", "25", "-b:v", "1M"),
    "vp9": ("libvpx-vp9", "-cpu-used", "8", "-lag-in-frames", "16", "-g", "25", "-b:v", "1M"),
    "av1": ("libsvtav1", "-preset", "12", "-g", "25", "-svtav1-params", "lp=1", "-pix_fmt", "yuv420p"),
    "mpeg1video": ("mpeg1video", "-bf", "2", "-g", "12", "-q:v", "4"),
    "mpeg2video": ("mpeg2video", "-bf", "2", "-g", "12", "-q:v", "4"),
    "mpeg4": ("mpeg4", "-bf", "2", "-g", "25", "-q:v", "4"),
    "h263": ("h263", "-g", "25", "-q:v", "4"),
    "flv1": ("flv", "-g", "25", "-q:v", "4"),
    "wmv2": ("wmv2", "-g", "25", "-q:v", "4"),
    "theora": ("libtheora", "-g", "25", "-q:v", "7"),
    "mjpeg": ("mjpeg", "-q:v", "4", "-pix_fmt", "yuvj420p"),
    "prores": ("prores_ks",),
    "dnxhd": ("dnxhd", "-profile:v", "dnxhr_hq", "-pix_fmt", "yuv422p"),
    "ffv1": ("ffv1", "-level", "3", "-slicecrc", "1", "-g", "25", "-pix_fmt", "yuv420p"),
    "ffv1-no-crc": ("ffv1", "-level", "3", "-slicecrc", "0", "-g", "25", "-pix_fmt", "yuv420p"),
    "huffyuv": ("huffyuv", "-pix_fmt", "yuv422p"),
    "utvideo": ("utvideo", "-pix_fmt", "yuv420p"),
    "qtrle": ("qtrle",),
    "png": ("png", "-pix_fmt", "rgb24"),
    "rawvideo": ("rawvideo", "-pix_fmt", "yuv420p"),
    "gif": ("gif",),
    "apng": ("apng",),
}
_MP4 = ("mp4", "faststart.mp4", "fragmented.mp4", "dash.mp4")
_MKV = ("mkv", "live.mkv")
CONTAINERS: dict[str, tuple[str, ...]] = {
    "h264": (*_MP4, "mov", *_MKV, "avi", "pipe.avi", "ts", "m2ts", "flv", "pipe.flv", "h264", "nut"),
    "h264-open-gop": ("mp4", "mkv", "ts"),
    "h264-refresh": ("mp4", "mkv", "ts"),
    "h264-slices": ("mp4", "mkv", "ts"),
    "hevc": (*_MP4, *_MKV, "ts", "hevc"),
    "hevc-open-gop": ("mp4", "mkv", "ts"),
    "hevc-hash": ("mp4", "mkv"),
    "vp8": ("webm", "live.webm", "ivf", "ogg"),
    "vp9": ("webm", "live.webm", "mp4", "ivf"),
    "av1": ("mp4", "fragmented.mp4", "mkv", "webm", "ivf", "obu"),
    "mpeg1video": ("mpg", "ts", "m1v"),
    "mpeg2video": ("mpg", "ts", "m2ts", "vob", "mxf", "mkv", "m2v"),
    "mpeg4": ("avi", "pipe.avi", "mp4", "mkv", "m4v"),
    "h263": ("3gp", "mkv"),
    "flv1": ("flv", "pipe.flv"),
    "wmv2": ("wmv", "pipe.wmv", "avi"),
    "theora": ("ogv", "mkv"),
    "mjpeg": ("avi", "pipe.avi", "mov", "mkv"),
    "prores": ("mov", "mkv", "mxf"),
    "dnxhd": ("mov", "mxf"),
    "ffv1": ("mkv", "avi", "nut"),
    "ffv1-no-crc": ("mkv",),
    "huffyuv": ("avi", "mkv"),
    "utvideo": ("avi",),
    "qtrle": ("mov",),
    "png": ("mov", "avi"),
    "rawvideo": ("avi", "nut", "mkv", "y4m"),
    "gif": ("gif",),
    "apng": ("apng",),
}
_MUXERS = {
    "faststart.mp4": ("-movflags", "+faststart", "-f", "mp4"),
    "fragmented.mp4": ("-movflags", "frag_keyframe+empty_moov", "-f", "mp4"),
    "dash.mp4": ("-movflags", "+dash+global_sidx+frag_keyframe", "-f", "mp4"),
    "m2ts": ("-f", "mpegts", "-mpegts_m2ts_mode", "1"),
    "apng": ("-plays", "0"),
}
_PIPED = {"live.mkv": "matroska", "live.webm": "webm", "pipe.avi": "avi", "pipe.flv": "flv", "pipe.wmv": "asf"}
_SILENT = {"h264", "hevc", "m1v", "m2v", "m4v", "ivf", "obu", "gif", "apng", "y4m", "nut", "mxf"}
_AUDIO = {
    "webm": "libopus", "live.webm": "libopus", "ogg": "libvorbis", "ogv": "libvorbis", "mpg": "mp2", "vob": "mp2",
    "ts": "mp2", "m2ts": "mp2", "avi": "libmp3lame", "pipe.avi": "libmp3lame", "flv": "libmp3lame",
    "pipe.flv": "libmp3lame", "wmv": "wmav2", "pipe.wmv": "wmav2",
}  # fmt: skip
_VARIANT_OF = {
    "h264-open-gop": "h264", "h264-refresh": "h264", "h264-slices": "h264", "hevc-open-gop": "hevc",
}  # fmt: skip
# Where NUT, which takes almost everything, cannot be copied from.
_ENCODED_IN = {"h264": "mkv", "hevc": "mkv", "gif": "gif", "apng": "apng", "qtrle": "mov"}
KINDS = ("cut", "zeroed", "flipped")
EDITS = ("plain", "trimmed", "long-sound", "short-sound")
SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Case:
    """One file: a codec in a container, edited or not."""

    codec: str
    container: str
    edit: str = "plain"

    @property
    def name(self) -> str:
        return f"{self.codec}-{self.edit}.{self.container}"


def intact_cases() -> list[Case]:
    """Return all combinations that a muxer accepts."""
    return [
        Case(codec, container, edit)
        for codec in CODECS
        for container in CONTAINERS[codec]
        for edit in (EDITS if container not in _SILENT else EDITS[:2])
        if not (edit == "trimmed" and container in ("gif", "apng", "y4m"))
    ]


def make(case: Case, folder: Path) -> Path:
    """Write the intact file of a case, its pictures encoded once per codec."""
    path = folder / case.name
    if path.exists():
        return path
    encoded = folder / f"{case.codec}.encoded.{_ENCODED_IN.get(case.codec.partition('-')[0], 'nut')}"
    if not encoded.exists():
        source = f"testsrc2=size=352x288:rate=25:duration={SECONDS},noise=alls=6:allf=t:all_seed=1"
        ffmpeg("-f", "lavfi", "-i", source, "-c:v", *CODECS[case.codec], str(encoded))
    seek = ("-ss", "0.7") if case.edit == "trimmed" else ()
    arguments = [*seek, "-i", str(encoded), "-map", "0:v"]
    if case.edit in ("long-sound", "short-sound"):
        seconds = SECONDS + 2 if case.edit == "long-sound" else SECONDS - 2
        arguments[:0] = ["-f", "lavfi", "-i", f"sine=duration={seconds}:sample_rate=48000"]
        arguments[-1:] = ["1:v", "-map", "0:a", "-c:a", _AUDIO.get(case.container, "aac")]
    if case.container != "y4m":
        arguments += ["-c:v", "copy"]
    if case.codec.startswith("h264") and case.container.endswith("avi"):
        arguments += ["-bsf:v", "h264_mp4toannexb"]
    if case.container in _PIPED:
        ffmpeg(*arguments, "-f", _PIPED[case.container], "-", output=path)
    else:
        ffmpeg(*arguments, *_MUXERS.get(case.container, ()), str(path))
    return path


def damaged(path: Path, kind: str, seed: int) -> bytes:
    """Return the bytes of an intact file with damage of a kind of `KINDS`, drawn by `seed`."""
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng([seed, len(data)])
    if kind == "cut":
        return bytes(data[: int(len(data) * rng.uniform(0.3, 0.9))])
    if kind == "zeroed":
        start = int(len(data) * rng.uniform(0.3, 0.9))
        data[start:] = bytes(len(data) - start)
        return bytes(data)
    for start, size in rng.choice(_payload(path), 3):
        bit = int(rng.integers(min(32, size // 4), size))
        data[start + bit] ^= 1 << int(rng.integers(8))
    return bytes(data)


def _payload(path: Path) -> NDArray[np.int64]:
    """Return where the packets of the pictures are in a file, int64 [packets, 2]: offset and size."""
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(best_stream(container)) if p.size]
    num_bytes = path.stat().st_size
    return np.array([(pos, size) for pos, size in packets if pos is not None and pos < num_bytes - size], np.int64)


def frames_of(path: Path) -> list[int]:
    """Return a checksum of every frame.

    Raises:
        ItemError: the file is refused.
    """
    reader, _ = open_reader("pyav")
    probed = probe(path, VideoLimits())
    wanted = np.arange(probed.facts.num_frames)
    return [zlib.crc32(rgb.tobytes()) for _, rgb in reader.frames(path, probed, wanted, 1)]


@dataclass(slots=True)
class Found:
    """How many damaged files show other frames than the intact one, and how many of these are refused."""

    harmful: int = 0
    refused: int = 0

    def add(self, other: "Found") -> None:
        self.harmful += other.harmful
        self.refused += other.refused


def measure(case: Case, folder: Path, kind: str, seeds: range) -> Found:
    """Count what is found of one kind of damage in one file; damage that changes no frame does not count."""
    path = make(case, folder)
    intact = frames_of(path)
    found = Found()
    broken = folder / f"broken-{case.name}"
    for seed in seeds:
        broken.write_bytes(damaged(path, kind, seed))
        try:
            frames = frames_of(broken)
        except ItemError:
            found.harmful += 1
            found.refused += 1
        else:
            found.harmful += frames != intact
    broken.unlink()
    return found


def num_accepted(cases: list[Case], folder: Path) -> int:
    """Return how many intact files are decoded completely."""
    accepted = 0
    for case in cases:
        path = make(case, folder)
        try:
            accepted += len(frames_of(path)) > 0
        except ItemError as error:
            sys.stderr.write(f"{case.name}: {error}\n")
    return accepted


def _write_table(header: str, rows: dict[str, dict[str, Found]], kinds: tuple[str, ...]) -> None:
    totals = {kind: Found() for kind in kinds}
    for found in rows.values():
        for kind in kinds:
            totals[kind].add(found[kind])
    lines = [f"| {header} | {' | '.join(kinds)} |", f"|---|{'---|' * len(kinds)}"]
    for name, found in {**dict(sorted(rows.items())), "all": totals}.items():
        cells = [f"{found[kind].refused} of {found[kind].harmful}" for kind in kinds]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    sys.stdout.write("\n" + "\n".join(lines) + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how much damage is found, per container and codec.")
    parser.add_argument("--folder", type=Path, help="Keep the files here, for the next time.")
    parser.add_argument("--seeds", type=int, default=4, help="Damaged files of each kind, per intact file.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvq-damage-") as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        seeds, cases = range(arguments.seeds), intact_cases()
        containers: dict[str, dict[str, Found]] = {}
        codecs: dict[str, dict[str, Found]] = {}
        for case in (case for case in cases if case.edit == "plain"):
            by_container = containers.setdefault(case.container, {"cut": Found(), "zeroed": Found()})
            for kind in by_container:
                by_container[kind].add(measure(case, folder, kind, seeds))
            by_codec = codecs.setdefault(_VARIANT_OF.get(case.codec, case.codec), {"flipped": Found()})
            by_codec["flipped"].add(measure(case, folder, "flipped", seeds))
        _write_table("container", containers, ("cut", "zeroed"))
        _write_table("codec", codecs, ("flipped",))
        sys.stdout.write(f"\nIntact files accepted: {num_accepted(cases, folder)} of {len(cases)}\n")


if __name__ == "__main__":
    main()
