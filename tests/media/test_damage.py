"""Damaged pictures are an error wherever the decoder or its log notices; whole files are never an error."""

from pathlib import Path

import av.logging
import numpy as np
import pytest

from kvq_batch.domain.errors import DecodeError, ItemError
from kvq_batch.media.damage import Line, container_damage, decoder_damage
from kvq_batch.media.decoders import open_reader
from kvq_batch.media.probe import VideoLimits, probe
from tests.support.damage import Case, damaged, frames_of, make, measure

ERROR, WARNING = av.logging.ERROR, av.logging.WARNING
# Checksums, or a syntax in which every damage ends in an error.
ALWAYS_FOUND = [
    Case("h264", "mp4"), Case("hevc-hash", "mp4"), Case("mpeg1video", "ts"),
    Case("mpeg4", "avi"), Case("flv1", "flv"), Case("theora", "ogv"), Case("vp8", "ogg"),
    Case("ffv1", "mkv"), Case("png", "mov"), Case("apng", "apng"),
]  # fmt: skip
# A changed bit can give another valid slice; which one depends on the bitstream, which the encoder varies with the CPU.
MOSTLY_FOUND = [Case("h264-slices", "mkv")]
SOMETIMES_FOUND = [
    Case("av1", "mp4"),
    Case("mjpeg", "mov"),
    Case("prores", "mov"),
    Case("dnxhd", "mov"),
    Case("gif", "gif"),
]
REORDERED = [
    Case("h264", "mkv"), Case("h264-open-gop", "mp4"), Case("h264-open-gop", "mkv", "trimmed"),
    Case("h264-refresh", "mp4"), Case("hevc-open-gop", "mp4"), Case("hevc-open-gop", "mkv", "trimmed"),
    Case("mpeg2video", "ts"), Case("av1", "mp4"), Case("vp9", "webm"),
]  # fmt: skip
JOINED = [Case("h264", "ts"), Case("hevc-open-gop", "ts"), Case("mpeg2video", "ts"), Case("mpeg1video", "ts")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damage")


@pytest.mark.parametrize("case", ALWAYS_FOUND, ids=lambda case: case.name)
def test_flipped_bits_are_found(case: Case, folder: Path) -> None:
    found = measure(case, folder, "flipped", range(6))
    assert found.refused == found.harmful > 0


@pytest.mark.parametrize("case", MOSTLY_FOUND, ids=lambda case: case.name)
def test_flipped_bits_are_mostly_found(case: Case, folder: Path) -> None:
    found = measure(case, folder, "flipped", range(6))
    assert found.harmful > 0
    assert found.refused >= found.harmful - 1


@pytest.mark.parametrize("case", SOMETIMES_FOUND, ids=lambda case: case.name)
def test_flipped_bits_are_sometimes_found(case: Case, folder: Path) -> None:
    assert measure(case, folder, "flipped", range(8)).refused > 0


@pytest.mark.parametrize("case", REORDERED, ids=lambda case: case.name)
def test_frames_of_whole_files_are_read_one_by_one(case: Case, folder: Path) -> None:
    """Decoding starts at each keyframe, where frames that lead an open group lack their references."""
    path = make(case, folder)
    probed = probe(path, VideoLimits())
    reader, _ = open_reader("pyav")
    for number in range(0, probed.facts.num_frames, 3):
        assert [n for n, _ in reader.frames(path, probed, np.array([number]), 1)] == [number]


@pytest.mark.parametrize("case", JOINED, ids=lambda case: case.name)
def test_recordings_that_start_late_are_whole(case: Case, folder: Path) -> None:
    """A receiver that joins a broadcast starts between keyframes."""
    data = make(case, folder).read_bytes()
    path = folder / f"joined-{case.name}"
    path.write_bytes(data[len(data) * 35 // 100 // 188 * 188 :])
    assert 20 <= len(frames_of(path)) < 60


def test_error_names_the_time_and_the_evidence(folder: Path) -> None:
    path = make(Case("ffv1", "mkv"), folder)
    broken = folder / "broken.mkv"
    broken.write_bytes(damaged(path, "flipped", 0))
    for _ in range(2):  # the same line of the log counts again
        with pytest.raises(DecodeError, match=r"The frame at \d\.\d\d s is damaged in the file \(slice CRC") as caught:
            frames_of(broken)
        assert (caught.value.code, caught.value.permanent) == ("corrupt_frame", True)


def test_damage_elsewhere_does_not_matter(folder: Path) -> None:
    """Frames of an intra-only codec do not refer to each other."""
    path = make(Case("mjpeg", "mov"), folder)
    reader, _ = open_reader("pyav")
    data = bytearray(path.read_bytes())
    index = probe(path, VideoLimits())
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(range(200)) * 2
    broken = folder / "one-damaged.mov"
    broken.write_bytes(data)
    good = np.array([0, 1, 60, 74])
    assert [number for number, _ in reader.frames(broken, index, good, 1)] == good.tolist()
    with pytest.raises(ItemError):
        frames_of(broken)


@pytest.mark.parametrize(
    "line",
    [
        (ERROR, "h264", "mmco: unref short failure\n"),
        (ERROR, "mjpeg", "unable to decode APP fields: Invalid data found when processing input\n"),
        (ERROR, "hevc", "VPS 0 does not exist\n"),
        (ERROR, "hevc", "PPS id out of range: 0\n"),
        (WARNING, "mjpeg", "EOI missing, emulating\n"),
    ],
)
def test_lines_that_mean_no_damage(line: Line) -> None:
    assert decoder_damage([line]) is None
    assert container_damage([line]) is None


def test_first_line_of_damage_is_returned() -> None:
    lines = [
        (ERROR, "mjpeg", "app: invalid len 3\n"),
        (ERROR, "mjpeg", "error count: 65\n"),
        (ERROR, "mjpeg", "later\n"),
    ]
    assert decoder_damage(lines) == "error count: 65"
    assert decoder_damage([(WARNING, "hevc", "Skipping invalid undecodable NALU: 1\n")]) is not None
    assert container_damage([(ERROR, "ogg", "CRC mismatch!\n")]) == "CRC mismatch!"
