"""The picture that is scored is the one that ffmpeg shows: orientation, cropping, colour."""

import itertools
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from kvq_batch.domain.errors import FatalError, ProbeError
from kvq_batch.media.probe import VideoLimits, probe
from tests.support.container_edits import add_box, add_to_video, box, edit_track, element
from tests.support.material import Material, encode, ffmpeg
from tests.support.reference import our_frames, reference_frames

ORIENTATIONS = list(itertools.product((0, 90, 180, 270), (False, True)))
SHORT = ("-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p", "-frames:v", "10")
SOME = np.array([0, 4, 9])


def assert_shown(path: Path, size: tuple[int, int] | None = None) -> None:
    """Assert that our frames are those of ffmpeg, and of the stated (width, height)."""
    truth = reference_frames(path)
    facts = probe(path, VideoLimits(hdr="as-is")).facts
    assert facts.num_frames == len(truth)
    assert (facts.height_px, facts.width_px) == truth[0].shape[:2]
    if size:
        assert (facts.width_px, facts.height_px) == size
    for number, rgb in our_frames(path, SOME[len(truth) > SOME]).items():
        assert np.array_equal(rgb, truth[number]), number


@pytest.mark.parametrize("extension", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize(("degrees", "is_mirrored"), ORIENTATIONS)
def test_all_orientations(material: Material, tmp_path: Path, extension: str, degrees: int, is_mirrored: bool) -> None:
    source = material("short.mp4")
    path = tmp_path / f"turned.{extension}"
    flip = ("-display_hflip",) if is_mirrored else ()
    ffmpeg("-display_rotation", str(degrees), *flip, "-i", str(source), "-c", "copy", str(path))
    assert_shown(path, (240, 320) if degrees in (90, 270) else (320, 240))
    facts = probe(path, VideoLimits()).facts
    assert facts.is_mirrored == is_mirrored
    # The files differ from each other, so that none of them is right by chance.
    stored, shown = reference_frames(path, "-noautorotate")[4], our_frames(path, SOME)[4]
    flipped = stored[:, ::-1] if is_mirrored else stored
    assert np.array_equal(shown, np.rot90(flipped, -facts.rotation_deg // 90))


@pytest.mark.parametrize("pixel_format", ["yuv420p10le", "yuv422p10le", "yuv411p", "yuv440p", "yuva420p", "gray10le"])
@pytest.mark.parametrize("turn", ["90", "180", "270 -display_hflip"])
def test_orientation_of_other_layouts(tmp_path: Path, pixel_format: str, turn: str) -> None:
    # libswscale interpolates chroma from row to row only: what is turned first differs by up to 100 levels.
    source, path = tmp_path / "source.mkv", tmp_path / "turned.mkv"
    encode(source, "-c:v", "ffv1", "-vf", "scale=161:121", "-pix_fmt", pixel_format, "-frames:v", "3", size="160x120")
    ffmpeg("-display_rotation", *turn.split(), "-i", str(source), "-c", "copy", str(path))
    assert_shown(path)


@pytest.mark.parametrize("extension", ["h264", "mp4", "ts"])
@pytest.mark.parametrize("message", ["rotate=90", "rotate=180:flip=horizontal", "rotate=270:flip=vertical"])
def test_orientation_of_an_sei_message(material: Material, tmp_path: Path, extension: str, message: str) -> None:
    path = tmp_path / f"sei.{extension}"
    to_units = "" if extension == "mp4" else "h264_mp4toannexb,"
    insert = f"{to_units}h264_metadata=display_orientation=insert:{message}"
    ffmpeg("-i", str(material("short.mp4")), "-c", "copy", "-bsf:v", insert, str(path))
    assert_shown(path)
    assert probe(path, VideoLimits()).facts.rotation_deg


def test_an_angle_between_quarters_is_refused(material: Material, tmp_path: Path) -> None:
    path = tmp_path / "tilted.mp4"
    ffmpeg("-display_rotation", "30", "-i", str(material("short.mp4")), "-c", "copy", str(path))
    with pytest.raises(ProbeError, match="by 330 degrees") as caught:
        probe(path, VideoLimits())
    assert caught.value.code == "unusual_rotation"


def _clean_aperture(width: int, height: int, right: int, down: int) -> bytes:
    """Return a `clap` box: the size shown, and how far its centre lies from that of the picture."""
    return box(b"clap", struct.pack(">IIIIiIiI", width, 1, height, 1, right, 1, down, 1))


@pytest.mark.parametrize("extension", ["mp4", "mov"])
def test_clean_aperture_is_cropped(material: Material, tmp_path: Path, extension: str) -> None:
    source = tmp_path / f"source.{extension}"
    ffmpeg("-i", str(material("short.mp4")), "-c", "copy", str(source))
    path = add_box(source, tmp_path / f"clap.{extension}", _clean_aperture(240, 180, 20, -10))
    assert_shown(path, (240, 180))
    stored = reference_frames(source)[4]
    assert np.array_equal(our_frames(path, SOME)[4], stored[20:200, 60:300])


def test_cropping_comes_before_rotation(material: Material, tmp_path: Path) -> None:
    source = tmp_path / "source.mp4"
    ffmpeg("-display_rotation", "90", "-i", str(material("short.mp4")), "-c", "copy", str(source))
    assert_shown(add_box(source, tmp_path / "clap.mp4", _clean_aperture(240, 180, 20, -10)), (180, 240))


@pytest.mark.parametrize("right", [20, 21])
def test_cropping_of_10_bits(tmp_path: Path, right: int) -> None:
    options = ("-c:v", "libx264", "-pix_fmt", "yuv420p10le", "-frames:v", "10")
    source = encode(tmp_path / "source.mp4", *options)
    path = add_box(source, tmp_path / "clap.mp4", _clean_aperture(240, 180, right, -10))
    if right == 20:
        assert_shown(path, (240, 180))
    else:  # ffmpeg rounds to whole chroma samples
        stored = our_frames(source, SOME)[4]
        assert np.array_equal(our_frames(path, SOME)[4], stored[20:200, 61:301])


def test_a_clean_aperture_beyond_the_picture_is_ignored(material: Material, tmp_path: Path) -> None:
    path = add_box(material("short.mp4"), tmp_path / "clap.mp4", _clean_aperture(400, 180, 0, 0))
    assert_shown(path, (320, 240))


def test_pixel_crop_of_matroska(material: Material, tmp_path: Path) -> None:
    source = tmp_path / "source.mkv"
    ffmpeg("-i", str(material("short.mp4")), "-c", "copy", "-live", "1", "-write_crc32", "0", str(source))
    crops = {0x54BB: 4, 0x54AA: 8, 0x54CC: 16, 0x54DD: 32}
    elements = b"".join(element(kind, bytes([pixels])) for kind, pixels in crops.items())
    path = edit_track(source, tmp_path / "crop.mkv", lambda track: add_to_video(track, elements))
    assert_shown(path, (320 - 48, 240 - 12))


PLANES = {  # what a codec says of chroma: FFV1 nothing, HEVC and H.264 "left" if silent, the last three by name
    "ffv1.mkv": ("-c:v", "ffv1"),
    "hevc.mkv": ("-c:v", "libx265", "-x265-params", "lossless=1:log-level=error"),
    "h264.mp4": ("-c:v", "libx264", "-qp", "0"),
    "raw.nut": ("-c:v", "rawvideo"),
    "left.mkv": ("-c:v", "ffv1", "-chroma_sample_location", "left"),
    "top-left.mkv": ("-c:v", "libx265", "-x265-params", "lossless=1:log-level=error:chromaloc=2"),
    "bottom.mp4": ("-c:v", "libx264", "-qp", "0", "-x264-params", "chromaloc=5"),
}


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv420p10le", "yuv422p10le"])
def test_equal_planes_give_equal_pictures(tmp_path: Path, pixel_format: str) -> None:
    pictures = []
    for name, options in PLANES.items():
        if pixel_format == "yuv422p10le" and name in ("top-left.mkv", "bottom.mp4"):
            continue  # the message is defined for 4:2:0 only
        path = encode(tmp_path / name, *options, "-pix_fmt", pixel_format, seconds=0.2, size="160x120")
        assert_shown(path)
        pictures.append(our_frames(path)[3])
    assert all(np.array_equal(picture, pictures[0]) for picture in pictures)


def test_bit_depth_does_not_move_chroma(tmp_path: Path) -> None:
    # The same planes, shifted by two bits: only rounding, and the interpolation of chroma, may differ.
    eight = encode(tmp_path / "8.mkv", "-c:v", "ffv1", "-pix_fmt", "yuv420p", seconds=0.1)
    ten = tmp_path / "10.mkv"
    ffmpeg(
        "-i",
        str(eight),
        "-c:v",
        "libx265",
        "-x265-params",
        "lossless=1:log-level=error",
        "-pix_fmt",
        "yuv420p10le",
        str(ten),
    )
    coarse, fine = our_frames(eight)[0].astype(float), our_frames(ten)[0].astype(float)
    offsets = [np.abs(np.roll(fine, shift, axis=1) - coarse).mean() for shift in (-1, 0, 1)]
    assert np.argmin(offsets) == 1


@pytest.mark.parametrize("name", ["odd.webm", "odd-10bit.mkv", "444.mkv", "gray.mkv", "rgb.mkv", "nv12.nut", "411.avi"])
def test_other_layouts_of_samples(tmp_path: Path, name: str) -> None:
    options = {
        "odd.webm": ("-c:v", "libvpx", "-cpu-used", "8", "-vf", "scale=161:123"),
        "odd-10bit.mkv": ("-c:v", "ffv1", "-pix_fmt", "yuv420p10le", "-vf", "scale=161:123"),
        "444.mkv": ("-c:v", "ffv1", "-pix_fmt", "yuv444p10le"),
        "gray.mkv": ("-c:v", "ffv1", "-pix_fmt", "gray"),
        "rgb.mkv": ("-c:v", "libx264rgb", "-qp", "0"),
        "nv12.nut": ("-c:v", "rawvideo", "-pix_fmt", "nv12"),
        "411.avi": ("-c:v", "dvvideo", "-pix_fmt", "yuv411p", "-s", "720x480", "-r", "30000/1001"),
    }[name]
    assert_shown(encode(tmp_path / name, *options, seconds=0.4, size="160x120"))


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9", "ffv1", "mpeg4"])
@pytest.mark.parametrize("color_range", ["tv", "pc"])
def test_container_colour_of_a_silent_bitstream(tmp_path: Path, codec: str, color_range: str) -> None:
    quiet = ("-x265-params", "log-level=error") if codec == "libx265" else ()
    silent = encode(tmp_path / "silent.mkv", "-c:v", codec, *quiet, "-pix_fmt", "yuv420p", seconds=0.4, size="160x120")
    path = tmp_path / "said.mkv"
    tags = ("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", color_range)
    ffmpeg("-i", str(silent), "-c", "copy", *tags, str(path))
    assert_shown(path)
    facts = probe(path, VideoLimits()).facts
    assert (facts.color_primaries, facts.color_transfer) == ("bt709", "bt709")


@pytest.mark.parametrize("extension", ["mkv", "mp4", "mov"])
@pytest.mark.parametrize(("transfer", "name"), [("smpte2084", "PQ"), ("arib-std-b67", "HLG")])
@pytest.mark.parametrize("codec", ["libx265", "libx264"])
def test_hdr_of_the_container_alone(tmp_path: Path, extension: str, transfer: str, name: str, codec: str) -> None:
    quiet = ("-x265-params", "log-level=error") if codec == "libx265" else ()
    silent = encode(tmp_path / "silent.mp4", "-c:v", codec, *quiet, "-pix_fmt", "yuv420p10le", seconds=0.2)
    path = tmp_path / f"hdr.{extension}"
    tags = ("-colorspace", "bt2020nc", "-color_primaries", "bt2020", "-color_trc", transfer)
    ffmpeg("-i", str(silent), "-c", "copy", *tags, str(path))
    with pytest.raises(ProbeError, match=f"Its transfer is {name}") as caught:
        probe(path, VideoLimits())
    assert caught.value.code == "hdr_refused"
    assert probe(path, VideoLimits(hdr="as-is")).facts.color_transfer == transfer


@pytest.mark.parametrize("matrix", ["ycgco", "bt2020c", "ictcp", "chroma-derived-nc"])
def test_a_matrix_without_conversion_is_refused(tmp_path: Path, matrix: str) -> None:
    path = encode(tmp_path / "matrix.mkv", "-c:v", "ffv1", "-vf", f"setparams=colorspace={matrix}", seconds=0.1)
    with pytest.raises(FatalError):  # ffmpeg does not convert it either
        reference_frames(path)
    with pytest.raises(ProbeError, match=f"Its matrix is {matrix}") as caught:
        probe(path, VideoLimits())
    assert caught.value.code == "unsupported_color"


def dolby_metadata() -> bytes:
    """Return a unit of Dolby Vision profile 5 that maps every plane to itself, in ffmpeg's reading (dovi_rpudec.c)."""

    def ue(number: int) -> str:
        bits = f"{number + 1:b}"
        return "0" * (len(bits) - 1) + bits

    plane = ue(0) + f"{0:010b}{1023:010b}"  # two pivots of 10 bits
    mapping = ue(0) + ue(0) + "0" + ue(0) + f"{0:023b}" + ue(1) + f"{0:023b}"  # a line: 0 + 1 x, as fixed point numbers
    bits = "".join(
        [
            f"{2:06b}{18:011b}{0:04b}{0:04b}",  # type, format, profile, level
            "1" + "0" + "00" + ue(23) + "01" + "1",  # sequence: fixed point of 23 bits, full range
            ue(2) + ue(2) + ue(4) + "0" + "000" + "0" + "1",  # 10 bits, 12 bits of the display, no residual
            "0" + "0" + ue(0) + ue(0) + ue(0) + plane * 3 + ue(0) + ue(0) + mapping * 3,
        ]
    )
    payload = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    unit = b"\x19" + payload + bytes(4) + b"\x80"  # the checksum is not looked at
    return b"\x7c\x01" + re.sub(rb"\x00\x00(?=[\x00-\x03])", b"\x00\x00\x03", unit)


def encode_dolby(path: Path, *parameters: str) -> Path:
    """Write an HEVC stream whose first picture carries Dolby's metadata."""
    source = path.with_name("source.hevc")
    options = ":".join(["log-level=error", "bframes=0", *parameters])
    encode(source, "-c:v", "libx265", "-x265-params", options, "-pix_fmt", "yuv420p10le", seconds=0.2)
    units = source.read_bytes().split(b"\x00\x00\x01")
    first_picture = next(i for i, unit in enumerate(units) if i and unit[0] >> 1 < 32)
    units.insert(first_picture + 1, dolby_metadata())
    path.write_bytes(b"\x00\x00\x01".join(units))
    return path


@pytest.mark.parametrize("extension", ["hevc", "mp4", "mkv", "ts"])
def test_dolby_vision_profile_5(tmp_path: Path, extension: str) -> None:
    path = encode_dolby(tmp_path / "dolby.hevc")
    if extension != "hevc":
        # Elementary streams have no times; without reordering they are those of a steady rate.
        stream, path = path, path.with_suffix(f".{extension}")
        ffmpeg("-i", str(stream), "-c", "copy", "-bsf:v", "setts=ts=N/25/TB:time_base=1/1000", str(path))
    with pytest.raises(ProbeError, match="Dolby Vision of profile 5") as caught:
        probe(path, VideoLimits(hdr="as-is"))
    assert caught.value.code == "hdr_refused"


def test_dolby_vision_over_sdr_is_scored(tmp_path: Path) -> None:
    path = encode_dolby(tmp_path / "dolby.hevc", "transfer=bt709", "colorprim=bt709", "colormatrix=bt709")
    assert_shown(path)
