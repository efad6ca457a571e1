"""Files that are not whole are refused as truncated; whole files with odd lengths are not."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kvq_batch.domain.errors import ItemError
from kvq_batch.media.containers import check_completeness
from kvq_batch.media.decoders import open_reader
from kvq_batch.media.probe import VideoLimits, probe
from tests.support.damage import Case, intact_cases, make, measure
from tests.support.material import Material, encode, ffmpeg

LIMITS = VideoLimits()
# One per container, of a codec that decodes fast.
ONE_PER_CONTAINER = list({case.container: case for case in reversed(intact_cases()) if case.edit == "plain"}.values())
OTHERS = [case for case in intact_cases() if case not in ONE_PER_CONTAINER]
# They declare no length: an elementary stream and a transport stream end anywhere.
WITHOUT_LENGTH = {"h264", "hevc", "ts", "m2ts", "m1v", "m2v", "m4v", "obu", "mpg", "vob"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("completeness")


def num_decoded(path: Path) -> int:
    """Return how many frames come out of a file, all of them decoded."""
    probed = probe(path, LIMITS)
    reader, _ = open_reader("pyav")
    return sum(1 for _ in reader.frames(path, probed, np.arange(probed.facts.num_frames), 1))


def code_of(path: Path) -> str:
    """Return the code with which a file is refused permanently."""
    with pytest.raises(ItemError) as caught:
        probe(path, LIMITS)
    assert caught.value.permanent
    return caught.value.code


@pytest.mark.parametrize("case", ONE_PER_CONTAINER, ids=lambda case: case.name)
def test_intact_files_are_accepted(case: Case, folder: Path) -> None:
    assert num_decoded(make(case, folder)) == 75


@pytest.mark.faults
@pytest.mark.parametrize("case", OTHERS, ids=lambda case: case.name)
def test_all_intact_files_are_accepted(case: Case, folder: Path) -> None:
    num_frames = num_decoded(make(case, folder))
    assert num_frames == 75 or (case.edit == "trimmed" and 57 <= num_frames <= 75)


@pytest.mark.parametrize("kind", ["cut", "zeroed"])
@pytest.mark.parametrize("case", ONE_PER_CONTAINER, ids=lambda case: case.name)
def test_a_part_of_a_file_is_refused(case: Case, kind: str, folder: Path) -> None:
    if kind == "cut" and case.container in WITHOUT_LENGTH:
        pytest.skip("declares no length")
    found = measure(case, folder, kind, range(2))
    assert found.refused == found.harmful > 0


def test_a_list_of_chunks_of_unknown_length(folder: Path) -> None:
    path = make(Case("mpeg4", "pipe.avi"), folder)
    data = bytearray(path.read_bytes())
    assert data[4:8] == b"\xff\xff\xff\xff"
    data[4:8] = bytes(4)
    movi = data.index(b"movi") - 4
    data[movi : movi + 4] = bytes(4)
    zero = folder / "zero-sizes.avi"
    zero.write_bytes(data)
    assert num_decoded(path) == num_decoded(zero) == 75


@pytest.mark.parametrize("container", ["avi", "pipe.avi", "mkv", "live.mkv"])
@pytest.mark.parametrize("written", range(-3, 9, 2))
def test_header_that_was_written_in_part(container: str, written: int, folder: Path) -> None:
    """A preallocated file whose last chunk or block has only some bytes of its header."""
    data = bytearray(make(Case("mpeg4", container), folder).read_bytes())
    marker = b"00dc" if container.endswith("avi") else b"\x1f\x43\xb6\x75"
    end = data.index(marker, len(data) // 2 if container.endswith("avi") else 0) + written
    data[end:] = bytes(len(data) - end)
    path = folder / f"header.{container}"
    path.write_bytes(data)
    assert code_of(path) in ("truncated", "corrupt_frame")


def test_padding_and_indices_hold_no_media(material: Material, folder: Path) -> None:
    """Boxes, chunks and elements after the media that are cut, or longer than the file."""
    mp4 = material("h264.mp4").read_bytes() + struct.pack(">I4s", 4096, b"free") + bytes(99)
    avi = material("mjpeg.avi").read_bytes()
    mkv = material("h264.mkv").read_bytes()
    for name, data in {
        "free.mp4": mp4,
        "index.avi": avi[: avi.index(b"idx1") + 40],
        "cues.mkv": mkv[: mkv.rindex(b"\x1c\x53\xbb\x6b") + 9],
        "after.mkv": mkv + bytes(100_000),
    }.items():
        path = folder / name
        path.write_bytes(data)
        assert num_decoded(path) == 100, name


def test_media_box_may_be_longer_than_its_samples(material: Material, folder: Path) -> None:
    data = bytearray(material("h264-faststart.mp4").read_bytes())
    media = data.index(b"mdat") - 4
    data[media : media + 4] = (len(data) + 10_000).to_bytes(4, "big")
    path = folder / "long-media.mp4"
    path.write_bytes(data)
    assert num_decoded(path) == 100
    path.write_bytes(data[:-1])
    assert code_of(path) == "truncated"


def test_missing_index_is_named(material: Material, folder: Path) -> None:
    data = material("h264.mp4").read_bytes()
    path = folder / "no-index.mp4"
    path.write_bytes(data[: data.index(b"moov") - 4])
    with pytest.raises(ItemError, match="its index \\(moov\\) is missing") as caught:
        probe(path, LIMITS)
    assert caught.value.code == "truncated"


def clusters(data: bytes) -> list[int]:
    """Return where the clusters of a Matroska file start."""
    marker, starts = b"\x1f\x43\xb6\x75", [data.find(b"\x1f\x43\xb6\x75")]
    while (following := data.find(marker, starts[-1] + 4)) >= 0:
        starts.append(following)
    return starts


def _cut_between_clusters(folder: Path) -> bytes:
    path = encode(folder / "clusters.mkv", "-c:v", "mpeg4", "-g", "25", "-cluster_time_limit", "500")
    data = path.read_bytes()
    return data[: clusters(data)[-3]]


def _cut_between_tags(folder: Path) -> bytes:
    path = encode(folder / "tags.flv", "-c:v", "flv", "-g", "25")
    data = path.read_bytes()
    offset = 13
    while offset < 0.6 * len(data):
        offset += 15 + int.from_bytes(data[offset + 1 : offset + 4], "big")
    return data[:offset]


@pytest.mark.parametrize("made", [_cut_between_clusters, _cut_between_tags])
def test_declared_duration_finds_a_cut_at_a_boundary(made: Callable[[Path], bytes], folder: Path) -> None:
    path = folder / f"{made.__name__}{'.mkv' if 'clusters' in made.__name__ else '.flv'}"
    path.write_bytes(made(folder))
    assert check_completeness(path).loss is None
    assert code_of(path) == "truncated"


@pytest.mark.parametrize("container", ["mkv", "flv", "mp4"])
def test_longer_sound_is_not_a_loss(container: str, folder: Path) -> None:
    """The header declares the length of the sound, 5 s, and the pictures end after 3 s."""
    path = folder / f"sound.{container}"
    sound = ("-f", "lavfi", "-i", "sine=duration=5", "-c:v", "mpeg4" if container != "flv" else "flv")
    encode(path, *sound, seconds=3)
    assert num_decoded(path) == 75


def test_last_frame_may_be_held(folder: Path) -> None:
    """One frame each 2 s, and Matroska stores no duration of the last: the header alone says that it is shown 2 s."""
    path = folder / "slides.mkv"
    encode(path, "-c:v", "mpeg4", rate="1/2", seconds=8)
    assert num_decoded(path) == 4


def test_flv_that_was_cut_on_purpose(folder: Path) -> None:
    """A cutter that copies the duration of the source and states the size of its own file."""
    data = bytearray(_cut_between_tags(folder))
    size = data.index(b"filesize\x00") + 9
    data[size : size + 8] = struct.pack(">d", len(data))
    path = folder / "excerpt.flv"
    path.write_bytes(data)
    assert 0 < num_decoded(path) < 100


def test_segment_index_lists_what_follows(folder: Path) -> None:
    whole = encode(folder / "dash.mp4", "-c:v", "mpeg4", "-g", "25", "-movflags", "dash+global_sidx+frag_keyframe")
    data = whole.read_bytes()
    assert b"sidx" in data
    assert num_decoded(whole) == 100
    path = folder / "cut-dash.mp4"
    path.write_bytes(data[: data.rindex(b"moof") - 4])
    assert code_of(path) == "truncated"


def test_hole_in_a_file_is_found(folder: Path) -> None:
    """Blocks of a download that never came: zeros in the middle, behind an index that is whole."""
    path = folder / "hole.mp4"
    ffmpeg("-i", str(make(Case("h264", "mp4"), folder)), "-c", "copy", "-movflags", "+faststart", str(path))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 16384] = bytes(16384)
    path.write_bytes(data)
    assert code_of(path) == "truncated"
