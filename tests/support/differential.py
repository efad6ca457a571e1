"""Compare our decoder with the command line of ffmpeg on odd files.

    python -m tests.support.differential [--first 0] [--last 50] [--seed 13] [--name TEXT]

It prints one line per file that is not equal, and the counts. Frames must be equal bit for bit: both sides use the same
arithmetic of libavcodec and libswscale, with the same flags.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.errors import FatalError, ItemError
from kvq_batch.domain.frames import Sampling
from kvq_batch.media.decoders import open_reader
from kvq_batch.media.probe import VideoLimits, probe
from tests.support.odd_files import SEED, OddFile, odd_files
from tests.support.reference import reference_frames

Verdict = Literal["equal", "refused", "undetected", "differs", "not made"]

# Codecs whose decoders took changed bits for another picture in these files, without an error. docs/reliability.md
# names them.
UNCHECKED_CODECS = {
    "dnxhr", "dv-ntsc", "ffv1-gop", "h261", "h264", "hevc", "huffyuv", "mjpeg", "mpeg2", "qtrle", "utvideo", "vp8",
    "vp9", "wmv2",
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What became of one file.

    A refusal is right for damaged files, and for files that ffmpeg does not play. Any other is a difference. Damage is
    `undetected` if a frame is returned that is not one of the file before the damage. That is accepted of
    `UNCHECKED_CODECS` only.
    """

    file: OddFile
    verdict: Verdict
    detail: str = ""

    @property
    def is_right(self) -> bool:
        """Return whether the file was decoded as it should be."""
        is_unchecked = self.file.name.split(".")[0] in UNCHECKED_CODECS
        return self.verdict in ("equal", "refused") or (self.verdict == "undetected" and is_unchecked)

    def __str__(self) -> str:
        return f"{self.verdict}: {self.file.name}: {self.detail}"


def compare(file: OddFile) -> Outcome:
    """Make a file, and compare the frames that a model would get, and some more, with those of ffmpeg."""
    with tempfile.TemporaryDirectory() as name:
        try:
            path, plain = file.make(Path(name))
        except FatalError as error:
            return Outcome(file, "not made", str(error)[-200:])
        try:
            return _compare(file, path, plain if file.is_damaged else path)
        except ItemError as error:
            is_right = file.is_damaged or not _plays(path)
            return Outcome(file, "refused" if is_right else "differs", f"{error.code}: {error.message}")


def _compare(file: OddFile, path: Path, reference: Path) -> Outcome:
    probed = probe(path, VideoLimits())
    num_frames = probed.facts.num_frames
    sampled = np.unique(Sampling().indices(num_frames))
    few = np.unique(np.random.default_rng(len(file.name)).integers(0, num_frames, 3))
    reader, _ = open_reader("pyav")
    frames = [(n, rgb.copy()) for wanted in (few, sampled) for n, rgb in reader.frames(path, probed, wanted, 1)]
    try:
        truth = reference_frames(reference, stream=probed.stream_index)
    except FatalError as error:
        return Outcome(file, "differs", f"only ffmpeg refuses: {str(error)[-200:]}")
    num_lost = len(truth) - num_frames
    if num_lost and not file.is_damaged:
        return Outcome(file, "differs", f"{num_frames} frames, in ffmpeg {len(truth)}")
    # Where frames are lost, later ones have smaller numbers.
    span = 1 + max(num_lost, 0)
    apart = {n: min((_difference(rgb, t) for t in truth[n : n + span]), default=256) for n, rgb in frames}
    worst = max(apart, key=lambda n: apart[n])
    if apart[worst]:
        num = sum(difference > 0 for difference in apart.values())
        detail = f"{num} of {len(apart)} frames, frame {worst} by {apart[worst]} levels"
        return Outcome(file, "undetected" if file.is_damaged else "differs", detail)
    return Outcome(file, "equal")


def _difference(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> int:
    """Return the largest difference in levels; 256 if the sizes differ."""
    return int(np.abs(ours.astype(int) - theirs).max()) if ours.shape == theirs.shape else 256


def _plays(path: Path) -> bool:
    try:
        return bool(reference_frames(path))
    except FatalError:
        return False


def compare_all(files: Iterable[OddFile]) -> list[Outcome]:
    """Compare files, and print those that are not equal as they are found."""
    outcomes = []
    for file in files:
        outcomes.append(compare(file))
        if outcomes[-1].verdict != "equal":
            print(outcomes[-1], flush=True)
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--last", type=int)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--name", default="", help="only files whose name contains this")
    arguments = parser.parse_args()
    files = [file for file in odd_files(arguments.seed) if arguments.name in file.name]
    outcomes = compare_all(files[arguments.first : arguments.last])
    for is_damaged in (False, True):
        counts = Counter(outcome.verdict for outcome in outcomes if outcome.file.is_damaged == is_damaged)
        print(f"{counts.total()} {'damaged' if is_damaged else 'whole'} files:", dict(counts))


if __name__ == "__main__":
    main()
