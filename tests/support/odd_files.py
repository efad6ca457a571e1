"""A seeded list of odd video files: codecs, containers, samples, flags, rates, orientations, damage.

Each file is named by what is odd about it, and made when it is asked for, from a test pattern of ffmpeg. A file whose
bytes were changed says so (`is_damaged`): a decoder may refuse it. All others play.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.material import ffmpeg

SEED = 13
_NUM_FRAMES = 48

_X265 = "log-level=error:pools=1:frame-threads=1"
_CODECS: dict[str, tuple[str, ...]] = {
    "h264": ("-c:v", "libx264", "-preset", "veryfast", "-g", "12"),
    "hevc": ("-c:v", "libx265", "-preset", "ultrafast", "-g", "12", "-x265-params", _X265),
    "vp8": ("-c:v", "libvpx", "-cpu-used", "8", "-deadline", "realtime", "-g", "12"),
    "vp9": ("-c:v", "libvpx-vp9", "-cpu-used", "8", "-deadline", "realtime", "-g", "12"),
    "av1": ("-c:v", "libsvtav1", "-preset", "12", "-g", "12", "-svtav1-params", "lp=1"),
    "vvc": ("-c:v", "libvvenc", "-preset", "faster", "-g", "16", "-pix_fmt", "yuv420p10le"),
    "mpeg1": ("-c:v", "mpeg1video", "-bf", "2", "-q:v", "4"),
    "mpeg2": ("-c:v", "mpeg2video", "-bf", "2", "-q:v", "4"),
    "mpeg4": ("-c:v", "mpeg4", "-bf", "2", "-q:v", "4"),
    "msmpeg4": ("-c:v", "msmpeg4", "-q:v", "4"),
    "wmv1": ("-c:v", "wmv1", "-q:v", "4"),
    "wmv2": ("-c:v", "wmv2", "-q:v", "4"),
    "h261": ("-c:v", "h261", "-q:v", "4", "-s", "176x144"),
    "h263": ("-c:v", "h263", "-q:v", "4", "-s", "176x144"),
    "flv1": ("-c:v", "flv", "-q:v", "4"),
    "theora": ("-c:v", "libtheora", "-q:v", "6"),
    "mjpeg": ("-c:v", "mjpeg", "-q:v", "4"),
    "ffv1": ("-c:v", "ffv1", "-level", "3"),
    "ffv1-gop": ("-c:v", "ffv1", "-level", "1", "-g", "12", "-context", "1"),
    "huffyuv": ("-c:v", "huffyuv"),
    "ffvhuff": ("-c:v", "ffvhuff"),
    "utvideo": ("-c:v", "utvideo"),
    "magicyuv": ("-c:v", "magicyuv"),
    "prores": ("-c:v", "prores_ks"),
    "dnxhr": ("-c:v", "dnxhd", "-profile:v", "dnxhr_sq", "-s", "320x240"),
    "dv-pal": ("-c:v", "dvvideo", "-s", "720x576", "-r", "25", "-pix_fmt", "yuv420p"),
    "dv-ntsc": ("-c:v", "dvvideo", "-s", "720x480", "-r", "30000/1001", "-pix_fmt", "yuv411p"),
    "jpeg2000": ("-c:v", "jpeg2000"),
    "cinepak": ("-c:v", "cinepak", "-frames:v", "12"),
    "svq1": ("-c:v", "svq1"),
    "qtrle": ("-c:v", "qtrle"),
    "png": ("-c:v", "png"),
    "flashsv": ("-c:v", "flashsv"),
    "zmbv": ("-c:v", "zmbv"),
    "snow": ("-c:v", "snow", "-strict", "-2"),
    "vc2": ("-c:v", "vc2", "-strict", "-1"),
    "cfhd": ("-c:v", "cfhd"),
    "hap": ("-c:v", "hap"),
    "speedhq": ("-c:v", "speedhq"),
    "rv20": ("-c:v", "rv20", "-q:v", "4"),
    "raw": ("-c:v", "rawvideo"),
    "gif": (),
    "apng": ("-plays", "0"),
}
_CONTAINERS: dict[str, str] = {
    "h264": "mp4 mov mkv ts m2ts flv avi h264 nut 3gp mxf",
    "hevc": "mp4 mov mkv ts hevc flv nut",
    "vp8": "webm mkv ivf avi nut ogg",
    "vp9": "webm mkv mp4 ivf nut",
    "av1": "webm mkv mp4 ivf obu flv",
    "vvc": "mp4 mkv vvc ts",
    "mpeg1": "mpg mkv avi m1v nut",
    "mpeg2": "mpg ts mkv m2v vob avi mov mxf nut",
    "mpeg4": "mp4 avi mkv m4v mov nut ts",
    "msmpeg4": "avi mkv",
    "wmv1": "wmv avi",
    "wmv2": "wmv avi mkv",
    "h261": "avi mkv h261",
    "h263": "avi mkv 3gp h263 mov",
    "flv1": "flv mkv avi",
    "theora": "ogv mkv nut",
    "mjpeg": "avi mov mkv mjpeg mp4 nut",
    "ffv1": "mkv avi nut mov",
    "ffv1-gop": "mkv avi nut mov",
    "huffyuv": "avi mkv",
    "ffvhuff": "avi mkv nut",
    "utvideo": "avi mkv mov",
    "magicyuv": "avi mkv",
    "prores": "mov mkv mxf",
    "dnxhr": "mov mkv mxf",
    "dv-pal": "avi dv mov mkv mxf",
    "dv-ntsc": "avi dv mov",
    "jpeg2000": "mov mkv avi mxf",
    "cinepak": "avi mov",
    "svq1": "mov mkv",
    "qtrle": "mov mkv",
    "png": "mov mkv avi",
    "flashsv": "flv avi",
    "zmbv": "avi mkv",
    "snow": "avi mkv nut",
    "vc2": "mkv mov",
    "cfhd": "mov mkv avi",
    "hap": "mov",
    "speedhq": "avi mov",
    "rv20": "rm",
    "raw": "y4m avi nut mov mkv",
    "gif": "gif",
    "apng": "apng",
}
_SAMPLES: dict[str, str] = {
    "h264.mkv": "yuvj420p yuv422p yuv444p yuv420p10le yuv422p10le yuv444p10le gray gray10le nv12",
    "hevc.mkv": "yuv422p yuv444p yuv420p10le yuv422p10le yuv444p10le yuv420p12le gray gbrp",
    "vp9.webm": "yuv422p yuv440p yuv444p yuv420p10le yuv422p10le yuv444p12le gbrp",
    "av1.mkv": "yuv420p10le",
    "mpeg2.ts": "yuv422p",
    "mjpeg.mov": "yuvj422p yuvj444p",
    "theora.ogv": "yuv422p yuv444p",
    "ffv1.mkv": "yuv422p yuv444p yuv440p yuv411p yuv410p yuva420p yuv420p10le yuv420p12le yuv422p10le yuv444p16le gray "
    "gray10le gray16le gbrp gbrp10le gbrp12le bgr0 bgra rgb48le yuva444p10le yuv420p9le yuv422p14le",
    "ffvhuff.mkv": "yuv420p yuv411p gray yuv444p10le gbrp",
    "huffyuv.avi": "yuv422p rgb24 bgra",
    "utvideo.avi": "yuv420p yuv444p gbrp gbrap",
    "magicyuv.avi": "yuv420p yuv422p gbrp gray yuv444p",
    "prores.mov": "yuv444p10le yuva444p10le",
    "qtrle.mov": "rgb24 argb rgb555be gray",
    "png.mov": "rgb24 rgba gray rgb48be pal8 gray16be ya8",
    "raw.avi": "bgr24 yuyv422 uyvy422 gray rgb565le",
    "raw.nut": "nv12 nv21 yuv420p10le p010le rgb24 bgra yuv444p yuv410p yuvj420p gbrp rgb48le gray16le uyvy422 "
    "yuva420p",
    "raw.mov": "uyvy422 rgb24 argb yuv420p v210",
    "raw.y4m": "yuv422p yuv444p gray yuv411p yuvj420p",
    "jpeg2000.mov": "yuv422p yuv444p10le rgb24 gray",
    "cfhd.mov": "gbrp12le",
    "zmbv.avi": "rgb555le pal8",
    "vc2.mkv": "yuv422p10le yuv444p",
}
_FLAGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "no-b": ("h264.mp4", ("-bf", "0")),
    "open-gop": ("h264.mp4", ("-x264-params", "open-gop=1:keyint=12:bframes=3:b-pyramid=normal:scenecut=0")),
    "open-gop-ts": ("h264.ts", ("-x264-params", "open-gop=1:keyint=12:bframes=3:scenecut=0")),
    "intra-refresh": ("h264.mp4", ("-x264-params", "intra-refresh=1:keyint=12:bframes=0")),
    "intra-refresh-ts": ("h264.ts", ("-x264-params", "intra-refresh=1:keyint=12:bframes=0")),
    "intra-only": ("h264.mkv", ("-g", "1")),
    "one-key": ("h264.mp4", ("-g", "1000", "-sc_threshold", "0")),
    "slices": ("h264.mkv", ("-x264-params", "slices=4")),
    "cavlc": ("h264.mp4", ("-coder", "0", "-refs", "5")),
    "lossless": ("h264.mp4", ("-qp", "0")),
    "interlaced-tff": ("h264.ts", ("-flags", "+ildct+ilme", "-x264-params", "tff=1")),
    "interlaced-bff": ("h264.mp4", ("-flags", "+ildct+ilme", "-x264-params", "bff=1")),
    "interlaced-mkv": ("h264.mkv", ("-flags", "+ildct+ilme", "-x264-params", "tff=1")),
    "fake-interlaced": ("h264.mkv", ("-x264-params", "fake-interlaced=1")),
    "frame-packing": ("h264.mp4", ("-x264-params", "frame-packing=3")),
    "temporal-layers": ("hevc.mp4", ("-x265-params", f"{_X265}:temporal-layers=2")),
    "hevc-open-gop": ("hevc.mp4", ("-x265-params", f"{_X265}:open-gop=1:bframes=3:keyint=12")),
    "hevc-open-gop-ts": ("hevc.ts", ("-x265-params", f"{_X265}:open-gop=1:bframes=3:keyint=12")),
    "hevc-no-b": ("hevc.mkv", ("-x265-params", f"{_X265}:bframes=0")),
    "hevc-intra-refresh": ("hevc.mkv", ("-x265-params", f"{_X265}:intra-refresh=1")),
    "hevc-lossless": ("hevc.mkv", ("-x265-params", f"{_X265}:lossless=1")),
    "hevc-field": ("hevc.mkv", ("-x265-params", f"{_X265}:interlace=tff")),
    "alpha": ("vp8.webm", ("-pix_fmt", "yuva420p", "-auto-alt-ref", "0")),
    "alt-ref": ("vp8.webm", ("-auto-alt-ref", "1", "-lag-in-frames", "16", "-deadline", "good")),
    "vp9-alt-ref": ("vp9.webm", ("-auto-alt-ref", "1", "-lag-in-frames", "16", "-deadline", "good")),
    "vp9-alt-ref-mp4": ("vp9.mp4", ("-auto-alt-ref", "1", "-lag-in-frames", "16", "-deadline", "good")),
    "vp9-alt-ref-ivf": ("vp9.ivf", ("-auto-alt-ref", "1", "-lag-in-frames", "16", "-deadline", "good")),
    "vp9-lossless": ("vp9.webm", ("-lossless", "1")),
    "vp9-resilient": ("vp9.webm", ("-error-resilient", "1")),
    "film-grain": ("av1.mkv", ("-svtav1-params", "lp=1:film-grain=20")),
    "low-delay": ("av1.mp4", ("-svtav1-params", "lp=1:pred-struct=1")),
    "mpeg2-interlaced": ("mpeg2.ts", ("-flags", "+ildct+ilme", "-vf", "setfield=tff")),
    "mpeg2-no-b": ("mpeg2.mpg", ("-bf", "0")),
    "mpeg2-intra": ("mpeg2.mkv", ("-g", "1", "-bf", "0")),
    "mpeg2-slices": ("mpeg2.ts", ("-slices", "4")),
    "qpel": ("mpeg4.avi", ("-flags", "+qpel")),
    "data-partitioning": ("mpeg4.mp4", ("-data_partitioning", "1", "-bf", "0")),
    "mpeg4-no-b": ("mpeg4.avi", ("-bf", "0")),
    "mpeg4-interlaced": ("mpeg4.mp4", ("-flags", "+ildct+ilme")),
    "four-motion-vectors": ("mpeg4.mkv", ("-flags", "+mv4+aic")),
    "ffv1-slices": ("ffv1.mkv", ("-slices", "9", "-slicecrc", "1")),
    "ffv1-range-coder": ("ffv1.mkv", ("-coder", "1")),
    "mjpeg-optimal": ("mjpeg.avi", ("-huffman", "optimal")),
}
_MUXING: dict[str, tuple[str, ...]] = {
    "h264.mp4 faststart": ("-movflags", "+faststart"),
    "h264.mp4 fragments": ("-movflags", "frag_keyframe+empty_moov"),
    "h264.mp4 dash": ("-movflags", "frag_keyframe+empty_moov+default_base_moof+negative_cts_offsets"),
    "h264.mp4 no-edit-list": ("-use_editlist", "0"),
    "h264.mp4 negative-cts": ("-movflags", "negative_cts_offsets"),
    "h264.mp4 timescale": ("-video_track_timescale", "1000"),
    "h264.mp4 hybrid": ("-movflags", "hybrid_fragmented"),
    "hevc.mp4 fragments": ("-movflags", "frag_every_frame+empty_moov"),
    "hevc.mp4 hvc1": ("-tag:v", "hvc1", "-movflags", "+faststart"),
    "av1.mp4 fragments": ("-movflags", "frag_keyframe+empty_moov"),
    "mpeg4.mp4 fragments": ("-movflags", "frag_keyframe+empty_moov"),
    "h264.mkv live": ("-live", "1"),
    "h264.mkv clusters": ("-cluster_time_limit", "200"),
    "vp9.webm dash": ("-dash", "1"),
    "h264.ts offset": ("-output_ts_offset", "40000"),
    "h264.ts wrap": ("-output_ts_offset", "95443.2"),
    "h264.ts aud": ("-bsf:v", "h264_metadata=aud=insert"),
    "mpeg2.ts wrap": ("-output_ts_offset", "95443"),
    "mpeg2.mpg small-packets": ("-packetsize", "600"),
    "h264.flv no-duration": ("-flvflags", "no_duration_filesize"),
    "mpeg4.avi no-index": ("-write_bext", "0", "-reserve_index_space", "0"),
    "h264.mov written-colour": ("-movflags", "write_colr", "-colorspace", "bt709", "-color_range", "tv"),
    "h264.nut no-index": ("-write_index", "0"),
}
_RATES = ("24000/1001", "30000/1001", "60", "1", "12.5", "1000/7", "vfr", "vfr-slow", "doubled")
_SIZES = ("16x16", "18x34", "322x182", "161x121", "62x480", "640x34")
_COLOURS = {
    "bt709": "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv",
    "bt2020": "setparams=colorspace=bt2020nc:color_primaries=bt2020:color_trc=bt2020-10:range=tv",
    "full": "setparams=range=pc",
    "smpte240m": "setparams=colorspace=smpte240m:range=tv",
    "fcc": "setparams=colorspace=fcc:range=tv",
    "ycgco": "setparams=colorspace=ycgco",
    "top-left": "setparams=chroma_location=topleft",
}
_OFTEN_DAMAGED = "h264.mp4 h264.ts hevc.mp4 hevc.mkv mpeg4.avi mpeg2.ts vp9.webm av1.mp4 mjpeg.mp4 ffv1.mkv"
_DAMAGE = ("flips", "zeros", "cut", "hole", "tail")
_TURNS = ("0 flip", "90", "90 flip", "180", "180 flip", "270", "270 flip")
_CHANGED = {
    "starts-late": "h264.mp4 h264.mkv hevc.mp4 vp9.webm mpeg4.mp4 mpeg2.ts av1.mp4 h264.ts mjpeg.mov",
    "joined": "h264.ts hevc.ts mpeg2.ts mpeg2.mpg h264.h264 hevc.hevc mpeg2.m2v mpeg4.m4v",
    # Not MPEG-4 part 2, whose only header is at the start.
    "head-lost": "h264.ts hevc.ts mpeg2.ts mpeg2.mpg h264.h264 hevc.hevc mpeg2.m2v",
    "all-keys": "h264.mp4 mpeg4.mp4 ffv1-gop.mov hevc.mp4 mpeg2.mov",
    "audio": "h264.mp4 h264.mkv h264.ts hevc.mp4 vp9.webm mpeg2.mpg",
}


@dataclass(frozen=True)
class OddFile:
    """How one file is made: options of the encoder, then what is done with the file."""

    name: str
    options: tuple[str, ...]
    size: str = "160x120"
    rate: str = "25"
    change: str = ""
    seed: int = 0

    @property
    def is_damaged(self) -> bool:
        return self.change in _DAMAGE

    @property
    def extension(self) -> str:
        return self.name.split()[0].split(".")[-1]

    def make(self, folder: Path) -> tuple[Path, Path]:
        """Write the file into `folder`, and return it and the file before the change."""
        path = folder / f"file.{self.extension}"
        if not self.change:
            _encode(self, path)
            return path, path
        plain = folder / f"plain.{self.extension}"
        _encode(self, plain)
        _CHANGES.get(self.change, _damage)(self, plain, path)
        return path, plain


def odd_files(seed: int = SEED) -> list[OddFile]:
    """Return all files, in an order that puts different kinds next to each other."""
    files = list(_all(random.Random(seed)))
    random.Random(seed).shuffle(files)
    names = [file.name for file in files]
    assert len(set(names)) == len(names)
    return files


def _all(rng: random.Random) -> Iterator[OddFile]:
    pairs = [(codec, extension) for codec in _CODECS for extension in _CONTAINERS[codec].split()]
    for codec, extension in pairs:
        yield OddFile(f"{codec}.{extension}", _CODECS[codec])
    for base, formats in _SAMPLES.items():
        for pixels in formats.split():
            tool = ("-c:v", "v210") if pixels == "v210" else (*_encoder(base), "-pix_fmt", pixels)
            yield OddFile(f"{base} {pixels}", tool)
    for flag, (base, options) in _FLAGS.items():
        yield OddFile(f"{base} {flag}", (*_encoder(base), *options))
    for name, options in _MUXING.items():
        yield OddFile(name, (*_encoder(name), *options))
    for rate in _RATES:
        bases = ["h264.mp4", "h264.mkv", "h264.ts", "hevc.mp4", "vp9.webm"]
        # These encoders count time in frames.
        bases += ["mpeg4.avi", "mjpeg.mov"] if rate != "doubled" else []
        for base in rng.sample(bases, 3):
            yield OddFile(f"{base} rate {rate}", _encoder(base), rate=rate)
    for size in _SIZES:
        for base in rng.sample(
            ["h264.mp4", "hevc.mkv", "vp8.webm", "vp9.webm", "mpeg4.mp4", "mjpeg.avi", "ffv1.mkv"], 3
        ):
            # Even sizes for what cannot code others in 4:2:0.
            odd = size == "161x121" and base in ("h264.mp4", "hevc.mkv")
            yield OddFile(f"{base} size {size}", _encoder(base), size="162x122" if odd else size)
    for colour in _COLOURS:
        for base in ("h264.mp4", "hevc.mkv", "vp9.webm", "ffv1.mkv"):
            yield OddFile(f"{base} colour {colour}", (*_encoder(base), "-vf", _COLOURS[colour]))
    for base in ("h264.mp4", "hevc.mov", "vp9.mkv", "mjpeg.mov"):
        for turn in rng.sample(_TURNS, 4):
            yield OddFile(f"{base} turn {turn}", _encoder(base), change=f"turn {turn}")
    for change, stems in _CHANGED.items():
        for base in stems.split():
            yield OddFile(f"{base} {change}", _encoder(base), change=change)
    for number, damage in enumerate(_DAMAGE):
        for codec, extension in rng.sample(pairs, 16):
            yield OddFile(f"{codec}.{extension} {damage}", _CODECS[codec], change=damage, seed=number)
    for base in _OFTEN_DAMAGED.split():
        for number in range(4):
            damage = ("flips", "zeros")[number % 2]
            yield OddFile(f"{base} {damage} again-{number}", _encoder(base), change=damage, seed=number)


def _encoder(name: str) -> tuple[str, ...]:
    """Return the options of the codec that a name starts with."""
    return _CODECS[name.split(".")[0]]


def _encode(file: OddFile, path: Path) -> None:
    rate, pick = file.rate, ""
    if file.rate.startswith("vfr"):
        rate, pick = "25", "select='not(between(n,9,20))+not(mod(n,3))'"
        if file.rate == "vfr-slow":
            pick = "select='lt(n,5)+not(mod(n,25))'"
    elif file.rate == "doubled":
        rate, pick = "25", "setpts='floor(N/2)*2/25/TB+mod(N,2)/250/TB'"
    options = list(file.options)
    if pick:
        options += ["-vf", pick, "-fps_mode", "passthrough", "-enc_time_base", "1/1000"]
    width, height = map(int, file.size.split("x"))
    source = f"testsrc2=size={width + width % 2}x{height + height % 2}:rate={rate}:duration=600"
    if width % 2 or height % 2:  # the source has even sizes only
        source += f",format=yuv444p,crop={width}:{height}:0:0:exact=1,format=yuv420p"
    counted = [] if "-frames:v" in options else ["-frames:v", str(_NUM_FRAMES)]
    ffmpeg("-f", "lavfi", "-i", source, *options, *counted, str(path))


def _damage(file: OddFile, plain: Path, path: Path) -> None:
    """Change bytes behind the first fifth, where headers are in most containers."""
    rng = random.Random(f"{file.name}{file.seed}")
    data = bytearray(plain.read_bytes())
    low, high = len(data) // 5, max(len(data) * 9 // 10, len(data) // 5 + 1)
    if file.change == "flips":
        for _ in range(6):
            data[rng.randrange(low, high)] ^= 1 << rng.randrange(8)
    elif file.change == "zeros":
        at = rng.randrange(low, high)
        data[at : at + 400] = bytes(len(data[at : at + 400]))
    elif file.change == "cut":
        del data[int(len(data) * rng.uniform(0.5, 0.95)) :]
    elif file.change == "hole":
        at = rng.randrange(low, high)
        del data[at : at + 376]
    else:
        data += bytes(rng.randrange(256) for _ in range(3000))
    path.write_bytes(data)


def _turn(file: OddFile, plain: Path, path: Path) -> None:
    _, degrees, *flip = file.change.split()
    options = ["-display_rotation", degrees, *(["-display_hflip"] if flip else [])]
    ffmpeg(*options, "-i", str(plain), "-c", "copy", str(path))


def _starts_late(file: OddFile, plain: Path, path: Path) -> None:
    ffmpeg("-ss", "0.7", "-i", str(plain), "-c", "copy", str(path))


def _joined(file: OddFile, plain: Path, path: Path) -> None:
    """Two recordings, one behind the other: times and references start again."""
    second = plain.with_name(f"second.{file.extension}")
    ffmpeg("-f", "lavfi", "-i", "mandelbrot=size=160x120:rate=25", "-frames:v", "24", *file.options, str(second))
    path.write_bytes(plain.read_bytes() + second.read_bytes())


def _head_lost(file: OddFile, plain: Path, path: Path) -> None:
    """A recording that was switched on in the middle of a group."""
    data = plain.read_bytes()
    path.write_bytes(data[(len(data) * 2 // 5) // 188 * 188 :])


def _all_keys(file: OddFile, plain: Path, path: Path) -> None:
    """MP4 without its table of keyframes: every sample counts as one (ISO/IEC 14496-12, 8.6.2)."""
    path.write_bytes(plain.read_bytes().replace(b"stss", b"free"))


def _audio(file: OddFile, plain: Path, path: Path) -> None:
    sound = ("-f", "lavfi", "-i", "sine=duration=3", "-map", "1", "-map", "0", "-c:v", "copy", "-shortest")
    ffmpeg("-i", str(plain), *sound, *(["-c:a", "mp2"] if file.extension == "mpg" else []), str(path))


_CHANGES = {
    "starts-late": _starts_late,
    "joined": _joined,
    "head-lost": _head_lost,
    "all-keys": _all_keys,
    "audio": _audio,
    **{f"turn {turn}": _turn for turn in _TURNS},
}
