"""A kept version is the version, bit for bit, for us and for the decoder that scoring uses."""

from pathlib import Path

import numpy as np

from kvq_batch.config.recipe import Step
from kvq_batch.labeling.degradations import apply
from kvq_batch.media.local_files import read_frames
from kvq_batch.media.planes import LOSSLESS_EXTENSION, decode_lossless, encode_lossless
from kvq_batch.media.probe import VideoLimits, probe
from tests.support.pristine import pristine


def test_frames_come_back_and_score_as_they_are(tmp_path: Path) -> None:
    version = apply(pristine(), (Step("noise", 9),), 1)
    data = encode_lossless(version)
    assert encode_lossless(version) == data
    again = decode_lossless(data, version.height_px, version.width_px, version.frame_rate)
    assert np.array_equal(again.data, version.data)
    path = tmp_path / f"version.{LOSSLESS_EXTENSION}"
    path.write_bytes(data)
    assert probe(path, VideoLimits()).facts.num_frames == version.num_frames
    assert np.array_equal(np.stack(read_frames(path, range(version.num_frames))), version.to_rgb())
