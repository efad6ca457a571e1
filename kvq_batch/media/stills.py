"""Single frames of a video by number, for pictures.

It runs in the caller's process: the videos it is asked for have been decoded before. It samples and resizes nothing.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvq_batch.media.decoders import choose_decoder, open_reader
from kvq_batch.media.probe import VideoLimits, probe


def read_stills(path: Path, indices: Sequence[int]) -> list[NDArray[np.uint8]]:
    """The frames `indices` (presentation order, repeats allowed), uint8 RGB [H, W, 3], upright, native size.

    Raises:
        ProbeError, DecodeError: as `probe` and the readers.
    """
    probed = probe(path, VideoLimits(hdr="as-is"))
    reader, _ = open_reader(choose_decoder(probed))
    wanted = np.unique(np.asarray(indices, np.int64))
    frames = {number: rgb.copy() for number, rgb in reader.frames(path, probed, wanted, num_threads=1)}
    return [frames[int(index)] for index in indices]
